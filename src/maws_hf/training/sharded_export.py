"""From a sharded checkpoint to a model folder that `from_pretrained` reads, one tensor in memory at a time."""

import os
import shutil
from functools import partial
from pathlib import Path

from ..hub.native_writer import SHARD_BYTES, write_shards
from .checkpoint import MANIFEST, CheckpointError, find_latest, verify, with_own_name
from .sharded_files import AVERAGE, WEIGHTS, CheckpointTensors


def _newest_checkpoint(root: Path) -> Path:
    """The newest whole checkpoint of a run.

    Raises:
        CheckpointError: there is none.
    """
    found = find_latest(root, warn=print)
    if found is None:
        raise CheckpointError(f"{root} holds no checkpoint; train first")
    return found.path


def last_checkpoint(root: Path) -> Path:
    """The one that a run has just ended with. An older one is not its result, so there is no falling back.

    Raises:
        CheckpointError: there is none, or it is not what was written.
    """
    last = max(root.glob("step-" + 8 * "[0-9]"), default=root / "step-00000000")
    try:
        return verify(last).path
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}, so no model is written; the same command trains again from the checkpoint before"
        ) from error


def assemble_model(checkpoint: Path, output_dir: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes config and weights; the average of the weights where the run kept one, as the end of a run does.

    The files are written beside and moved in when all are whole.

    Args:
        checkpoint: a `step-00000123` folder, sharded or not.
        output_dir: made if it is not there; weights in it are replaced.

    Raises:
        CheckpointError: the checkpoint cannot be read, or holds values that are not finite.
    """
    partial_dir = output_dir / ".model.part"
    shutil.rmtree(partial_dir, ignore_errors=True)
    partial_dir.mkdir(parents=True)
    try:
        with CheckpointTensors(checkpoint) as tensors:
            averaged = tensors.names(AVERAGE)
            sources = {name: (AVERAGE if name in averaged else WEIGHTS) + name for name in tensors.names(WEIGHTS)}
            contents = {
                name: (tensors.dtype(source), tensors.shapes[source], partial(tensors.read, source))
                for name, source in sources.items()
            }
            not_finite = write_shards(contents, partial_dir, parameters=_parameters(tensors), shard_bytes=shard_bytes)
        if not_finite:
            raise CheckpointError(f"{checkpoint}: {min(not_finite)} holds values that are not finite")
        shutil.copyfile(checkpoint / "config.json", partial_dir / "config.json")
        for old in output_dir.glob("model*.safetensors*"):
            old.unlink()
        for file in sorted(partial_dir.iterdir()):
            os.replace(file, output_dir / file.name)
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)


def checkpoint_in(where: str) -> Path | None:
    """The checkpoint that is meant by its own folder, or by a run's that holds no model yet: there the newest.

    Raises:
        CheckpointError: it is not what was written, or the run has none that is.
    """
    folder = with_own_name(where)
    if (folder / MANIFEST).is_file():
        return verify(folder).path
    unfinished = (folder / "checkpoints").is_dir() and not (folder / "config.json").exists()
    return _newest_checkpoint(folder / "checkpoints") if unfinished else None


def _parameters(tensors: CheckpointTensors) -> int:
    """How many numbers the model has; the decoder's position table is a constant, and no parameter."""
    total = 0
    for name in tensors.names(WEIGHTS) - {"decoder.position_embeddings"}:
        count = 1
        for side in tensors.shapes[WEIGHTS + name]:
            count *= side
        total += count
    return total


__all__ = ["assemble_model", "checkpoint_in", "last_checkpoint"]
