"""Texts, JSON and numbers that are not what they should be: missing values, instead of the end of a run.

`datasets` decodes them with every row, also for a run that wants nothing but the images beside them. A text that is
not UTF-8, JSON that is torn or a class index that is no number is None here, as if it had not been there; a warning
names the first one of a shard.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from datasets import DatasetBuilder, IterableDataset
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from maws_hf.data.tolerance import innermost_layer, name_of

__all__ = ["Undecodable", "take_broken_members_for_missing", "take_broken_texts_for_missing"]


def take_broken_members_for_missing(builder: DatasetBuilder) -> DatasetBuilder:
    """For tar shards, which `datasets` begins to read when it makes a data set of the builder; changed in place."""
    if isinstance(builder, WebDataset):
        builder._get_pipeline_from_tar = _Members._get_pipeline_from_tar
    return builder


def take_broken_texts_for_missing(dataset: IterableDataset) -> IterableDataset:
    """For Parquet shards; changed in place."""
    layer = innermost_layer(dataset)
    if hasattr(layer, "generate_tables_fn"):
        layer.generate_tables_fn = _Texts(layer.generate_tables_fn)
    return dataset


def _warn(place: str, reason: str) -> None:
    warnings.warn(
        f"{place} cannot be decoded ({reason}): it counts as missing, like any other of this shard; repair it, or "
        "leave it out",
        stacklevel=2,
    )


@dataclass(frozen=True)
class Undecodable:
    """In the place of a member's content, or of what it would decode to."""

    reason: str


def _try(decode: Callable[[bytes], Any], content: bytes | Undecodable) -> Any:
    if isinstance(content, Undecodable):
        return content
    try:
        return decode(content)
    except Exception as error:  # of whatever library knows the format; the bytes have been read already
        return Undecodable(f"{type(error).__name__}: {error}")


class _Members(WebDataset):
    """The samples of a tar shard as `datasets` has them, but for members that cannot be decoded."""

    DECODERS = {extension: partial(_try, decode) for extension, decode in WebDataset.DECODERS.items()}

    @classmethod
    def _get_pipeline_from_tar(cls, tar_path: str, tar_iterator: Any) -> Iterator[dict[str, Any]]:
        told = False
        for sample in super()._get_pipeline_from_tar(tar_path, tar_iterator):
            for name, value in sample.items():
                if isinstance(value, Undecodable):
                    sample[name] = None
                    if not told:
                        _warn(f"{tar_path}: {sample['__key__']}.{name}", value.reason)
                    told = True
            yield sample


@dataclass(frozen=True)
class _Texts:
    """The tables of a Parquet shard as `read(**shard)` yields them, but for values that hold text and are no UTF-8."""

    read: Callable[..., Iterator[tuple[Any, pa.Table]]]

    def __call__(self, **shard: Any) -> Iterator[tuple[Any, pa.Table]]:
        told, rows = False, 0
        for place, table in self.read(**shard):
            for number, field in enumerate(table.schema):
                column = table.column(number)
                broken = _broken_rows(column)
                if not broken:
                    continue
                values = [None if row in broken else scalar.as_py() for row, scalar in enumerate(column)]
                table = table.set_column(number, field, pa.array(values, column.type))
                if not told:
                    row, reason = next(iter(broken.items()))
                    _warn(f"{name_of(shard)}: {field.name} of row {rows + row}", reason)
                told = True
            rows += table.num_rows
            yield place, table


def _broken_rows(column: pa.ChunkedArray) -> dict[int, str]:
    """Rows with text that is no UTF-8, and why."""
    try:
        column.validate(full=True)
        return {}
    except pa.ArrowInvalid:
        broken = {}
        for row, scalar in enumerate(column):
            try:
                scalar.as_py()
            except UnicodeDecodeError as error:
                broken[row] = str(error)
        return broken
