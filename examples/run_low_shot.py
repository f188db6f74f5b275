r"""How far do 1, 5 or 10 labelled images a class get? Linear classifiers and adapters on a frozen encoder (Table 5).

    python examples/run_low_shot.py --model_name_or_path runs/mae-wsp --dataset_name FOLDER_OR_HUB_ID \
        --train_split train --eval_split test --output_dir runs/low-shot

For each number of images, each of `--num_splits` seeded choices of them, and each method there is a cell: a classifier
trained on these images alone and scored on the test split. Every cell's result is kept in `output_dir/cells`; the same
command goes on where it was stopped. `output_dir` ends up with `results.json` and `results.png`.
"""

import hashlib
import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from maws_hf import MawsViTForImageClassification
from maws_hf.data.sources import open_stream
from maws_hf.evaluation.features import encode_images, find_label_column, model_digest
from maws_hf.evaluation.few_shot import few_shot_probe, few_shot_split, for_features_as_they_are, scores
from maws_hf.evaluation.metrics import top_k_accuracy
from maws_hf.evaluation.pixels import Pixels, read_pixels
from maws_hf.training.arguments import option, parse_recipe
from maws_hf.training.entry_point import run_script
from maws_hf.training.few_shot_adapters import RECIPES, predict, train_adapter
from maws_hf.training.labelled_images import LabelledImageOptions, build_transform
from maws_hf.visualization import plot_scaling

METHODS = ("linear", *RECIPES)

# ---------------------------------------------------------------- arguments


@dataclass(kw_only=True)
class LowShotOptions(LabelledImageOptions):
    """Encoder, labelled images, and the grid."""

    model_name_or_path: str = field(metadata={"help": "Encoder: a run, a conversion, an export, or a Hub id."})
    train_split: str = option("train", "Split to take the labelled images from.")
    eval_split: str = option("test", "Split to score on.")
    shots: list[int] = field(default_factory=lambda: [1, 5, 10], metadata={"help": "Labelled images a class."})
    num_splits: int = option(5, "Seeded choices of the labelled images.")
    methods: list[str] = field(
        default_factory=lambda: list(METHODS), metadata={"help": f"Of {', '.join(METHODS)}; all by default."}
    )
    seed: int = option(0, "Seed of the first choice; the others have the following ones.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(min(self.shots, default=0) >= 1, "shots", "numbers from 1")
        self._require(self.num_splits >= 1, "num_splits", "at least 1")
        known = bool(self.methods) and set(self.methods) <= set(METHODS)
        self._require(known, "methods", f"some of {', '.join(METHODS)}")
        self._require(self.eval_split != self.train_split, "eval_split", "another split than --train_split")


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class Task:
    """Labelled images of both splits, and the encoder's features of them."""

    train_pixels: Tensor
    train_labels: Tensor
    test_pixels: Tensor
    test_labels: Tensor
    train_features: Tensor
    test_features: Tensor
    classes: list[str]


def read_task(options: LowShotOptions, model: MawsViTForImageClassification) -> Task:
    splits = []
    for split in (options.train_split, options.eval_split):
        dataset = open_stream(
            options.dataset_name, split=split, name=options.dataset_config_name, image_column=options.image_column_name
        )
        splits.append(
            read_pixels(
                dataset,
                build_transform(options, model),
                label_column=find_label_column(dataset, options.label_column_name),
                image_column=options.image_column_name,
                batch_size=options.per_device_eval_batch_size,
                num_workers=options.dataloader_num_workers,
            )
        )
    train, test = splits
    classes = sorted(set(train.labels))
    encoded = [encode(options, model, split.pixels) for split in splits]
    return Task(
        train.pixels,
        as_indices(train, classes),
        test.pixels,
        as_indices(test, classes),
        *encoded,
        list(map(str, classes)),
    )


def as_indices(split: Pixels, classes: list[Any]) -> Tensor:
    """Raises ValueError for a label that the training split does not show, or for lists of labels."""
    index = {name: place for place, name in enumerate(classes)}
    for label in split.labels:
        if not isinstance(label, int | str) or label not in index:
            raise ValueError(f"the label {label!r} is none of the {len(classes)} classes of the training split")
    return torch.tensor([index[label] for label in split.labels])


def encode(options: LowShotOptions, model: MawsViTForImageClassification, pixels: Tensor) -> Tensor:
    parts = pixels.split(options.per_device_eval_batch_size)
    bar = tqdm(parts, desc="encoding", unit="batch", leave=False)
    return torch.cat([encode_images(model.vit, part, bf16=options.bf16).cpu() for part in bar])


# ---------------------------------------------------------------- cells


def run_cell(model: MawsViTForImageClassification, task: Task, method: str, shots: int, seed: int) -> dict[str, Any]:
    """One classifier of the grid, scored."""
    rows = few_shot_split(task.train_labels, shots, seed)
    labels = task.train_labels[rows]
    result: dict[str, Any] = {"method": method, "shots": shots, "seed": seed, "images": len(rows)}
    features = task.train_features[rows]
    probe = few_shot_probe(features, labels, len(task.classes))
    if method == "linear":
        logits = scores(probe.head, task.test_features)
        result["decay"] = probe.decay
    else:
        start = for_features_as_they_are(probe.head, features)
        adapted = train_adapter(model, start, task.train_pixels[rows], labels, RECIPES[method], seed)
        logits = predict(adapted, task.test_pixels)
        result["trained"] = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        adapted.unload()
    result["top1"] = top_k_accuracy(logits, task.test_labels)
    return result


def run_grid(options: LowShotOptions, model: MawsViTForImageClassification, task: Task) -> list[dict[str, Any]]:
    """All cells; those that an earlier call with the same settings has finished are read."""
    digest = model_digest(model.vit)
    same = json.dumps([digest, settings_of(options, task)], sort_keys=True)
    folder = Path(options.output_dir, "cells", hashlib.sha256(same.encode()).hexdigest()[:16])
    folder.mkdir(parents=True, exist_ok=True)
    grid = [
        (method, shots, options.seed + split)
        for shots in options.shots
        for method in options.methods
        for split in range(options.num_splits)
    ]
    results = []
    for method, shots, seed in tqdm(grid, unit="cell"):
        file = folder / f"{method}-{shots}-{seed}.json"
        if not file.is_file():
            write_json(run_cell(model, task, method, shots, seed), file)
            if model_digest(model.vit) != digest:
                raise RuntimeError(f"{method} has changed the encoder, which must stay frozen")
        results.append(json.loads(file.read_text(encoding="utf-8")))
    return results


def settings_of(options: LowShotOptions, task: Task) -> dict[str, Any]:
    """What a cell's result depends on, besides the encoder and the cell."""
    content = hashlib.sha256()
    for tensor in (task.train_pixels, task.train_labels, task.test_pixels, task.test_labels):
        content.update(tensor.numpy().tobytes())
    recipes = {}
    for name, recipe in RECIPES.items():
        described = {**asdict(recipe), "config": recipe.config(["classifier"]).to_dict()}
        recipes[name] = json.loads(json.dumps(described, default=sorted))  # of sets of module names
    return {"images": content.hexdigest(), "bf16": options.bf16, "recipes": recipes}


# ---------------------------------------------------------------- main


def main() -> int:
    options = parse_recipe(LowShotOptions, __doc__)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # the head is new on purpose
    model = MawsViTForImageClassification.from_pretrained(
        options.model_name_or_path, dtype=torch.float32, num_labels=2, ignore_mismatched_sizes=True
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    task = read_task(options, model)
    model.reset_classifier(task.classes)
    results = run_grid(options, model, task)
    report(options, task, results)
    return 0


def report(options: LowShotOptions, task: Task, results: list[dict[str, Any]]) -> None:
    """Mean and spread of each method, a file and a picture."""
    table: dict[str, dict[int, list[float]]] = {method: {} for method in options.methods}
    for result in results:
        table[result["method"]].setdefault(result["shots"], []).append(100 * result["top1"])
    output_dir = Path(options.output_dir)
    write_json({"options": asdict(options), "classes": task.classes, "cells": results}, output_dir / "results.json")
    plot_scaling(
        {
            f"{len(task.classes)} classes": {
                name: {float(k): v for k, v in rows.items()} for name, rows in table.items()
            }
        },
        output_dir / "results.png",
        xlabel="labelled images a class",
        ylabel="top-1 (%)",
    )
    print("\n" + "  ".join(["top-1 (%)".ljust(12), *(f"{shots} a class".rjust(14) for shots in options.shots)]))
    for method, rows in table.items():
        cells = (f"{statistics.mean(rows[k]):.1f} ± {spread(rows[k]):.1f}".rjust(14) for k in options.shots)
        print("  ".join([method.ljust(12), *cells]))
    print(
        f"\nmean ± standard deviation of {options.num_splits} choices of the labelled images; "
        f"{len(task.test_labels)} test images\n"
        f"  numbers  {output_dir / 'results.json'}\n"
        f"  curve    {output_dir / 'results.png'}"
    )


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def write_json(content: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(file)


if __name__ == "__main__":
    run_script(main)
