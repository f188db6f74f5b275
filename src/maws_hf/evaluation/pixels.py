"""The images of a split in memory, for methods that look at them more than once."""

from dataclasses import dataclass

import torch
from datasets import IterableDataset
from torch import Tensor

from ..data.sources import find_image_column
from ..data.streaming import KEY_COLUMNS
from ..processing.transforms import EvalTransform
from .rows import Label, read_rows


@dataclass(frozen=True)
class Pixels:
    """
    Attributes:
        pixels: uint8 `(N, 3, H, W)`, in the order of the files; images that cannot be decoded are left out.
        labels: as they were read.
    """

    pixels: Tensor
    labels: list[Label]


def read_pixels(
    dataset: IterableDataset,
    transform: EvalTransform,
    *,
    label_column: str,
    image_column: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
) -> Pixels:
    """Decodes a split once; `H x W x 3` bytes an image stay in memory.

    Raises:
        ValueError: no image can be decoded, or a row has no label.
    """
    image_column = find_image_column(dataset, image_column)
    names = [name for name in KEY_COLUMNS if name in dataset.features]
    batches = read_rows(
        dataset.select_columns(list(dict.fromkeys([image_column, label_column, *names]))),
        image_column=image_column,
        label_column=label_column,
        transform=transform,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    rows, pictures = [], []
    for found, pixels in batches:
        rows += [row for row in found if row.reason is None]
        pictures += [] if pixels is None else [pixels]
    if not rows:
        raise ValueError("no image of the split can be decoded")
    order = sorted(range(len(rows)), key=lambda index: rows[index].place)
    return Pixels(torch.cat(pictures)[order], [rows[index].label for index in order])


__all__ = ["Pixels", "read_pixels"]
