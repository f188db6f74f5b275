"""A row of a data set: its name, the kinds of its columns, how it becomes a sample, and a random choice of rows."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset, LargeList, List

from maws_hf.data.tolerance import read_on
from maws_hf.processing.decode import ImageDecodeError, decode_image
from maws_hf.processing.transforms import TrainTransform

__all__ = [
    "KEY",
    "KEY_COLUMNS",
    "Sample",
    "content_key",
    "element_of",
    "prepare_image",
    "random_rows",
    "sample_key",
]

Sample = dict[str, Any]

KEY = "__key__"  # WebDataset's name for it; the stream gives every sample one
KEY_COLUMNS = (KEY, "key", "id")


def random_rows(
    dataset: IterableDataset,
    count: int,
    *,
    seed: int,
    among: int,
    keep: Callable[[Sample], bool] | None = None,
) -> list[Sample]:
    """A random choice of rows that depends on the data and the seed alone; only the chosen are held in memory.

    Of a damaged shard the rows before its damage count, and a warning names it.

    Args:
        count: of rows, or fewer if there are not so many.
        among: rows to choose from; where there are more, the first of them with the shards in random order.
        keep: which rows count; all if None.

    Returns:
        The rows in random order, each with its name under "__key__".
    """
    rng = np.random.default_rng(seed)
    # A sorted data set begins with a single class. `dataset.shuffle` would do, but waits 5 seconds for its threads.
    shuffled = read_on(itertools.chain.from_iterable(_shards(dataset, rng.permutation(dataset.num_shards))))
    chosen: list[tuple[float, int, Sample]] = []
    for number, row in enumerate(itertools.islice(shuffled, among)):
        row = {**row, KEY: sample_key(row) or f"row {number}"}
        if keep is None or keep(row):
            heapq.heappush(chosen, (rng.random(), number, row))
            if len(chosen) > count:
                heapq.heappop(chosen)
    return [row for _, _, row in sorted(chosen, key=lambda item: item[:2])]


def _shards(dataset: IterableDataset, order: np.ndarray) -> Iterator[IterableDataset]:
    """All shards one by one, in this order. Each is taken from a group of about as many as there are groups, since
    `dataset.shard` divides all that it has for a single one, and in an image folder there are thousands."""
    count = math.isqrt(dataset.num_shards)
    groups = [dataset.shard(count, group) for group in range(count)]
    places = [(group, shard) for group in groups for shard in range(group.num_shards)]
    for group, shard in (places[number] for number in order):
        yield group.shard(group.num_shards, shard)


def prepare_image(
    sample: Sample,
    rng: np.random.Generator,
    *,
    image_column: str,
    transform: Callable[[np.ndarray, np.random.Generator], torch.Tensor],
    extra: Callable[[Sample, np.random.Generator], Sample] | None = None,
) -> Sample:
    """A row to a training sample; bind the keywords with `functools.partial` to get a stream's `transform`.

    Args:
        sample: a row with the image under `image_column`, as `{"bytes", "path"}` or bare bytes, and "__key__".
        rng: the sample's generator, handed to `transform` and then to `extra`.
        image_column: see `maws_hf.data.sources.find_image_column`.
        transform: uint8 (H, W, 3) to a uint8 tensor (3, h, w).
        extra: further fields of the same row, such as labels or a caption.

    Returns:
        {"pixel_values": uint8 (3, h, w), "key": str, **extra}.

    Raises:
        ImageDecodeError: there are no bytes or they are no image. A path without bytes is never opened.
    """
    key, image = sample[KEY], sample[image_column]
    data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
    if isinstance(data, str):
        data, path = None, data
    if data is None:
        reason = "it holds a path but no bytes, and paths in data are never opened" if path else "it holds no image"
        raise ImageDecodeError(key, reason)
    if isinstance(transform, TrainTransform):
        pixels = transform.decode(data, rng, key=key)
    else:
        pixels = transform(decode_image(data, key=key), rng)
    prepared = {"pixel_values": pixels, "key": key}
    return prepared if extra is None else {**prepared, **extra(sample, rng)}


def sample_key(sample: Sample) -> str | None:
    """The sample's own name: a key column, else the path that came with its image."""
    for column in KEY_COLUMNS:
        if sample.get(column) is not None:
            return str(sample[column])
    paths = (value.get("path") for value in sample.values() if isinstance(value, dict))
    return next((path for path in paths if isinstance(path, str) and path), None)


def content_key(sample: Sample) -> str | None:
    """What to call a nameless bad image: the same in every epoch, unlike its place in a shuffled stream."""
    values = (value.get("bytes") if isinstance(value, dict) else value for value in sample.values())
    data = next((value for value in values if isinstance(value, bytes)), None)
    return None if data is None else f"sha256:{hashlib.sha256(data).hexdigest()[:16]}"


def element_of(kind: Any) -> Any:
    """The kind of value that a column has: in its lists, if it has lists."""
    return kind.feature if isinstance(kind, List | LargeList) else kind
