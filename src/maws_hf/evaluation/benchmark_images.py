"""The images of a test set with the class that each is of, and what a classifier says about them."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, IterableDataset, Value
from torch import Tensor

from ..data.sources import DataSourceError, find_image_column, list_files, open_stream
from .features import find_label_column
from .label_maps import (
    IMAGENET_CLASSES,
    LabelMapError,
    class_number,
    class_numbers,
    imagenet_classes,
    object_folder,
)
from .robustness import Benchmark
from .rows import Row, Transform, read_rows

Label = int | str
_FOLDER = "folder"  # the column of labels that paths tell


@dataclass(frozen=True)
class BenchmarkLabels:
    """`labels(label)` is what `Benchmark.score` wants of a label as it was read: None for objects not in ImageNet.

    Attributes:
        benchmark: the test set.
        names: of a ClassLabel column, what its integers stand for; None for other columns.
    """

    benchmark: Benchmark
    names: tuple[int | None, ...] | None = None

    @classmethod
    def of(cls, benchmark: Benchmark, names: Sequence[str] | None) -> "BenchmarkLabels":
        """Raises LabelMapError for names that are no classes, before an image is read."""
        if names is None or benchmark.folders is None:
            return cls(benchmark, None if names is None else tuple(class_numbers(names)))
        return cls(benchmark, tuple(map(cls(benchmark), names)))

    def __call__(self, label: Label) -> int | None:
        """Raises LabelMapError for a label that is no class of the test set."""
        if not isinstance(label, int | str):
            raise LabelMapError(f"the label {label!r} is not a single class")
        folders = self.benchmark.folders
        if self.names is not None:
            if not 0 <= int(label) < len(self.names):
                raise LabelMapError(f"the label {label} is none of {len(self.names)} classes: the split has no labels")
            number = self.names[int(label)]
        elif folders is not None:
            folder = object_folder(label)
            number = folders.index(folder) if folder in folders else None
        else:
            number = class_number(label)
        if folders is None and (number,) not in self.benchmark.groups:
            raise LabelMapError(
                f"class {number} of ImageNet, {list(imagenet_classes())[number]}, is none of the "
                f"{len(self.benchmark.groups)} of {self.benchmark.title}"
            )
        return number


@dataclass(frozen=True)
class BenchmarkImages:
    """A test set, opened.

    Attributes:
        dataset: with an image and a label column and no others, the images undecoded.
        reader: of the labels; None without labels, as in a flat folder of ImageNet's validation images.
    """

    dataset: IterableDataset
    image_column: str
    label_column: str
    reader: BenchmarkLabels | None


def open_benchmark(
    source: str,
    benchmark: Benchmark,
    *,
    splits: Sequence[str],
    image_column: str | None = None,
    label_column: str | None = None,
    may_lack_labels: bool = False,
) -> BenchmarkImages:
    """Opens a test set; images of ObjectNet's other objects are left out without being decoded.

    A label is that of the label column, if there is one: wnids, class numbers, or class names (see
    `label_maps.class_numbers`); else the name of the folder that the image lies in. Of image folders the label column
    is just that.

    Args:
        source: a folder, shards, or a data set on the Hub as `user/name` or `user/name:configuration`.
        splits: in the order of preference.
        may_lack_labels: where neither a column nor folders name classes, go on without.

    Raises:
        DataSourceError: it cannot be opened.
        LabelMapError: its labels are no classes of this test set.
    """
    dataset = _open_first(source, splits, image_column)
    image_column = find_image_column(dataset, image_column)
    if label_column is None and not _declares_labels(dataset):
        dataset, label_column = _label_by_folder(dataset, image_column), _FOLDER
    else:
        label_column = find_label_column(dataset, label_column)
    kind = dataset.features[label_column]
    try:
        reader = BenchmarkLabels.of(benchmark, kind.names if isinstance(kind, ClassLabel) else None)
        if label_column == _FOLDER:
            reader(next(iter(dataset))[_FOLDER])
    except LabelMapError as error:
        if not may_lack_labels or isinstance(kind, ClassLabel):
            raise LabelMapError(f"{source}: {error}") from error
        reader = None
    if benchmark.folders is not None:
        dataset = dataset.filter(partial(_is_wanted, reader=reader), input_columns=[label_column])
    return BenchmarkImages(dataset.select_columns([image_column, label_column]), image_column, label_column, reader)


def fingerprint(source: str) -> str:
    """What tells a source from another: of files their names, sizes and times; of a data set on the Hub its id."""
    path = Path(source)
    if not path.exists():
        return source
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else [path / name for name in list_files(source)]:
        status = file.stat()
        digest.update(json.dumps([os.path.relpath(file, path), status.st_size, status.st_mtime_ns]).encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- what a classifier says


@dataclass(frozen=True)
class Outputs:
    """Of the images that could be decoded, in the order of arrival.

    Attributes:
        logits: float32 `(N, C)` in ImageNet's order; -inf for classes that the model lacks.
        labels: int64 `(N,)`, as `Benchmark.score` wants them; None without labels.
        paths: names of the images, where there are any.
        skipped: `{"key", "reason"}` of each image that could not be decoded.
    """

    logits: Tensor
    labels: Tensor | None
    paths: list[str | None]
    skipped: list[dict[str, str]]


def classify_images(
    images: BenchmarkImages,
    classify: Callable[[Tensor], Tensor],
    transform: Transform,
    classes: Sequence[int],
    columns: Sequence[int],
    *,
    batch_size: int = 64,
    num_workers: int = 0,
) -> Outputs:
    """One pass over a test set.

    Args:
        classify: images to logits on the CPU, as `logits_of` a model.
        classes: class numbers that are needed.
        columns: where `classify` has the logits of each.

    Raises:
        ValueError: no image can be decoded.
        LabelMapError: a label is no class of this test set.
    """
    logits, labels, paths, skipped = [], [], [], []
    batches = read_rows(
        images.dataset,
        image_column=images.image_column,
        label_column=images.label_column,
        transform=transform,
        batch_size=batch_size,
        num_workers=num_workers,
        may_lack_labels=True,  # the reader, where there is one, refuses them
    )
    for rows, pixels in batches:
        skipped += [{"key": row.key or f"row {row.place}", "reason": row.reason} for row in rows if row.reason]
        if pixels is None:
            continue
        rows = [row for row in rows if row.reason is None]
        paths += [row.key for row in rows]
        labels += [] if images.reader is None else [_label_of(row, images.reader) for row in rows]
        found = torch.full((len(rows), IMAGENET_CLASSES), -torch.inf)
        found[:, list(classes)] = classify(pixels)[:, list(columns)]
        logits.append(found)
    if not logits:
        reasons = sorted({bad["reason"] for bad in skipped})
        raise ValueError(f"none of {len(skipped)} images can be decoded: {'; '.join(reasons[:3]) or 'there is none'}")
    return Outputs(torch.cat(logits), torch.tensor(labels) if images.reader else None, paths, skipped)


def _label_of(row: Row, reader: BenchmarkLabels) -> int | None:
    try:
        return reader(row.label)
    except LabelMapError as error:
        raise LabelMapError(f"{row.key or 'an image'}: {error}") from error


# ---------------------------------------------------------------- opening


def _open_first(source: str, splits: Sequence[str], image_column: str | None) -> IterableDataset:
    name = None
    if not os.path.exists(source) and source.count(":") == 1:
        source, name = source.split(":")
    for split in splits[:-1]:
        try:
            return open_stream(source, split=split, name=name, image_column=image_column)
        except DataSourceError as error:
            if "no split" not in str(error):
                raise
    return open_stream(source, split=splits[-1], name=name, image_column=image_column)


def _declares_labels(dataset: IterableDataset) -> bool:
    return "label" in dataset.features or any(isinstance(kind, ClassLabel) for kind in dataset.features.values())


def _label_by_folder(dataset: IterableDataset, image_column: str) -> IterableDataset:
    features = dataset.features.copy()
    features[_FOLDER] = Value("string")
    return dataset.map(partial(_with_folder, image_column=image_column), features=features)


def _with_folder(row: dict[str, Any], image_column: str) -> dict[str, Any]:
    image = row[image_column]
    path = image.get("path") if isinstance(image, dict) else None
    return {**row, _FOLDER: Path(path or "").parent.name}


def _is_wanted(label: Label, reader: BenchmarkLabels) -> bool:
    return reader(label) is not None


__all__ = ["BenchmarkImages", "BenchmarkLabels", "Outputs", "classify_images", "fingerprint", "open_benchmark"]
