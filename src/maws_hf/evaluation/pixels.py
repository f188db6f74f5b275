"""The images of a split in memory, for methods that look at them more than once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import IterableDataset
from torch import Tensor

from ..data.sources import find_image_column
from ..processing.transforms import EvalTransform
from .rows import Label, read_rows


@dataclass(frozen=True)
class Pixels:
    """
    Attributes:
        pixels: uint8 `(N, 3, H, W)`, in the order of the files; images that cannot be decoded are left out.
        labels: as they were read.
        places: of each image among those that were asked for.
        skipped: `{"key", "reason"}` of each image that was left out.
    """

    pixels: Tensor
    labels: list[Label]
    places: list[int]
    skipped: list[dict[str, str]]


def read_pixels(
    dataset: IterableDataset,
    transform: EvalTransform,
    *,
    split: str,
    label_column: str,
    image_column: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    only: Sequence[int] | None = None,
    may_lack_labels: bool = False,
) -> Pixels:
    """Decodes a split once; `H x W x 3` bytes an image stay in memory.

    Args:
        split: its name, for messages.
        only: numbers of the rows that are wanted, ascending, in the order of the files; all if None.
        may_lack_labels: rows without a label are let through.

    Raises:
        ValueError: no image of the whole split can be decoded, or a row has no label.
    """
    image_column = find_image_column(dataset, image_column)
    if only is not None:
        wanted, num_workers = frozenset(only), 0  # workers would count their own rows
        dataset = dataset.filter(lambda row, number: number in wanted, with_indices=True)
    batches = read_rows(
        dataset,
        image_column=image_column,
        label_column=label_column,
        transform=transform,
        batch_size=batch_size,
        num_workers=num_workers,
        may_lack_labels=may_lack_labels,
    )
    rows, pictures = [], []
    for found, pixels in batches:
        rows += found
        pictures += [] if pixels is None else [pixels]
    decoded = [row for row in rows if row.reason is None]
    if not decoded and only is None:
        reasons = sorted({row.reason for row in rows})
        raise ValueError(
            f"none of {len(rows)} images of the split {split} can be decoded: "
            f"{'; '.join(reasons[:3]) or 'there is none'}"
        )
    order = sorted(range(len(decoded)), key=lambda index: decoded[index].place)
    labels, places, skipped = [], [], []
    for number, row in enumerate(sorted(rows, key=lambda row: row.place)):
        if row.reason is None:
            labels.append(row.label)
            places.append(number)
        else:
            skipped.append({"key": row.key or f"row {number if only is None else only[number]}", "reason": row.reason})
    return Pixels(torch.cat(pictures)[order] if pictures else torch.empty(0), labels, places, skipped)


def read_labels(dataset: IterableDataset, *, label_column: str, image_column: str | None = None) -> list[Label]:
    """The labels of a split in the order of the files, without its images being decoded; see `UNLABELLED`."""
    image_column = find_image_column(dataset, image_column)
    batches = read_rows(
        dataset,
        image_column=image_column,
        label_column=label_column,
        transform=None,
        batch_size=1024,
        may_lack_labels=True,
    )
    return [row.label for rows, _ in batches for row in rows]


__all__ = ["Pixels", "read_labels", "read_pixels"]
