"""Reads what the steps of the demo leave on disk. A step that has not run, or a torn file, is a `RecordError`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..training.ledger import read_ledger
from ..training.records import JsonLines

__all__ = ["Curve", "RecordError", "read_curve", "read_json", "share"]


class RecordError(RuntimeError):
    """A result is not there, or is not what its step writes; the message names the file."""


@dataclass(frozen=True)
class Curve:
    """The course of a training run.

    Attributes:
        steps, images, losses, rates: of each logged interval that has a loss; `rates` are learning rates.
        seconds: of all logged intervals, as their images per second say; what a killed run did twice counts once.
        operations: training operations, without those of the runs it started from; None where they are not counted.
    """

    steps: list[int]
    images: list[int]
    losses: list[float]
    rates: list[float]
    seconds: float
    operations: float | None


def read_curve(run_dir: Path) -> Curve:
    """Reads `metrics.jsonl` and, once the run has ended, `training.json`.

    Raises:
        RecordError: there are no metrics yet, or they are not those of a training run.
    """
    file = run_dir / "metrics.jsonl"
    if not file.is_file():
        raise RecordError(f"{file} is not there yet.")
    try:
        lines = JsonLines(file).read()
        kept = [line for line in lines if line["loss"] is not None and math.isfinite(line["loss"])]
        if not kept:
            raise RecordError(f"{file} holds no losses yet.")
        seconds, before = 0.0, 0
        for line in lines:
            seconds += (line["images_seen"] - before) / line["images_per_second"]
            before = line["images_seen"]
        stages = read_ledger(str(run_dir))  # written at the end
        return Curve(
            steps=[line["step"] for line in kept],
            images=[int(line["images_seen"]) for line in kept],
            losses=[float(line["loss"]) for line in kept],
            rates=[float(line["learning_rate"]) for line in kept],
            seconds=seconds,
            operations=stages[-1].flops if stages else lines[-1].get("training_flops"),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise RecordError(f"{file} is not the record of a training run ({error!r}).") from error


def read_json(file: Path) -> dict[str, Any]:
    """Raises `RecordError` where the file is missing or is no JSON object."""
    if not file.is_file():
        raise RecordError(f"{file} is not there yet.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"{file} is not valid JSON ({error}): delete it and repeat the step.") from error
    if not isinstance(content, dict):
        raise RecordError(f"{file} holds no JSON object: delete it and repeat the step.")
    return content


def share(value: Any) -> float | None:
    """A share between 0 and 1 as it is; None for what was not measured.

    Raises:
        ValueError: it is no share.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{value!r} is no share between 0 and 1")
    return float(value)
