r"""How far do 1, 5 or 10 labelled images a class get? Linear classifiers and adapters on a frozen encoder (Table 5).

    python examples/run_low_shot.py --model_name_or_path runs/mae-wsp --dataset_name FOLDER_OR_HUB_ID \
        --train_split train --eval_split test --output_dir runs/low-shot

For each number of images, each of `--num_splits` seeded choices of them, and each method there is a cell: a classifier
trained on these images alone and scored on the test split. Weight decays and learning rates are chosen by
cross-validation over the labelled images of the cell; test images choose nothing. Every cell's result is kept in
`output_dir/cells`, with what was chosen; the same command goes on where it was stopped. `output_dir` ends up with
`results.json` and `results.png`. The test images and a group of splits' labelled ones, as tokens, stay in memory.
"""

import hashlib
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, IterableDataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from maws_hf import MawsViTModel
from maws_hf.data.targets import UNLABELLED
from maws_hf.evaluation.feature_cache import CacheError, digest_of, load_entry, save_entry
from maws_hf.evaluation.features import encode_images, find_label_column, model_digest
from maws_hf.evaluation.few_shot import DECAYS, FewShotProbe, few_shot_probe, few_shot_split, scores
from maws_hf.evaluation.metrics import top_k_accuracy
from maws_hf.evaluation.pixels import Pixels, read_labels, read_pixels
from maws_hf.models.loading import refuse_adapter
from maws_hf.training.arguments import option, parse_recipe
from maws_hf.training.entry_point import run_script
from maws_hf.training.few_shot_adapters import RECIPES, long_enough, predict
from maws_hf.training.few_shot_selection import FOLDS, Adapted, Choice, adapt, choices_at_once
from maws_hf.training.frozen_prefix import AdaptedTail, TokensBefore, adapted_tail, first_weights
from maws_hf.training.labelled_images import LabelledImageOptions, build_transform
from maws_hf.training.records import make_output_dir, write_json
from maws_hf.training.seeding import seed_for
from maws_hf.visualization import plot_scaling

METHODS = ("linear", *RECIPES)

# ---------------------------------------------------------------- arguments


@dataclass(kw_only=True)
class LowShotOptions(LabelledImageOptions):
    """Encoder, labelled images, and the grid."""

    model_name_or_path: str = field(metadata={"help": "Encoder: a run, a conversion, an export, or a Hub id."})
    train_split: str = option("train", "Split to take the labelled images from.")
    eval_split: str = option("test", "Split to score on.")
    shots: list[int] = field(
        default_factory=lambda: [1, 5, 10], metadata={"help": "Labelled images a class; of one with fewer all."}
    )
    num_splits: int = option(5, "Seeded choices of the labelled images.")
    methods: list[str] = field(
        default_factory=lambda: list(METHODS), metadata={"help": f"Of {', '.join(METHODS)}; all by default."}
    )
    seed: int = option(0, "Seed of the first choice; the others have the following ones.")

    def __post_init__(self) -> None:
        super().__post_init__()
        different = len(set(self.shots)) == len(self.shots)
        self._require(different and min(self.shots, default=0) >= 1, "shots", "numbers from 1, each once")
        self._require(self.num_splits >= 1, "num_splits", "at least 1")
        known = bool(self.methods) and set(self.methods) <= set(METHODS)
        different = len(set(self.methods)) == len(self.methods)
        self._require(known and different, "methods", f"some of {', '.join(METHODS)}, each once")
        self._require(self.eval_split != self.train_split, "eval_split", "another split than --train_split")
        self._require(self.seed >= 0, "seed", "0 or more")


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class Task:
    """The images of the test split and those of the training split that any cell learns from, with their features."""

    train_pixels: Tensor
    train_labels: Tensor
    test_pixels: Tensor
    test_labels: Tensor
    train_features: Tensor
    test_features: Tensor
    classes: list[str]
    splits: dict[tuple[int, int], Tensor]  # by shots and seed: which of the training images are labelled
    skipped: dict[str, list[dict[str, str]]]  # of training and test images those that cannot be decoded, and why


def read_task(options: LowShotOptions, model: MawsViTModel) -> Task:
    """Reads all labels, but decodes and encodes only the images that are needed."""
    transform = build_transform(options, model)
    train, test = options.open(options.train_split), options.open(options.eval_split)
    column = find_label_column(train, options.label_column_name)
    names, test_names = (
        named(read_labels(split, label_column=column, image_column=options.image_column_name), split, column)
        for split in (train, test)
    )
    if set(test_names) == {None}:
        raise ValueError(f"no image of the split {options.eval_split} has a label in {column}: choose a labelled one")
    classes = classes_of(options, train, column, names, test_names)
    index = {name: number for number, name in enumerate(classes)}
    labelled = [row for row, name in enumerate(names) if name is not None]
    labels = torch.tensor([index[names[row]] for row in labelled])
    read = partial(
        read_pixels,
        transform=transform,
        label_column=column,
        image_column=options.image_column_name,
        batch_size=options.per_device_eval_batch_size,
    )

    def read_few(wanted: list[int]) -> Pixels:
        return read(train, split=options.train_split, only=[labelled[row] for row in wanted])

    chosen, images, damaged = draw_images(options, labels, read_few)
    left = torch.ones(len(labels), dtype=torch.bool)
    left[list(damaged)] = False
    counts = labels[left].bincount(minlength=len(classes)).tolist()
    if 0 in counts:
        record = next(record for row, record in damaged.items() if labels[row] == counts.index(0))
        raise ValueError(
            f"no image of the class {classes[counts.index(0)]!r} in the split {options.train_split} can be decoded "
            f"({record['key']}: {record['reason']}): repair one, or move the class out of the data set"
        )
    fewer = sum(1 for count in counts if count < max(options.shots))
    if fewer:
        print(f"{fewer} of {len(classes)} classes have fewer than {max(options.shots)} images: of these all are taken")
    rows = torch.cat(list(chosen.values())).unique()
    train_pixels = torch.stack([images[row] for row in rows.tolist()])
    splits = {cell: torch.searchsorted(rows, split) for cell, split in chosen.items()}
    all_test = read(test, split=options.eval_split, num_workers=options.dataloader_num_workers, may_lack_labels=True)
    skipped = {"train": [damaged[row] for row in sorted(damaged)], "test": all_test.skipped}
    tell_skipped(options.train_split, skipped["train"])
    tell_skipped(options.eval_split, skipped["test"])
    test_names = [test_names[place] for place in all_test.places]
    kept = [row for row, name in enumerate(test_names) if name is not None]
    test_pixels = all_test.pixels[kept]
    return Task(
        train_pixels,
        labels[rows],
        test_pixels,
        torch.tensor([index[test_names[row]] for row in kept]),
        encode(options, model, train_pixels),
        encode(options, model, test_pixels),
        list(map(str, classes)),
        splits,
        skipped,
    )


def classes_of(
    options: LowShotOptions,
    train: IterableDataset,
    column: str,
    names: list[int | str | None],
    test_names: list[int | str | None],
) -> list[int | str]:
    """Those that the training split has images of, in the order of its features or of the alphabet.

    Raises:
        ValueError: it has fewer than two, or the test split has others.
    """
    kind, found = train.features[column], set(names) - {None}
    classes = [name for name in kind.names if name in found] if isinstance(kind, ClassLabel) else sorted(found)
    if len(classes) < 2:
        raise ValueError(f"the split {options.train_split} has labels of {len(classes)} class: two are the least")
    if unknown := set(test_names) - {None, *classes}:
        raise ValueError(
            f"the class {min(unknown, key=str)!r} of the split {options.eval_split} is none of the {len(classes)} of "
            f"the split {options.train_split}"
        )
    return classes


def tell_skipped(split: str, records: list[dict[str, str]]) -> None:
    if records:
        first = ", ".join(f"{record['key']} ({record['reason']})" for record in records[:3])
        more = ", ..." if len(records) > 3 else ""
        print(f"{split}: {len(records)} bad images skipped: {first}{more}")


def draw_images(
    options: LowShotOptions, labels: Tensor, read: Callable[[list[int]], Pixels]
) -> tuple[dict[tuple[int, int], Tensor], dict[int, Tensor], dict[int, dict[str, str]]]:
    """Rows by shots and seed, the images of these rows, and those that cannot be decoded, which others stand in for.

    Args:
        labels: of the rows to draw from.
        read: gives the images of these rows, ascending.
    """
    seeds = range(options.seed, options.seed + options.num_splits)
    images: dict[int, Tensor] = {}
    damaged: dict[int, dict[str, str]] = {}
    for attempt in itertools.count():
        chosen = {
            (shots, seed): few_shot_split(labels, shots, seed, damaged) for shots in options.shots for seed in seeds
        }
        missing = [row for row in torch.cat(list(chosen.values())).unique().tolist() if row not in images]
        if not missing:
            return chosen, images, damaged
        # Each time all files are gone through. Of the classes that lack images twice as many are tried, so that a
        # class of damaged ones ends soon.
        shots = max(options.shots) * 2**attempt
        drawn = torch.cat([few_shot_split(labels, shots, seed, damaged) for seed in seeds]).unique()
        drawn = drawn[torch.isin(labels[drawn], labels[missing])]
        wanted = [row for row in drawn.tolist() if row not in images]
        found = read(wanted)
        decoded = [wanted[place] for place in found.places]
        images |= zip(decoded, found.pixels, strict=True)
        damaged |= zip(sorted(set(wanted) - set(decoded)), found.skipped, strict=True)


def named(labels: list[Any], dataset: IterableDataset, column: str) -> list[int | str | None]:
    """Names of the classes where the column says them, for splits may number them otherwise; None without a label.

    Raises:
        ValueError: an image has a list of labels.
    """
    if wrong := [label for label in labels if isinstance(label, list)]:
        raise ValueError(f"the label {wrong[0]} in {column} is a list: one class an image is wanted")
    kind = dataset.features[column]
    names = kind.names if isinstance(kind, ClassLabel) else None
    return [None if label in UNLABELLED else label if names is None else names[int(label)] for label in labels]


def encode(options: LowShotOptions, model: MawsViTModel, pixels: Tensor) -> Tensor:
    """Features, computed or as an earlier call left them in the cache."""
    found = {"encoder": model_digest(model), "pixels": bytes_digest(pixels), "bf16": options.bf16}
    entry = Path(options.feature_cache or Path(options.output_dir, "features"), digest_of(found))
    try:
        cached = load_entry(entry)
    except CacheError as error:
        print(f"{error}; computing the features again")
        cached = None
    if cached is not None:
        return cached[0]
    bar = tqdm(pixels.split(options.per_device_eval_batch_size), desc="encoding", unit="batch", leave=False)
    features = torch.cat([encode_images(model, part, bf16=options.bf16).cpu() for part in bar])
    save_entry(entry, features, found)
    return features


def bytes_digest(*tensors: Tensor) -> str:
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


# ---------------------------------------------------------------- cells


class Grid:
    """All cells, each trained and scored once; those that an earlier call with the same settings finished are read."""

    def __init__(self, options: LowShotOptions, model: MawsViTModel, task: Task):
        self.options, self.model, self.task = options, model, task
        self.digest = model_digest(model)
        same = digest_of([self.digest, settings_of(options, model, task)])
        self.folder = Path(options.output_dir, "cells", same[:16])
        self.seeds = [options.seed + split for split in range(options.num_splits)]
        self.splits = task.splits
        self.probes: dict[tuple[int, int], FewShotProbe] = {}

    def run(self) -> list[dict[str, Any]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with tqdm(total=len(self.options.methods) * len(self.splits), unit="cell") as bar:
            for method in self.options.methods:
                for _ in self.linear() if method == "linear" else self.adapters(method):
                    bar.update()
                if model_digest(self.model) != self.digest:
                    raise RuntimeError(f"{method} has changed the encoder, which must stay frozen")
        files = [self.file(method, *split) for method in self.options.methods for split in self.splits]
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def linear(self) -> Iterator[int]:
        """The seed of each cell that is done."""
        for split in self.splits:
            if not self.file("linear", *split).is_file():
                probe = self.probe(*split)
                chosen = {"decay": probe.decay, "validation": probe.validation}
                self.write("linear", *split, chosen, scores(probe.head, self.task.test_features))
            yield split[1]

    def adapters(self, method: str) -> Iterator[int]:
        """The seed of each cell that is done.

        Choices are trained in groups, as many as fit one batch. What is left of a group is computed with all of it, so
        that a run that was stopped ends up with the same numbers.
        """
        config = RECIPES[method].config(len(self.model.layers))
        starts = {seed: first_weights(self.model, config, seed_for("weights", seed)) for seed in self.seeds}
        with adapted_tail(self.model, config) as tail:
            test = TokensBefore(self.model, tail.first, self.task.test_pixels, self.options.per_device_eval_batch_size)
            at_once = choices_at_once(tail, self.tokens(tail, torch.arange(1)), RECIPES[method])
            groups = [self.seeds[start : start + at_once] for start in range(0, len(self.seeds), at_once)]
            for shots, seeds in itertools.product(self.options.shots, groups):
                recipe = long_enough(RECIPES[method], max(len(self.splits[shots, seed]) for seed in self.seeds))
                missing = [seed for seed in seeds if not self.file(method, shots, seed).is_file()]
                if missing:
                    rows = torch.cat([self.splits[shots, seed] for seed in seeds]).unique()
                    choices = [
                        Choice(
                            torch.searchsorted(rows, self.splits[shots, seed]),
                            self.probe(shots, seed).decay,
                            starts[seed],
                            seed,
                        )
                        for seed in seeds
                    ]
                    tokens, labels = self.tokens(tail, rows), self.task.train_labels[rows]
                    found = adapt(tail, tokens, labels, len(self.task.classes), choices, recipe)
                    logits = predict(tail, [adapted.weights for adapted in found], test)
                    for seed in missing:
                        place = seeds.index(seed)
                        self.write(method, shots, seed, chosen_by(found[place]), logits[place])
                yield from seeds

    def tokens(self, tail: AdaptedTail, rows: Tensor) -> Tensor:
        """What the tail reads of these training images and of their mirror images."""
        images = self.task.train_pixels[rows]
        pairs = [TokensBefore(self.model, tail.first, pixels).all() for pixels in (images, images.flip(-1))]
        return torch.stack(pairs, dim=1)

    def probe(self, shots: int, seed: int) -> FewShotProbe:
        """The linear classifier of these images: a cell of its own, and where the adapters' heads begin."""
        if (shots, seed) not in self.probes:
            rows = self.splits[shots, seed]
            features, labels = self.task.train_features[rows], self.task.train_labels[rows]
            self.probes[shots, seed] = few_shot_probe(features, labels, len(self.task.classes))
        return self.probes[shots, seed]

    def file(self, method: str, shots: int, seed: int) -> Path:
        return self.folder / f"{method}-{shots}-{seed}.json"

    def write(self, method: str, shots: int, seed: int, chosen: dict[str, Any], logits: Tensor) -> None:
        result = {
            "method": method,
            "shots": shots,
            "seed": seed,
            "images": len(self.splits[shots, seed]),
            **chosen,
            "top1": top_k_accuracy(logits, self.task.test_labels),
        }
        write_json(result, self.file(method, shots, seed))


def chosen_by(adapted: Adapted) -> dict[str, Any]:
    return {
        "learning_rate": adapted.learning_rate,
        "validation": adapted.validation,
        "trained": sum(weight.numel() for weight in adapted.weights.values()),
    }


def settings_of(options: LowShotOptions, model: MawsViTModel, task: Task) -> dict[str, Any]:
    """What a cell's result depends on, besides the encoder and the cell."""
    images = bytes_digest(task.train_pixels, task.train_labels, task.test_pixels, task.test_labels)
    recipes = {}
    for name, recipe in RECIPES.items():
        described = {**asdict(recipe), "config": recipe.config(len(model.layers)).to_dict()}
        recipes[name] = json.loads(json.dumps(described, default=sorted))  # of sets of module names
    settings = {"images": images, "bf16": options.bf16, "recipes": recipes, "folds": FOLDS, "decays": DECAYS}
    return settings | ({"skipped": task.skipped["train"]} if task.skipped["train"] else {})


# ---------------------------------------------------------------- main


def main() -> int:
    options = parse_recipe(LowShotOptions, __doc__)
    make_output_dir(options.output_dir)
    logging.disable_progress_bar()
    refuse_adapter(options.model_name_or_path)
    model = MawsViTModel.from_pretrained(options.model_name_or_path, dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    task = read_task(options, model)
    report(options, task, Grid(options, model, task).run())
    return 0


def report(options: LowShotOptions, task: Task, results: list[dict[str, Any]]) -> None:
    """Mean and spread of each method, a file and a picture."""
    table: dict[str, dict[int, list[float]]] = {method: {} for method in options.methods}
    for result in results:
        table[result["method"]].setdefault(result["shots"], []).append(100 * result["top1"])
    output_dir = Path(options.output_dir)
    content = {"options": asdict(options), "classes": task.classes, "skipped": task.skipped, "cells": results}
    write_json(content, output_dir / "results.json")
    plot_scaling(
        {
            f"{len(task.classes)} classes": {
                name: {float(k): v for k, v in rows.items()} for name, rows in table.items()
            }
        },
        output_dir / "results.png",
        xlabel="labelled images a class",
        ylabel="top-1 (%)",
        highest=100,
    )
    print("\n" + "  ".join(["top-1 (%)".ljust(12), *(f"{shots} a class".rjust(14) for shots in options.shots)]))
    for method, rows in table.items():
        print("  ".join([method.ljust(12), *(mean_and_spread(rows[k]).rjust(14) for k in options.shots)]))
    if "linear" in table and len(table) > 1:
        print("\nmore than linear, with the same images")
    for method, rows in table.items() if "linear" in table else ():
        more = [[a - b for a, b in zip(rows[k], table["linear"][k], strict=True)] for k in options.shots]
        if method != "linear":
            print("  ".join([method.ljust(12), *(mean_and_spread(values, sign="+").rjust(14) for values in more)]))
    spread = f"mean ± standard deviation of {options.num_splits} choices" if options.num_splits > 1 else "one choice"
    print(
        f"\n{spread} of the labelled images; {len(task.test_labels)} test images\n"
        f"  numbers  {output_dir / 'results.json'}\n"
        f"  curve    {output_dir / 'results.png'}"
    )


def mean_and_spread(values: list[float], sign: str = "") -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{spread}"


if __name__ == "__main__":
    run_script(main)
