"""Driven by test_ranks_are_exact.py: one update of the same eight images, divided in several ways."""

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from ranks import scene
from tiny import tiny_config

from maws_hf import MawsMAEForPreTraining, MawsViTForImageClassification
from maws_hf.evaluation.classification import Classified, score_targets
from maws_hf.training.arguments import TrainingArguments
from maws_hf.training.loop import train

EXAMPLES = Path(__file__).parents[2] / "examples"
IMAGES, PATCHES, CLASSES = 8, 16, 5
TINY = {"image_size": 16, "patch_size": 4, "drop_path_rate": 0.0}


class Dealt:
    """A loader of the images of this rank; the accumulation steps follow each other."""

    def __init__(self, samples: dict[str, torch.Tensor], batch_size: int, rank: int, world_size: int):
        own = range(rank * IMAGES // world_size, (rank + 1) * IMAGES // world_size)
        self.batches = [
            {name: values[list(own)[first : first + batch_size]] for name, values in samples.items()}
            | {"keys": [str(i) for i in own[first : first + batch_size]], "skipped": []}
            for first in range(0, len(own), batch_size)
        ]
        self.dataset = SimpleNamespace(identity=dict)

    def __iter__(self) -> Iterator[dict]:
        return iter(self.batches)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def samples() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.stack([torch.randperm(CLASSES, generator=generator)[:3] for _ in range(IMAGES)])
    labels[::2, 2] = -100  # two labels or three
    labels[5, 1:] = -100
    return {
        "pixel_values": torch.randint(0, 256, (IMAGES, 3, 16, 16), dtype=torch.uint8, generator=generator),
        "noise": torch.rand(IMAGES, PATCHES, generator=generator),
        "labels": labels,
    }


def mae_loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    return model(batch["pixel_values"], noise=batch["noise"]).loss


def wsp_loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    return model(batch["pixel_values"], labels=batch["labels"], skip_logits=True).loss


def build(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "mae":
        return MawsMAEForPreTraining(tiny_config(**TINY)).double()
    return MawsViTForImageClassification(tiny_config(**TINY, num_labels=CLASSES)).double()


def update(rank: int, kind: str, batch_size: int, accumulation: int, folder: Path, unlabelled: int) -> dict[str, Any]:
    """The loss and the gradients of the update, from which each rank's optimizer would go."""
    accelerator = Accelerator(cpu=True)
    recipe = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.0,
        weight_decay=0.0,
        logging_steps=1,
    )
    folder.mkdir(parents=True, exist_ok=True)
    images = samples()
    images["labels"][:unlabelled] = -100
    loader = Dealt(images, batch_size, rank, accelerator.num_processes)
    found: dict[str, list[float]] = {}
    step = torch.optim.AdamW.step

    def note(optimizer: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        for group in optimizer.param_groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                found[name] = parameter.grad.flatten().tolist()
        return step(optimizer, *args, **kwargs)

    torch.optim.AdamW.step = note
    train(build(kind), mae_loss if kind == "mae" else wsp_loss, loader, recipe, accelerator)
    torch.optim.AdamW.step = step
    metrics = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {"gradients": found, "loss": metrics["loss"], "grad_norm": metrics["grad_norm"]}


def gathered(rank: int, multi_label: bool, owners: list[int]) -> dict[str, Any]:
    """Scores of images that are dealt to `owners`, as fine-tuning brings them together, and how much at once."""
    script = runpy.run_path(str(EXAMPLES / "run_finetune.py"))
    sent: list[int] = []

    def note(tensor: torch.Tensor, from_process: int) -> torch.Tensor:
        sent.append(tensor.nbytes)
        return broadcast(tensor, from_process)

    script["gather_rows"].__globals__.update(BYTES_AT_ONCE=60, broadcast=note)
    scores, targets = classified(multi_label, len(owners))
    own = torch.tensor(owners) == rank
    with torch.inference_mode():
        found = Classified(scores[own], targets[own], skipped=rank + 1)
    return {"results": script["score_parts"](found, multi_label, Accelerator(cpu=True)), "sent": sent}


def classified(multi_label: bool, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of seven classes, some of them equal, and which of them are right."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 9, (images, 7), generator=generator) / 3
    labels = torch.randint(0, 7, (images,), generator=generator)
    targets = torch.nn.functional.one_hot(labels, 7).bool()
    return scores, targets | (torch.rand(images, 7, generator=generator) < 0.3) if multi_label else targets


def main(folder: str) -> None:
    root, results = Path(folder), {}
    for multi_label in (False, True):
        for name, owners in (("uneven", [0] * 5 + [2] * 16), ("last only", [1] * 9), ("alone", [0] * 9)):
            title, ranks = f"gathered {name} {multi_label}", max(owners) + 1
            found = scene(ranks, gathered, root / "answers" / title, multi_label, owners)
            expected = score_targets(*classified(multi_label, len(owners)), multi_label)
            results[title] = {"found": found, "expected": {**expected, "images": len(owners)}}
    divisions = {"1 x 8": (1, 8, 1), "1 x 2 x 4": (1, 4, 2), "2 x 4": (2, 4, 1), "2 x 2 x 2": (2, 2, 2)}
    for kind, unlabelled in (("mae", 0), ("wsp", 0), ("wsp", 3)):
        for name, (world_size, batch_size, accumulation) in divisions.items():
            title = f"{kind} {name}" + (" unlabelled" if unlabelled else "")
            options = (kind, batch_size, accumulation, root / title, unlabelled)
            results[title] = scene(world_size, update, root / "answers" / title, *options)
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
