r"""Zero-shot classification (paper section 4): which name of a class is an image most like? In any language.

    python examples/run_zero_shot.py --model_name_or_path runs/lit openai/clip-vit-base-patch32 \
        --dataset_name FOLDER_OR_HUB_ID --eval_split test --prompts imagenet --output_dir runs/zero_shot

`--prompts` is one or several of: labels (names of the classes or labels that are texts, in three short templates of
ours), imagenet, food101 (CLIP's), a JSON file of yours (see `maws_hf.data.prompts`), captions (names from a column of
captions, in every one of `--languages`).

An image may be taken for any class of a ClassLabel column; of other columns, for any label that occurs in the split.
Labels without a caption in the language asked are no candidates, and their images are left out and counted.

`output_dir` ends up with `results.json`, `per_class.csv` and pictures of accuracies and examples. Image features stay
in `output_dir/features`. All models see the same pixels: shortest side resized, centre cropped. Pictures name classes
in the language asked where DejaVu has the letters, else in English or by label.
"""

import csv
import io
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Value
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from maws_hf.data.prompts import (
    Captions,
    Prompts,
    PromptsError,
    load_prompts,
    prompts_from_captions,
    prompts_from_names,
    read_captions,
)
from maws_hf.data.samples import prepare_image, random_rows
from maws_hf.data.sources import DataSourceError, find_image_column
from maws_hf.evaluation.features import Features, encode_images, find_label_column
from maws_hf.evaluation.two_towers import load_two_towers, pixel_statistics
from maws_hf.evaluation.zero_shot import class_embeddings, zero_shot_accuracy, zero_shot_scores
from maws_hf.processing.decode import ImageDecodeError
from maws_hf.training.arguments import option, parse_recipe
from maws_hf.training.entry_point import run_script
from maws_hf.training.labelled_images import LabelledImageOptions, build_transform, read_features
from maws_hf.training.records import make_output_dir
from maws_hf.visualization import dejavu, drawable, plot_extremes, prediction_grid, save_picture
from maws_hf.whole_files import write_atomically

EXAMPLES = 24  # pictures in a grid

# ---------------------------------------------------------------- arguments


@dataclass(kw_only=True)
class ZeroShotOptions(LabelledImageOptions):
    """Two-tower models, labelled images and the words for their classes."""

    model_name_or_path: list[str] = field(
        metadata={"help": "Two-tower models with their tokenizers: folders, or ids on the Hub (CLIP, SigLIP, ours)."}
    )
    eval_split: list[str] = field(default_factory=lambda: ["test"], metadata={"help": "Splits to score on."})
    prompts: list[str] = field(
        default_factory=lambda: ["labels"],
        metadata={"help": "Words for the classes: labels, imagenet, food101, captions or JSON files."},
    )
    languages: list[str] | None = field(
        default=None, metadata={"help": "Languages of the captions that serve as names; en if unset."}
    )
    caption_column_name: str = option("captions", "Column of the captions, lists of {language, text}.")
    per_device_text_batch_size: int = option(256, "Prompts a forward pass.")
    seed: int = option(0, "Decides which images are shown as examples.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("model_name_or_path", "eval_split", "prompts"):
            values = getattr(self, name)
            self._require(len(set(values)) == len(values) > 0, name, "one or several, each once")
        stems = {Path(name).stem for name in self.prompts}  # they name pictures
        self._require(len(stems) == len(self.prompts), "prompts", "of files with different names")
        with_captions = "captions" in self.prompts
        self._require(with_captions or self.languages is None, "languages", "left out without --prompts captions")
        self._require(self.languages is None or len(self.languages) > 0, "languages", "one or several")
        self._require(self.per_device_text_batch_size >= 1, "per_device_text_batch_size", "at least 1")
        self._require(self.seed >= 0, "seed", "0 or more")


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class Split:
    """A split, what there is to read in it, and rows of it to show as examples, the same for every model."""

    name: str
    image_column: str
    label_column: str
    class_names: list[str] | None
    captions: Captions
    examples: list[dict[str, Any]]

    @property
    def english(self) -> dict[int | str, str]:
        """Names for pictures that cannot show others."""
        captions = {label: names["en"][0] for label, names in self.captions.items() if names.get("en")}
        return dict(enumerate(self.class_names or [])) | captions


def open_split(options: ZeroShotOptions, split: str) -> Split:
    dataset = options.open(split)
    label_column = find_label_column(dataset, options.label_column_name)
    kind = dataset.features[label_column]
    if not isinstance(kind, ClassLabel | Value):
        raise DataSourceError(f"{label_column} holds lists of labels: zero-shot needs one label an image")
    names = list(kind.names) if isinstance(kind, ClassLabel) else None
    if names is None and "int" in kind.dtype and "labels" in options.prompts:
        raise DataSourceError(f"the labels in {label_column} have no names: give --prompts")
    image_column = find_image_column(dataset, options.image_column_name)
    captions = {}
    if "captions" in options.prompts:
        captions = read_captions(dataset, label_column=label_column, caption_column=options.caption_column_name)
    shown = dataset.select_columns(list(dict.fromkeys([image_column, label_column])))
    examples = random_rows(shown, EXAMPLES, seed=options.seed, among=20 * EXAMPLES)
    return Split(split, image_column, label_column, names, captions, examples)


def read_labelled(options: ZeroShotOptions, name: str, model: PreTrainedModel, split: Split) -> Features:
    features = read_features(options, name, model, split.name)
    classes = set(features.classes())
    for key, label in zip(features.keys, features.labels, strict=True):
        if label not in classes:
            raise ValueError(f"{key}: its label {label} in {split.label_column} is no class: choose a labelled split")
    return features


@dataclass(frozen=True)
class Examples:
    """B images to look at as a model sees them: pixels `(B, 3, H, W)`, features `(B, D)` and labels."""

    images: Tensor
    features: Tensor
    labels: list[int | str]


def read_examples(options: ZeroShotOptions, name: str, model: PreTrainedModel, split: Split) -> Examples:
    transform, rng = build_transform(options, model), np.random.default_rng(0)  # of which evaluation draws nothing
    images, labels = [], []
    for row in split.examples:
        try:
            sample = prepare_image(
                row, rng, image_column=split.image_column, transform=lambda image, _: transform(image)
            )
        except ImageDecodeError:
            continue  # counted among the skipped
        images.append(sample["pixel_values"])
        labels.append(row[split.label_column])
    if not images:
        return Examples(torch.empty(0), torch.empty(0), [])
    features = encode_images(model, torch.stack(images), bf16=options.bf16, **pixel_statistics(name, model))
    return Examples(torch.stack(images), features.cpu(), labels)


# ---------------------------------------------------------------- words


def wordings(options: ZeroShotOptions, split: Split, candidates: Sequence[int | str]) -> list[tuple[str, Prompts]]:
    """Every way of asking: its name as it was typed, and prompts with the candidates' labels.

    Raises:
        PromptsError: prompts do not cover the labels, or no caption is in a language.
    """
    found = []
    for name in options.prompts:
        if name == "captions":
            captions = {label: split.captions[label] for label in candidates if label in split.captions}
            found += [(name, prompts_from_captions(captions, language)) for language in options.languages or ["en"]]
            continue
        try:
            if name == "labels" and split.class_names is None:  # labels that are texts are names themselves
                found.append((name, replace(prompts_from_names(candidates), labels=tuple(candidates))))
                continue
            prompts = prompts_from_names(split.class_names) if name == "labels" else load_prompts(name)
            found.append((name, prompts.select(candidates, split.class_names)))
        except PromptsError as error:
            raise PromptsError(
                f"--prompts {name} does not fit {split.label_column} in {split.name}: {error}"
            ) from error
    return found


# ---------------------------------------------------------------- evaluation


def evaluate(options: ZeroShotOptions, name: str, splits: list[Split]) -> Iterator[dict[str, Any]]:
    """The results of one model: for every split and every wording."""
    model, tokenizer = load_two_towers(name)
    for split in splits:
        features = read_labelled(options, name, model, split)
        examples = read_examples(options, name, model, split)
        for source, prompts in wordings(options, split, features.classes()):
            start = time.perf_counter()
            classes = class_embeddings(
                model, tokenizer, prompts, batch_size=options.per_device_text_batch_size, bf16=options.bf16
            )
            seconds = time.perf_counter() - start
            print(f"{name}, {split.name}: {len(prompts)} classes in {prompts.language} embedded in {seconds:.1f} s")
            names = prompts.unique_names(split.class_names)
            shown = names_to_show(prompts, names, split.english)
            result = score(name, split, features, prompts, source, classes, names)
            yield result | draw(options, result, prompts, classes, examples, shown)


def score(
    model: str, split: Split, features: Features, prompts: Prompts, source: str, classes: Tensor, names: list[str]
) -> dict[str, Any]:
    place = {label: number for number, label in enumerate(prompts.labels)}
    rows = [row for row, label in enumerate(features.labels) if label in place]
    labels = torch.tensor([place[features.labels[row]] for row in rows])
    accuracy = zero_shot_accuracy(features.features[rows], classes, labels)
    return {
        "model": model,
        "split": split.name,
        "prompts": source,
        "language": prompts.language,
        "classes": len(prompts),
        "images": len(rows),
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "mean_per_class": accuracy.mean_per_class,
        "chance": 1 / len(prompts),
        "left_out": {"classes": len(features.classes()) - len(prompts), "images": len(features.labels) - len(rows)},
        "skipped": features.skipped,
        "features": features.digest,
        "per_class": accuracy.per_class(names),
    }


# ---------------------------------------------------------------- pictures


def draw(
    options: ZeroShotOptions,
    result: dict[str, Any],
    prompts: Prompts,
    classes: Tensor,
    examples: Examples,
    shown: list[str],
) -> dict[str, str | None]:
    """Bars of the classes and a grid of examples: their names in `output_dir`, None if there is no example.

    Args:
        shown: what each class is called in pictures.
    """
    model = f"{options.model_name_or_path.index(result['model'])}-{Path(result['model']).name}"
    parts = (model, result["split"], Path(result["prompts"]).stem, result["language"])
    suffix = "-".join(re.sub(r"[^\w.-]+", "_", part) for part in parts)
    bars, grid = f"per_class-{suffix}.png", f"examples-{suffix}.png"
    shares = [values["top1"] for values in result["per_class"].values()]
    scores = [(name, 100 * share) for name, share in zip(shown, shares, strict=True) if share is not None]
    plot_extremes(
        scores, Path(options.output_dir, bars), label="top-1", xlabel=f"% of a class's images in {result['split']}"
    )
    rows = [row for row, label in enumerate(examples.labels) if label in set(prompts.labels)]
    if not rows:
        return {"examples": None, "bars": bars}
    likeliest = zero_shot_scores(examples.features[rows], classes).topk(min(3, len(prompts))).indices.tolist()
    captions = [
        [(shown[place], prompts.labels[place] == examples.labels[row]) for place in places]
        for row, places in zip(rows, likeliest, strict=True)
    ]
    picture = prediction_grid(examples.images[rows], captions, tile=150, font=dejavu())
    save_picture(lambda path: picture.save(path, format="PNG"), Path(options.output_dir, grid))
    return {"examples": grid, "bars": bars}


def names_to_show(prompts: Prompts, names: list[str], english: dict[int | str, str]) -> list[str]:
    """Names whose letters the pictures' font has: as they are, in English, or by label."""
    ways = [(name, english.get(label, ""), str(label)) for name, label in zip(names, prompts.labels, strict=True)]
    return [drawable(*texts) or f"class {place}" for place, texts in enumerate(ways)]


# ---------------------------------------------------------------- main


def main() -> int:
    options = parse_recipe(ZeroShotOptions, __doc__)
    output_dir = make_output_dir(options.output_dir)
    logging.disable_progress_bar()  # one bar is enough
    logging.set_verbosity_error()  # of weights, load_two_towers says what matters
    for name in options.prompts:
        if name not in ("labels", "captions"):
            load_prompts(name)  # a mistake in a file should show before the first model has run
    splits = [open_split(options, split) for split in options.eval_split]
    results: list[dict[str, Any]] = []
    for name in options.model_name_or_path:
        results += evaluate(options, name, splits)
        write_results(options, results, output_dir)
    report(results, output_dir)
    return 0


def write_results(options: ZeroShotOptions, results: list[dict[str, Any]], output_dir: Path) -> None:
    packages = ("maws_hf", "torch", "transformers", "tokenizers", "datasets", "numpy", "pillow")
    content = {
        "options": asdict(options),
        "versions": {package: version(package) for package in packages},
        "results": results,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(output_dir / "results.json", f"{text}\n".encode())
    write_atomically(output_dir / "per_class.csv", as_csv(results).encode())


def as_csv(results: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["model", "split", "prompts", "language", "class", "images", "top1"])
    for result in results:
        key = [result[name] for name in ("model", "split", "prompts", "language")]
        table.writerows([*key, name, values["images"], values["top1"]] for name, values in result["per_class"].items())
    return text.getvalue()


def report(results: list[dict[str, Any]], output_dir: Path) -> None:
    names = ("model", "split", "prompts", "language")
    widths = [max(len(name), *(len(result[name]) for result in results)) for name in names]
    columns = ("classes", "images", "top-1", "top-5", "mean per class", "chance")
    print()
    print("  ".join([*(name.ljust(width) for name, width in zip(names, widths, strict=True)), *columns]))
    for result in results:
        texts = [result[name].ljust(width) for name, width in zip(names, widths, strict=True)]
        values = [result[name] for name in ("top1", "top5", "mean_per_class", "chance")]
        shares = ["-" if value is None else f"{100 * value:.2f}" for value in values]
        numbers = [str(result["classes"]), str(result["images"]), *shares]
        print("  ".join([*texts, *(number.rjust(len(name)) for number, name in zip(numbers, columns, strict=True))]))
    print()
    for result in results:
        if left_out := result["left_out"]["classes"]:
            print(
                f"{result['split']}: for want of a caption in {result['language']}, {left_out} of "
                f"{left_out + result['classes']} classes and {'its' if left_out == 1 else 'their'} images "
                f"({result['left_out']['images']}) are left out"
            )
    print(
        "% of images; candidates are the classes of a ClassLabel column, or the labels that occur in the split\n"
        f"  numbers and settings  {output_dir / 'results.json'}\n"
        f"  every class           {output_dir / 'per_class.csv'}\n"
        f"  pictures              {output_dir / 'per_class-*.png'}, {output_dir / 'examples-*.png'}"
    )


if __name__ == "__main__":
    run_script(main)
