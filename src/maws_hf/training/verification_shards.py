"""Whether shards are whole: a corpus against its manifest, labels and features against the record of each shard."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from ..data.corpus import JOURNAL, MANIFEST
from ..whole_files import sha256_of

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.json")


def is_corpus(folder: Path) -> bool:
    """Whether a corpus was built, or half built, in a folder."""
    return any((folder / name).is_file() for name in (MANIFEST, JOURNAL)) and (folder / "data").is_dir()


def corpus_problems(folder: Path) -> Iterator[str]:
    """What is missing, changed, or would load though it is not part of the corpus."""
    if (folder / JOURNAL).is_file():
        yield f"{folder / JOURNAL}: the corpus is half built; the command that builds it goes on"
        return
    try:
        shards = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["shards"]
        known = {name: (shard["bytes"], shard["sha256"]) for name, shard in shards.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        yield f"{folder / MANIFEST} is no manifest of a corpus ({type(error).__name__})"
        return
    for name, (size, digest) in known.items():
        if not (folder / name).is_file():
            yield f"{folder / name} is missing: the command that built it makes it again"
        elif (folder / name).stat().st_size != size or sha256_of(folder / name) != digest:
            yield f"{folder / name} is not what was written: the command that built it makes it again"
    for path in sorted((folder / "data").glob("*.parquet")):
        if f"data/{path.name}" not in known:
            yield f"{path} is not in {MANIFEST}, but would load with the corpus"
    if not (folder / "README.md").is_file():
        yield f"{folder / 'README.md'} is missing, which says which shard is of which split"


def shard_records(folder: Path) -> list[Path]:
    """One a shard, of labels or features, anywhere below."""
    return sorted(file for file in folder.rglob("*.json") if _SHARD.fullmatch(file.name))


def shard_problems(records: list[Path]) -> Iterator[str]:
    """Labels keep their records in a folder beside `data`, features beside each shard."""
    numbers: dict[tuple[Path, str, int], set[int]] = {}
    for record in records:
        stem, number, count = _SHARD.fullmatch(record.name).groups()
        numbers.setdefault((record.parent, stem, int(count)), set()).add(int(number))
        beside = record.with_suffix(".parquet")
        shard = record.parent.parent / "data" / beside.name if record.parent.name == "records" else beside
        try:
            known = json.loads(record.read_text(encoding="utf-8"))
            size, digest = known["bytes"], known["sha256"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            yield f"{record} is no record of a shard ({type(error).__name__})"
            continue
        if not shard.is_file():
            yield f"{shard} is missing: the command that made it makes it again"
        elif shard.stat().st_size != size or sha256_of(shard) != digest:
            yield f"{shard} is not what was written: the command that made it makes it again"
    for (parent, stem, count), found in numbers.items():
        if absent := sorted(set(range(count)) - found):
            yield f"{parent} lacks {len(absent)} of {count} shards of {stem}, the first number {absent[0]}"


__all__ = ["corpus_problems", "is_corpus", "shard_problems", "shard_records"]
