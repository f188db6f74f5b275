"""Driven by test_ranks_fail.py: two ranks train the smallest model, and something happens to one of them."""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from line_run import Line, objective, run
from ranks import scene
from safetensors.torch import load_file

from maws_hf.training import checkpoint, distributed, loop, prefetch
from maws_hf.training.agreement import named_failures
from maws_hf.training.arguments import TrainingArguments

STEPS = 8
OPTIONS = {"max_steps": STEPS, "per_device_train_batch_size": 2, "save_steps": 3}


def train(rank: int, corpus: Path, folder: Path, batch_loss: Any = objective, **options: Any) -> dict[str, Any]:
    outcome, model = run(corpus, folder, batch_loss, **{**OPTIONS, **options})
    weights = [p.item() for p in model.parameters()]
    return {"step": outcome.step, "images_seen": outcome.images_seen, "weights": weights}


class Fault:
    """The objective, until this rank has computed it `calls` times."""

    def __init__(self, rank: int, calls: int, happens: Any):
        self.left, self.happens = calls if rank == 1 else 1_000_000, happens

    def __call__(self, model: torch.nn.Module, batch: dict) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            self.happens()
        return objective(model, batch)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise MemoryError("no room for a batch")


def killed(rank: int, corpus: Path, folder: Path) -> dict[str, Any]:
    return train(rank, corpus, folder, Fault(rank, 4, die))


def raising(rank: int, corpus: Path, folder: Path) -> dict[str, Any]:
    return train(rank, corpus, folder, Fault(rank, 4, fail))


def uneven(rank: int, corpus: Path, folder: Path) -> dict[str, Any]:
    return train(rank, corpus, folder, batches=(8, 5)[rank], gradient_accumulation_steps=1)


def broken_reader(rank: int, corpus: Path, folder: Path) -> dict[str, Any]:
    return train(rank, corpus, folder, bad_batch=5 if rank == 1 else None)


def ahead(rank: int, corpus: Path, folder: Path, act: Any) -> dict[str, Any]:
    """With batches read ahead, as for an accelerator."""
    prefetch.reads_ahead = lambda device: True
    return act(rank, corpus, folder)


def half(rank: int, corpus: Path, folder: Path) -> dict[str, Any]:
    return train(rank, corpus, folder, max_steps=STEPS // 2)


def unlike(rank: int, corpus: Path, folder: Path) -> dict[str, Any]:
    """Rank 1 cannot read the newest checkpoint, which the other finds whole."""
    read = checkpoint.sha256_of

    def fail(file: Path) -> str:
        if file.parent.name == f"step-{STEPS:08d}":
            raise OSError(116, "Stale file handle")
        return read(file)

    if rank == 1:
        checkpoint.sha256_of = fail
    return train(rank, corpus, folder, max_steps=2 * STEPS)


def flipped(rank: int, corpus: Path, folder: Path) -> dict[str, Any]:
    """A bit of the newest checkpoint is not what it was; also tells what this rank reads to find that."""
    read, found = checkpoint.sha256_of, []

    def note(file: Path) -> str:
        found.append(str(file.relative_to(folder / "checkpoints")))
        return read(file)

    checkpoint.sha256_of = note
    return {**train(rank, corpus, folder), "read": found}


def taken(rank: int, corpus: Path, folder: Path) -> dict[str, Any]:
    """The main process finds another run in the folder."""

    def refuse(output_dir: Path) -> None:
        raise ValueError(f"process 4711 is training in {output_dir}")

    loop.lock_output = refuse
    return train(rank, corpus, folder)


def full(rank: int, corpus: Path, folder: Path) -> dict[str, Any]:
    """The disk of rank 1 takes its part of the first checkpoint only."""
    write = Path.write_text

    def write_or_refuse(path: Path, text: str, **options: Any) -> int:
        if path.parent.name == ".tmp-step-00000006":
            raise OSError(28, "No space left on device")
        return write(path, text, **options)

    if rank == 1:
        Path.write_text = write_or_refuse
    return train(rank, corpus, folder)


def apart(rank: int, corpus: Path, folder: Path) -> dict[str, Any]:
    """As on two hosts that do not share the disk of --output_dir."""
    return train(rank, corpus, folder / f"host-{rank}")


def late(rank: int, folder: Path) -> dict[str, Any]:
    """The main process has something to do that takes longer than a run waits for it."""
    distributed.LONGEST_WAIT = timedelta(seconds=3)
    accelerator = distributed.build_accelerator(TrainingArguments(output_dir=str(folder)))
    if rank == 0:
        time.sleep(8)
    with named_failures(rank, accelerator.num_processes, lambda: "at its start"):
        return {}


def main(corpus: str, folder: str) -> None:
    root = Path(folder)
    results = {}
    for name, before, now in (("fewer", 2, 1), ("more", 1, 2)):
        scene(before, half, root / "answers" / f"{name} before", Path(corpus), root / name)
        results[name] = scene(now, train, root / "answers" / name, Path(corpus), root / name)
    for act in (train, killed, raising, uneven, broken_reader):
        name = act.__name__
        results[name] = scene(2, act, root / "answers" / name, Path(corpus), root / name)
        results[f"{name} checkpoints"] = sorted(path.name for path in (root / name / "checkpoints").iterdir())
        if act is not train:
            again = scene(2, train, root / "answers" / f"{name} again", Path(corpus), root / name)
            results[f"{name} again"] = again
    for act in (train, killed, broken_reader):
        folder, answers = root / f"{act.__name__} ahead", root / "answers" / f"{act.__name__} ahead"
        results[folder.name] = scene(2, ahead, answers, Path(corpus), folder, act)
        if act is not train:
            again = answers.with_name(f"{folder.name} again")
            results[again.name] = scene(2, ahead, again, Path(corpus), folder, train)
    results["full"] = scene(2, full, root / "answers" / "full", Path(corpus), root / "full")
    results["full files"] = sorted(path.name for path in (root / "full" / "checkpoints").iterdir())
    results["apart"] = scene(2, apart, root / "answers" / "apart", Path(corpus), root / "apart")
    scene(1, half, root / "answers" / "apart before", Path(corpus), root / "apart" / "host-0")
    results["apart again"] = scene(2, apart, root / "answers" / "apart again", Path(corpus), root / "apart")
    saved = root / "train" / "checkpoints" / f"step-{STEPS:08d}"
    results["unlike"] = scene(2, unlike, root / "answers" / "unlike", Path(corpus), root / "train")
    results["taken"] = scene(2, taken, root / "answers" / "taken", Path(corpus), root / "taken")
    scene(2, train, root / "answers" / "flipped before", Path(corpus), root / "flipped")
    weights = root / "flipped" / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    results["flipped"] = scene(2, flipped, root / "answers" / "flipped", Path(corpus), root / "flipped")
    results["late"] = scene(2, late, root / "answers" / "late", root / "late")
    tensors = load_file(saved / "model.safetensors")
    results["saved"] = {name: tensor.item() for name, tensor in tensors.items()}
    results["loaded"] = {name: tensor.item() for name, tensor in Line.from_pretrained(saved).named_parameters()}
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
