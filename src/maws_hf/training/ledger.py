"""What a model has cost to train, stage by stage: the x axis of the paper's Figure 5."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..whole_files import write_atomically

LEDGER = "training.json"


@dataclass(frozen=True)
class Stage:
    """One training run: `flops` are operations of forward and backward passes, useful ones only."""

    name: str
    images: int
    flops: int


def read_ledger(model_name_or_path: str | None) -> list[Stage]:
    """The stages that led to a model in a local folder; none for other models, whose cost is not known here."""
    file = Path(model_name_or_path or "", LEDGER)
    if model_name_or_path is None or not file.is_file():
        return []
    try:
        return [Stage(**stage) for stage in json.loads(file.read_text(encoding="utf-8"))["stages"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a ledger of training stages ({error!r}): delete it or restore it") from error


def write_ledger(output_dir: Path, stages: Sequence[Stage]) -> None:
    """Beside the model, so that the next stage can add to it."""
    text = json.dumps({"stages": [asdict(stage) for stage in stages]}, indent=1)
    write_atomically(output_dir / LEDGER, f"{text}\n".encode())


def describe_ledger(stages: list[Stage]) -> str:
    """`mae 1.2e+15 + wsp 3.4e+15 = 4.6e+15`"""
    parts = " + ".join(f"{stage.name} {stage.flops:.3g}" for stage in stages)
    return parts if len(stages) == 1 else f"{parts} = {sum(stage.flops for stage in stages):.3g}"


__all__ = ["LEDGER", "Stage", "describe_ledger", "read_ledger", "write_ledger"]
