"""Shards read over disks and networks that fail, and shards that are damaged.

Two kinds of failure are told apart. What cannot be *reached* is tried again, after longer and longer pauses, and then
ends the stream: an outage must not pass for bad data. What is reached and cannot be *understood* (a torn tar, a
Parquet file without its end, a wrong checksum) would be the same the next time: the shard ends at the row where it
breaks, which is told as a loss, and reading goes on with the next one. Every reader of the shard sees it end at the
same row, so that the rest is still shared exactly and a position stays valid. A tar that was cut between two members
looks whole to `tarfile`; what it lacks is the two blocks of zeros that end an archive.
"""

from __future__ import annotations

import gzip
import lzma
import os
import random
import tarfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
from datasets import IterableDataset

__all__ = [
    "Loss",
    "ReadError",
    "TolerantReader",
    "are_too_many",
    "collect_losses",
    "innermost_layer",
    "name_of",
    "read_on",
    "shard_being_read",
    "tolerate",
]

Item = TypeVar("Item")

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try; datasets' own retries of a request come on top
_CLIENTS = {"aiohttp", "fsspec", "httpx", "huggingface_hub", "requests", "urllib3"}
_DAMAGE = (pa.ArrowInvalid, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


class ReadError(RuntimeError):
    """A shard cannot be read; the message names it and the row."""


@dataclass(frozen=True)
class Loss:
    """A damaged shard, and after how many parts it broke: rows, or in Parquet tables of `batch_size` rows."""

    shard: str
    reason: str


# Where losses go; without such a place the first damage is an error, for silence would be worse. The reader is called
# deep inside datasets, in the context of whoever asks for the next row.
_losses: ContextVar[list[Loss] | None] = ContextVar("losses", default=None)


_shard_being_read: ContextVar[str | None] = ContextVar("shard_being_read", default=None)


def shard_being_read() -> str | None:
    """The one that the last row came from, whichever data set that was of; None before the first."""
    return _shard_being_read.get()


@contextmanager
def collect_losses() -> Iterator[list[Loss]]:
    """While active, damaged shards end where they break, and are found in the list."""
    losses: list[Loss] = []
    before = _losses.set(losses)
    try:
        yield losses
    finally:
        _losses.reset(before)


def warn(loss: Loss) -> None:
    warnings.warn(f"{loss.shard} is {loss.reason}: the rest of it is not read", stacklevel=3)


def read_on(items: Iterable[Item], tell: Callable[[Loss], None] = warn) -> Iterator[Item]:
    """What `items` yields from a data set, past every damaged shard.

    Args:
        tell: is given each damage that is met.
    """
    iterator, over = iter(items), object()
    while True:
        with collect_losses() as losses:  # not around the `yield`, whose caller may read something else
            item = next(iterator, over)
        for loss in losses:
            tell(loss)
        if item is over:
            return
        yield item


def are_too_many(lost: int, shards: int, share: float) -> bool:
    """Whether so many damaged ones among `shards` end a run: more than `share` of them, and than one."""
    return lost > max(1, share * shards)


@dataclass(frozen=True)
class TolerantReader:
    """Reads a shard by `read(**shard)`, which yields its rows or tables."""

    read: Callable[..., Iterator[Any]]
    pause: Callable[[float], None] = time.sleep  # for so many seconds

    def __call__(self, **shard: Any) -> Iterator[Any]:
        """What `read` yields, as if it had never been out of reach; within `collect_losses` up to a damage.

        Raises:
            ReadError: the shard cannot be reached after all tries, or is damaged and nobody collects losses.
        """
        done, pauses = 0, iter(PAUSES)
        _shard_being_read.set(name_of(shard))
        while True:
            try:
                for number, item in enumerate(self.read(**shard)):
                    if number >= done:
                        done += 1
                        pauses = iter(PAUSES)  # it has come further: the next outage is another one
                        yield item
                _require_end(name_of(shard))
                return
            except Exception as error:
                if _is_damage(error):
                    loss = Loss(name_of(shard), f"damaged after {done} parts ({_describe(error)})")
                    if (losses := _losses.get()) is None:
                        raise ReadError(f"{loss.shard} is {loss.reason}") from error
                    losses.append(loss)
                    return
                if not _is_outage(error):
                    raise
                wait = next(pauses, None)
                if wait is None:
                    tries = len(PAUSES) + 1
                    raise ReadError(
                        f"{name_of(shard)} cannot be read after {done} parts, tried {tries} times: {_describe(error)}"
                    ) from error
                self.pause(wait * random.uniform(0.5, 1.5))  # many readers of one server do not come back together


def innermost_layer(dataset: IterableDataset) -> Any:
    """What of the data set reads its shards."""
    layer = getattr(dataset, "_ex_iterable", None)
    while hasattr(layer, "ex_iterable"):
        layer = layer.ex_iterable
    return layer


def tolerate(dataset: IterableDataset) -> IterableDataset:
    """The data set, its shards now read by a `TolerantReader`; changed in place.

    `datasets` has no public place for that. Where it keeps its reading function elsewhere, the first damage ends the
    stream, as it does in `datasets`.
    """
    layer = innermost_layer(dataset)
    for name in ("generate_tables_fn", "generate_examples_fn"):
        read = getattr(layer, name, None)
        if read is not None and not isinstance(read, TolerantReader):
            setattr(layer, name, TolerantReader(read))
    return dataset


def _require_end(shard: str) -> None:
    """Raises tarfile.ReadError for a tar file that lacks its end. One that is read from a server is whole, or the
    connection has told."""
    if not (shard.endswith(".tar") and os.path.isfile(shard)):
        return
    with open(shard, "rb") as file:
        if file.read(512)[257:262] != b"ustar":
            return  # compressed, or of a kind too old to say what it is
        file.seek(max(0, os.path.getsize(shard) - 512))  # of the two blocks of zeros one is enough for a reader
        if any(file.read()):
            raise tarfile.ReadError("the end of the archive is missing")


def _is_damage(error: Exception) -> bool:
    """Of the content. Parquet's codecs raise a bare OSError, without the number that a failed system call has."""
    return isinstance(error, _DAMAGE) or (type(error) is OSError and error.errno is None)


def _is_outage(error: Exception) -> bool:
    """Something between here and the data; the errors of network clients need not be OSErrors."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLIENTS


def name_of(shard: dict[str, Any]) -> str:
    """The first path among the arguments of a reading function: each is a list of one for one shard."""
    for value in shard.values():
        while isinstance(value, list | tuple) and value:
            value = value[0]
        if isinstance(value, str):
            return value
    return "a shard"


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
