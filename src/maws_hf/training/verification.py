"""Whether what lies in a folder is whole: a run, a checkpoint, a model, a release, or shards with their records."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..hub.release_checks import release_problems
from ..hub.staging import (
    CONFIG,
    MANIFEST,
    SHARDS,
    STUB,
    WEIGHT_INDEX,
    WEIGHTS,
    StagingError,
    files_below,
    read_staging,
)
from ..hub.weight_checks import tensor_problems
from . import checkpoint as ckpt
from .sharded_files import holds_shards
from .verification_model import model_problems, sharded_problems
from .verification_shards import corpus_problems, is_corpus, shard_problems, shard_records
from .weight_sums import SUMS, weight_sum_problems

_STEP = re.compile(r"step-\d{8}")
_ADAPTER, _ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


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
            that was laid out, a corpus that was built, labels or features.

    Raises:
        VerificationError: it is none of these.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise VerificationError(f"{folder} is no folder: name the folder of a run, a checkpoint, a model or a release")
    parts = list(_parts(folder))
    if not parts:
        raise VerificationError(
            f"{folder} holds nothing to verify: no {CONFIG}, no checkpoint such as step-00001000, no {MANIFEST} of a "
            "release, and no manifest or records of shards"
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
    if checkpoint := _checkpoint_at(folder):
        yield checkpoint, _CHECKPOINT, lambda: _checkpoint_faults(checkpoint)
        return
    inside = folder / "checkpoints"  # of a run
    for path in sorted(inside.iterdir() if inside.is_dir() else ()) + sorted(folder.iterdir()):
        if _STEP.fullmatch(path.name) and path.is_dir():
            yield path, _CHECKPOINT, lambda path=path: _checkpoint_faults(path)
        elif (path / MANIFEST).is_file():
            yield from _parts(path)
    if any((folder / name).is_file() for name in (CONFIG, WEIGHTS, WEIGHT_INDEX)) or any(folder.glob(SHARDS)):
        sums = f"weights against {SUMS}, " if (folder / SUMS).exists() else ""
        checked = f"{sums}config, weights (all there, nothing else, finite), what prepares the input"
        yield folder, checked, lambda: _model_faults(folder)
    if any((folder / name).is_file() for name in (_ADAPTER, _ADAPTER_CONFIG)):
        yield folder, "config and weights of an adapter (finite)", lambda: _adapter_faults(folder)
    if is_corpus(folder):
        yield folder, f"shards against {ckpt.MANIFEST}", lambda: corpus_problems(folder)
    if records := shard_records(folder):
        yield folder, f"{len(records)} shards against their records", lambda: shard_problems(records)


def _checkpoint_at(folder: Path) -> Path | None:
    """A checkpoint under its own name, where there is one: `.` and links have another, and a copy may have any."""
    here = folder if _STEP.fullmatch(folder.name) else folder.resolve()
    if _STEP.fullmatch(here.name):
        return here
    # Corpora have a manifest of that name, too.
    return folder if (folder / ckpt.MANIFEST).is_file() and any(folder.glob("rank-*.json")) else None


_CHECKPOINT = f"sizes and SHA-256 of all files against {ckpt.MANIFEST}, numbers finite, weights those of the config"


def _checkpoint_faults(path: Path) -> Iterator[str]:
    try:
        checkpoint = ckpt.verify(path, any_name=not _STEP.fullmatch(path.name))
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
            yield from (f"{file} {problem}" for problem in tensor_problems(file))
    if holds_shards(path):
        yield from sharded_problems(path)
    elif (path / CONFIG).is_file():
        yield from model_problems(path, complete=False)


def _model_faults(folder: Path) -> Iterator[str]:
    yield from weight_sum_problems(folder)
    yield from model_problems(folder, complete=True)


def _release_faults(folder: Path) -> Iterator[str]:
    try:
        listed = {*read_staging(folder).files, MANIFEST}
    except StagingError as error:
        yield str(error)
    else:
        yield from (f"{folder / name} is not in {MANIFEST}" for name in files_below(folder) if name not in listed)
    for name, problem in release_problems(folder, native=(folder / STUB).is_file()):
        yield f"{folder / name} {problem}"


def _adapter_faults(folder: Path) -> Iterator[str]:
    """Without its base; whether it fits is seen when it is loaded."""
    try:
        kind = json.loads((folder / _ADAPTER_CONFIG).read_text(encoding="utf-8"))["peft_type"]
        if not isinstance(kind, str):
            raise TypeError(f"peft_type is {kind!r}")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        yield f"{folder / _ADAPTER_CONFIG} is missing or describes no adapter ({type(error).__name__}: {error})"
    if not (folder / _ADAPTER).is_file():
        yield f"{folder / _ADAPTER} is missing"
        return
    yield from (f"{folder / _ADAPTER} {problem}" for problem in tensor_problems(folder / _ADAPTER))


__all__ = ["Verdict", "VerificationError", "newest_usable", "verify_folder"]
