"""Write a data set to disk as parquet shards that can be trusted: verified, resumable, the same bytes every time.

A corpus directory holds `data/<split>-00000-of-00008.parquet`, a dataset card (`README.md`) that tells `datasets`
which file belongs to which split, and `manifest.json` with the recipe, the counts and the sha256 of every shard.
While a build is under way `building.json` records the shards that are finished, so that the same command after a
kill goes on where it stopped.
"""

import hashlib
import importlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm.auto import tqdm

from ..whole_files import remove_leftovers, sha256_of, temporary_beside, to_json, write_atomically

MANIFEST = "manifest.json"
JOURNAL = "building.json"
CARD_VERSION = "<version>"


class CorpusError(RuntimeError):
    """A corpus cannot be built, or is not what its manifest says; the message names the file and the way out."""


@dataclass(frozen=True)
class Source:
    """Where pictures or words come from, as printed and recorded with every corpus built from it."""

    name: str
    version: str
    licence: str
    attribution: str


@dataclass(frozen=True)
class Shard:
    """One parquet file to be: its split, its name below the corpus directory, and what its rows are made from."""

    split: str
    path: str
    items: Sequence[Any]


@dataclass(frozen=True)
class CorpusReport:
    """What lies on disk after a build; `print(report)` shows it with licences and attributions."""

    name: str
    output_dir: Path
    counts: dict[str, dict[str, int]]
    shards: dict[str, dict[str, Any]]
    sources: tuple[Source, ...]
    already_built: bool

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each split."""
        return {split: sum(groups.values()) for split, groups in self.counts.items()}

    @property
    def bytes(self) -> int:
        """Size of all shards on disk."""
        return sum(shard["bytes"] for shard in self.shards.values())

    def __str__(self) -> str:
        state = "already built, every checksum verified" if self.already_built else "built"
        lines = [f"{self.name}: {state} in {self.output_dir} ({self.bytes / 1e6:.1f} MB in {len(self.shards)} shards)"]
        groups = list(dict.fromkeys(group for counts in self.counts.values() for group in counts))
        widths = [max(6, len(group)) for group in groups]
        lines.append(
            "  ".join([f"{'split':<8}", f"{'rows':>6}", *(f"{g:>{w}}" for g, w in zip(groups, widths, strict=True))])
        )
        for split, counts in self.counts.items():
            cells = (f"{counts.get(g, 0):>{w}}" for g, w in zip(groups, widths, strict=True))
            lines.append("  ".join([f"{split:<8}", f"{self.rows[split]:>6}", *cells]))
        lines.append("Made from, under the licences of their authors:")
        lines += [f"  {s.name} {s.version} ({s.licence}): {s.attribution}" for s in self.sources]
        return "\n".join(lines)


def demo_dependency(module: str) -> ModuleType:
    """Import a package of the `demo` extra; raises `CorpusError` saying how to install it where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CorpusError(
            f"building a demo corpus needs {module}: pip install -e '.[demo]' in the folder of maws_hf ({error})"
        ) from error


def deal_shards(split: str, items: Sequence[Any], count: int) -> list[Shard]:
    """Cut `items`, in their order, into `count` shards whose lengths differ by one at most."""
    bounds = [len(items) * index // count for index in range(count + 1)]
    return [
        Shard(split, f"data/{split}-{index:05d}-of-{count:05d}.parquet", items[bounds[index] : bounds[index + 1]])
        for index in range(count)
    ]


def finished_report(
    output_dir: Path, name: str, recipe: Mapping[str, Any], sources: Sequence[Source]
) -> CorpusReport | None:
    """The report of a corpus that is complete and intact, or None where something is left to do.

    Raises:
        CorpusError: the directory holds a corpus built by another recipe, or parquet files this builder did not write.
    """
    manifest = _read_record(output_dir / MANIFEST)
    for record in (manifest, _read_record(output_dir / JOURNAL)):
        _same_recipe_or_error(record, name, recipe, output_dir)
    if manifest is None or not (output_dir / "README.md").is_file():
        return None
    if not all(_intact(output_dir, path, shard) for path, shard in manifest["shards"].items()):
        return None
    _no_strangers(output_dir, manifest["shards"])
    return CorpusReport(name, output_dir, manifest["counts"], manifest["shards"], tuple(sources), already_built=True)


def write_corpus(
    output_dir: Path,
    *,
    name: str,
    recipe: Mapping[str, Any],
    features: Any,
    shards: Sequence[Shard],
    row: Callable[[Any], dict[str, Any]],
    group: Callable[[Any], str],
    card: str,
    sources: Sequence[Source],
    row_group_size: int,
) -> CorpusReport:
    """Write every shard that is not on disk yet, then the card, then the manifest.

    Args:
        recipe: what the result depends on; a directory built by another recipe is refused.
        features: the `datasets.Features` of a row; images are given as `{"bytes": ..., "path": ...}`.
        row: makes one row from one item of a shard.
        group: the column an item is counted under in the manifest (a rendering, a class).
        card: text of the dataset card; `CARD_VERSION` in it becomes a number that follows from the shards.
        row_group_size: rows read at once when streaming.

    Raises:
        CorpusError: see `finished_report`.
    """
    (output_dir / "data").mkdir(parents=True, exist_ok=True)
    _no_strangers(output_dir, {shard.path for shard in shards})
    finished = _recorded_shards(output_dir)
    with tqdm(total=sum(len(shard.items) for shard in shards), desc=f"{name}: rows", unit="row") as progress:
        for shard in shards:
            if shard.path in finished and _intact(output_dir, shard.path, finished[shard.path]):
                progress.update(len(shard.items))
                continue
            if shard.path in finished:
                tqdm.write(f"{shard.path} is missing or differs from its recorded sha256: writing it again")
            finished[shard.path] = _write_shard(output_dir, shard, features, row, row_group_size, progress)
            # Recorded after the shard is in place: a kill between the two costs one shard, never trust in a torn one.
            write_atomically(output_dir / JOURNAL, to_json({"name": name, "recipe": recipe, "shards": finished}))

    counts: dict[str, Counter] = {}
    for shard in shards:
        counts.setdefault(shard.split, Counter()).update(group(item) for item in shard.items)
    manifest = {
        "name": name,
        "recipe": recipe,
        "counts": {split: dict(sorted(groups.items())) for split, groups in counts.items()},
        "shards": {shard.path: finished[shard.path] for shard in shards},
        "sources": [vars(source) for source in sources],
    }
    write_atomically(output_dir / "README.md", card.replace(CARD_VERSION, _version(manifest["shards"])).encode())
    write_atomically(output_dir / MANIFEST, to_json(manifest))
    (output_dir / JOURNAL).unlink(missing_ok=True)
    for folder in (output_dir, output_dir / "data"):
        remove_leftovers(folder)
    return CorpusReport(name, output_dir, manifest["counts"], manifest["shards"], tuple(sources), already_built=False)


def check_counts(name: str, expected: Mapping[str, int] | None, found: Mapping[str, int]) -> None:
    """Raise `CorpusError` on the first count that is not as expected; `expected=None` accepts any."""
    for what, number in (expected or {}).items():
        if found.get(what, 0) != number:
            raise CorpusError(
                f"{name}: found {found.get(what, 0)} {what} where the pinned sources have {number}; "
                "the sources are damaged or of other versions: delete them and run the command again."
            )


def _write_shard(
    output_dir: Path, shard: Shard, features: Any, row: Callable, row_group_size: int, progress: tqdm
) -> dict:
    pa, pq = demo_dependency("pyarrow"), demo_dependency("pyarrow.parquet")
    # This schema carries `datasets`' own description of the features: images and labels load as such.
    schema = features.arrow_schema
    path = output_dir / shard.path
    temporary = temporary_beside(path)
    with pq.ParquetWriter(temporary, schema, compression="zstd", compression_level=9) as writer:
        for start in range(0, len(shard.items), row_group_size):
            rows = []
            for item in shard.items[start : start + row_group_size]:
                rows.append(row(item))
                progress.update()
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    record = {"rows": len(shard.items), "bytes": temporary.stat().st_size, "sha256": sha256_of(temporary)}
    temporary.replace(path)
    return record


def _version(shards: Mapping[str, Mapping[str, Any]]) -> str:
    """Another version for other bytes: `datasets` caches a directory by path and version, not by content."""
    digests = "".join(shard["sha256"] for _, shard in sorted(shards.items()))
    return f"1.0.{int(hashlib.sha256(digests.encode()).hexdigest()[:7], 16)}"


def _recorded_shards(output_dir: Path) -> dict[str, dict]:
    """What a complete build, then an interrupted one, says it has written."""
    records = (_read_record(output_dir / MANIFEST), _read_record(output_dir / JOURNAL))
    return {path: shard for record in records if record for path, shard in record["shards"].items()}


def _read_record(path: Path) -> dict | None:
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {key: record[key] for key in ("name", "recipe", "shards")} | record
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{path} is not a record this builder wrote ({error!r}): delete it and run again."
        ) from error


def _same_recipe_or_error(record: dict | None, name: str, recipe: Mapping[str, Any], output_dir: Path) -> None:
    if record is None or (record["name"], record["recipe"]) == (name, json.loads(to_json(recipe))):
        return
    theirs = {"name": record["name"], **record["recipe"]}
    ours = {"name": name, **recipe}
    different = next(key for key in [*ours, *theirs] if ours.get(key) != theirs.get(key))
    raise CorpusError(
        f"{output_dir} holds a corpus with {different}={theirs.get(different)!r}, not {ours.get(different)!r}: "
        "choose another --output_dir, or delete that one."
    )


def _no_strangers(output_dir: Path, expected: Any) -> None:
    for path in sorted((output_dir / "data").glob("*.parquet")):
        if f"data/{path.name}" not in expected:
            raise CorpusError(
                f"{path} is not part of this corpus but would load with it: "
                "move it away, or choose another --output_dir."
            )


def _intact(output_dir: Path, path: str, shard: Mapping[str, Any]) -> bool:
    file = output_dir / path
    return file.is_file() and file.stat().st_size == shard["bytes"] and sha256_of(file) == shard["sha256"]
