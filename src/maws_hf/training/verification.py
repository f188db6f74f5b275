"""Whether what lies in a folder is whole: a run, a checkpoint, a model, a release, or shards with their records."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..hub.release_checks import release_problems
from ..hub.staging import CONFIG, MANIFEST, STUB, WEIGHTS, StagingError, read_staging
from ..hub.weight_checks import tensor_problems
from . import checkpoint as ckpt
from .sharded_files import holds_shards
from .verification_model import model_problems, sharded_problems

_STEP = re.compile(r"step-\d{8}")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.json")
_ADAPTER = "adapter_model.safetensors"


class VerificationError(ValueError):
    """There is nothing in a folder that could be verified; the message says what was looked for."""


@dataclass(frozen=True)
class Verdict:
    """
    Args:
        path: of what was looked at.
        checked: what was compared with what.
        faults: each a sentence that names the file; none if it is whole.
    """

    path: Path
    checked: str
    faults: tuple[str, ...]


def verify_folder(folder: Path) -> Iterator[Verdict]:
    """Verdicts on all that is in a folder, each as soon as it is known. Large files are read, but never held.

    Args:
        folder: a training run, one of its checkpoints, a model in our format or an export of it, an adapter, a release
            that was laid out, labels or features.

    Raises:
        VerificationError: it is none of these.
    """
    folder = ckpt.with_own_name(folder)
    if not folder.is_dir():
        raise VerificationError(f"{folder} is no folder: name the folder of a run, a checkpoint, a model or a release")
    parts = list(_parts(folder))
    if not parts:
        raise VerificationError(
            f"{folder} holds nothing to verify: no {CONFIG}, no checkpoint such as step-00001000, no {MANIFEST} of a "
            "release, and no records of shards"
        )
    for path, checked, problems in parts:
        yield Verdict(path, checked, tuple(problems()))


def newest_usable(verdicts: list[Verdict]) -> Path | None:
    """The checkpoint that a run would go on from; None if there is none, or none was looked at."""
    whole = [each.path for each in verdicts if _STEP.fullmatch(each.path.name) and not each.faults]
    return max(whole, key=lambda path: path.name, default=None)


def _parts(folder: Path) -> Iterator[tuple[Path, str, Callable[[], Iterator[str]]]]:
    if (folder / MANIFEST).is_file():
        yield folder, f"files against {MANIFEST}, and what a release must hold", lambda: _release_faults(folder)
        return
    if _STEP.fullmatch(folder.name):  # corpora have a manifest of that name, too
        yield folder, _CHECKPOINT, lambda: _checkpoint_faults(folder)
        return
    inside = folder / "checkpoints"  # of a run
    for path in sorted(inside.iterdir() if inside.is_dir() else ()) + sorted(folder.iterdir()):
        if _STEP.fullmatch(path.name) and path.is_dir():
            yield path, _CHECKPOINT, lambda path=path: _checkpoint_faults(path)
        elif (path / MANIFEST).is_file():
            yield from _parts(path)
    if (folder / CONFIG).is_file() or (folder / WEIGHTS).is_file():
        checked = "config, weights (all there, nothing else, finite), what prepares the input"
        yield folder, checked, lambda: model_problems(folder, complete=True)
    elif (folder / _ADAPTER).is_file():
        yield folder, "weights of an adapter (finite)", lambda: _adapter_faults(folder)
    if records := sorted(file for file in folder.rglob("*.json") if _SHARD.fullmatch(file.name)):
        yield folder, f"{len(records)} shards against their records", lambda: _shard_faults(records)


_CHECKPOINT = f"sizes and SHA-256 of all files against {ckpt.MANIFEST}, numbers finite, weights those of the config"


def _checkpoint_faults(path: Path) -> Iterator[str]:
    try:
        checkpoint = ckpt.verify(path)
    except ckpt.CheckpointError as error:
        yield str(error)
        return
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        yield f"{path / ckpt.MANIFEST} is not what a run writes ({type(error).__name__}: {error})"
        return
    for name in sorted(checkpoint.manifest["files"]):
        file = path / name
        if file.suffix == ".json":
            try:
                json.loads(file.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                yield f"{file} is no JSON ({type(error).__name__})"
        elif file.suffix == ".safetensors" and not name.startswith("model"):
            # No optimizer has moments before its first update, and a process may have no row of a tiny model.
            yield from (f"{file} {problem}" for problem in tensor_problems(file, may_be_empty=True))
    if holds_shards(path):
        yield from sharded_problems(path)
    elif (path / CONFIG).is_file():
        yield from model_problems(path, complete=False)


def _release_faults(folder: Path) -> Iterator[str]:
    try:
        read_staging(folder)
    except StagingError as error:
        yield str(error)
    for name, problem in release_problems(folder, native=(folder / STUB).is_file()):
        yield f"{folder / name} {problem}"


def _adapter_faults(folder: Path) -> Iterator[str]:
    yield from (f"{folder / _ADAPTER} {problem}" for problem in tensor_problems(folder / _ADAPTER))


def _shard_faults(records: list[Path]) -> Iterator[str]:
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
        elif shard.stat().st_size != size or _sha256(shard) != digest:
            yield f"{shard} is not what was written: the command that made it makes it again"
    for (parent, stem, count), found in numbers.items():
        if absent := sorted(set(range(count)) - found):
            yield f"{parent} lacks {len(absent)} of {count} shards of {stem}, the first number {absent[0]}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["Verdict", "VerificationError", "newest_usable", "verify_folder"]
