"""What a run that continues from a checkpoint has in common with the one that wrote it, and what it has not."""

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from ..data.loader import begin_next_epoch, is_dealt_otherwise, reads_other_files, restore_loader
from ..data.streaming import StreamStateError
from ..optim.schedules import scaled_learning_rate
from . import checkpoint as ckpt
from .arguments import TrainingArguments

Say = Callable[[str], None]


def images_per_step(recipe: dict[str, Any], world_size: int) -> int:
    return recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] * world_size


def peak_learning_rate(recipe: dict[str, Any], world_size: int) -> float:
    """The one that was asked for, or the base rate scaled by the images of an update."""
    if recipe["learning_rate"] is not None:
        return recipe["learning_rate"]
    return scaled_learning_rate(recipe["base_learning_rate"], images_per_step(recipe, world_size))


def find_checkpoint(
    root: Path, chosen: str, accelerator: Accelerator, *, strict: bool = False
) -> ckpt.Checkpoint | None:
    """The run's own newest checkpoint; before its first one, the one it was told to start from. Called by all ranks.

    Args:
        chosen: "auto", or the folder of a checkpoint.
        strict: a damaged newest one is an error; otherwise the run falls back to the one before.

    Raises:
        CheckpointError: the chosen one is damaged, or is not the newest of this very run; or the ranks do not all find
            the same one.
    """
    together = {"rank": accelerator.process_index, "exchange": lambda own: gather_object([own])}
    own = ckpt.find_latest(root, warn=accelerator.print, strict=strict, **together)
    if own is None:
        return None if chosen == "auto" else ckpt.verify(Path(chosen), **together)
    if accelerator.is_main_process:
        ckpt.set_aside_newer(root, own.step)
    # The start itself may be gone by now: the run that it belongs to keeps its newest ones only.
    start = Path(chosen)
    if chosen != "auto" and start.resolve().parent == root.resolve() and start.name != own.path.name:
        raise ckpt.CheckpointError(
            f"{root} already holds step {own.step}: leave out --resume_from_checkpoint to continue from it, "
            f"or branch off from {start.name} with another --output_dir"
        )
    return own


def compare_recipes(checkpoint: ckpt.Checkpoint, recipe: TrainingArguments, world_size: int, say: Say) -> None:
    """Names every option that differs, and what follows for the learning rate where the images of an update do.

    Raises:
        CheckpointError: for another seed; nothing of the data's order would be left.
    """
    before, now = checkpoint.manifest["recipe"], asdict(recipe)
    if before["seed"] != now["seed"]:
        raise ckpt.CheckpointError(
            f"{checkpoint.path} was written with --seed {before['seed']}, this run has {now['seed']}; the data stream "
            f"can only be continued with the same: pass --seed {before['seed']}"
        )
    for name in sorted(set(before) & set(now) - {"output_dir", "resume_from_checkpoint", "strict_resume"}):
        if before[name] != now[name]:
            say(f"warning: --{name} was {before[name]} in the checkpoint, now {now[name]}")
    world_size_before = checkpoint.manifest["world_size"]
    if world_size_before != world_size:
        say(f"warning: {checkpoint.path} was written by {world_size_before} processes, this run has {world_size}")
    images = images_per_step(before, world_size_before), images_per_step(now, world_size)
    peaks = peak_learning_rate(before, world_size_before), peak_learning_rate(now, world_size)
    if images[0] != images[1]:
        same = "" if peaks[0] == peaks[1] else f"; --learning_rate {peaks[0]:g} keeps it"
        say(
            f"warning: an update had {images[0]} images (batch x accumulation x processes), now {images[1]}; the peak "
            f"learning rate was {peaks[0]:g}, now {peaks[1]:g}{same}"
        )


def restore_position(
    loader: Any, checkpoint: ckpt.Checkpoint, recipe: TrainingArguments, rank: int, world_size: int, say: Say
) -> dict[str, Any]:
    """Puts `loader` where the checkpoint's run stopped reading; returns this rank's saved state.

    With another number of processes or data workers, or with other files, there is no such place: the next epoch
    begins, and a warning says so. What a rank remembers for itself (the bad images that it met lately) then begins
    anew.

    Raises:
        StreamStateError: the data are in another order; names the options that have changed.
    """
    try:
        return _restore_position(loader, checkpoint, recipe, rank, world_size, say)
    except StreamStateError as error:
        changes = _changed_data_options(checkpoint.manifest["recipe"], recipe)
        raise StreamStateError(f"{changes}{error}") from error


def refuse_other_source(recipe: TrainingArguments, source: str) -> None:
    """For data that take long to make ready: what [`restore_position`] would say about their `source` later.

    A checkpoint that cannot be read is left for later, too.

    Raises:
        StreamStateError: the checkpoint that this run will continue from was reading others.
    """
    own = sorted(Path(recipe.output_dir, "checkpoints").glob(f"step-{8 * '[0-9]'}"))
    newest = own[-1] if own else Path(recipe.resume_from_checkpoint)
    try:
        saved = json.loads((newest / "rank-00000.json").read_text(encoding="utf-8"))["stream"]["stream"]["source"]
        before = json.loads((newest / ckpt.MANIFEST).read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if saved != source:
        raise StreamStateError(
            f"{_changed_data_options(before, recipe)}{newest} was reading images of other data or the features of "
            "another image tower (or was written by an earlier maws_hf): continue with the same ones, or choose "
            "another --output_dir"
        )


def _changed_data_options(before: dict[str, Any], recipe: TrainingArguments) -> str:
    """Those about data and model that differ, to begin an error with; empty if there are none."""
    now, common = asdict(recipe), {item.name for item in fields(TrainingArguments)}
    changed = [name for name in sorted(set(before) & set(now) - common) if before[name] != now[name]]
    listed = [f"--{name} was {before[name]} in the checkpoint, now {now[name]}" for name in changed]
    return "".join(f"{item}; " for item in listed)


def _restore_position(
    loader: Any, checkpoint: ckpt.Checkpoint, recipe: TrainingArguments, rank: int, world_size: int, say: Say
) -> dict[str, Any]:
    before = checkpoint.manifest["world_size"], checkpoint.manifest["recipe"]["dataloader_num_workers"]
    now = world_size, recipe.dataloader_num_workers
    position = checkpoint.read_json(f"rank-{rank if before == now else 0:05d}.json")
    # A rank may have listed the files before the last was there; the epoch is shared only if all begin it.
    if any(gather_object([reads_other_files(loader, position["stream"])])):
        shards = position["stream"]["stream"]["num_shards"], loader.dataset.dataset.num_shards
        counts = f"{shards[0]} shards, now {shards[1]}" if shards[0] != shards[1] else "other names or sizes"
        reason, same = f"files of the data set were added, removed or exchanged ({counts})", "files"
    elif any(gather_object([before == now and is_dealt_otherwise(loader, position["stream"])])):
        reason, same = "an earlier version had each reader read all the data, now whole shards are dealt", "version"
    elif before != now:
        reason = f"the data were shared by {before[0]} processes x {before[1]} data workers, now {now[0]} x {now[1]}"
        same = "numbers"
    else:
        restore_loader(loader, position["stream"])
        return position["state"]
    # As many files as there were processes; read by each that there is now, they would be a million on 1000 of them.
    of_all = [checkpoint.read_json(f"rank-{other:05d}.json") for other in range(before[0])] if rank == 0 else None
    (positions,) = broadcast_object_list([of_all])
    epoch = begin_next_epoch(loader, [position["stream"] for position in positions])
    say(
        f"warning: {reason}: reading goes on with epoch {epoch}, what is left of epoch {epoch - 1} is not read (the "
        f"same {same} would continue exactly)"
    )
    return {**positions[0]["state"], "recent_skips": []}


__all__ = [
    "compare_recipes",
    "find_checkpoint",
    "images_per_step",
    "peak_learning_rate",
    "refuse_other_source",
    "restore_position",
]
