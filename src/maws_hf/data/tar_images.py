"""The image of a sample in tar shards, whatever its extension.

`datasets` makes a column of every extension that the first samples have. A data set collected from the web holds JPEGs
among PNGs; a sample whose image has another extension than the first ones' would seem to have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Features, Image, IterableDataset

from maws_hf.data.tolerance import innermost_layer

__all__ = ["take_any_image"]


def take_any_image(dataset: IterableDataset, extensions: tuple[str, ...]) -> IterableDataset:
    """Tar shards with one column of images: samples that lack it have their image of another extension there.

    Other data sets stay as they are; changed in place.

    Args:
        extensions: of images, with the dot and in lower case.
    """
    features = dataset.features or Features()
    columns = [name for name, kind in features.items() if isinstance(kind, Image)]
    layer = innermost_layer(dataset)
    if {"__key__", "__url__"} <= features.keys() and len(columns) == 1 and hasattr(layer, "generate_examples_fn"):
        layer.generate_examples_fn = _AnyImage(layer.generate_examples_fn, columns[0], tuple(features), extensions)
    return dataset


@dataclass(frozen=True)
class _AnyImage:
    """Reads a shard by `read(**shard)`, and fills `column` where another name holds the image."""

    read: Callable[..., Iterator[tuple[Any, dict[str, Any]]]]
    column: str
    known: tuple[str, ...]
    extensions: tuple[str, ...]

    def __call__(self, **shard: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
        for place, sample in self.read(**shard):
            if (sample[self.column] or {}).get("bytes") is None:
                others = [name for name in sample if name not in self.known and f".{name.lower()}" in self.extensions]
                if len(others) == 1 and isinstance(sample[others[0]], bytes):
                    content = {"bytes": sample.pop(others[0]), "path": f"{sample['__key__']}.{others[0]}"}
                    sample = {**sample, self.column: content}
            yield place, sample
