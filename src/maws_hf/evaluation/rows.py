"""One pass over a data set in the order of its files, decoded by as many workers as asked, each row with a digest."""

import hashlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import fsspec.asyn
import numpy as np
import torch
from datasets import IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from tqdm.auto import tqdm

from ..data.samples import KEY, KEY_COLUMNS, prepare_image
from ..data.targets import UNLABELLED
from ..data.tolerance import read_on
from ..processing.decode import ImageDecodeError

ROWS_READ_AT_ONCE = 64
Transform = Callable[[np.ndarray], Tensor]  # uint8 (H, W, 3) to (3, h, w), of one type and size
_UNUSED_GENERATOR = np.random.default_rng(0)  # evaluation draws nothing

Label = int | str | list[int] | list[str] | None  # one of `UNLABELLED`: there is none


class Row(NamedTuple):
    """All of a row but its pixels.

    Attributes:
        place: worker and number; sorted by it, rows are in the order of the files.
        key: the key column, else the path that came with the image, if there is one.
        label: as it was read.
        digest: SHA-256 of key, label and image bytes.
        reason: why the image cannot be decoded, if so.
    """

    place: tuple[int, int]
    key: str | None
    label: Label
    digest: bytes
    reason: str | None


def read_rows(
    dataset: IterableDataset,
    *,
    image_column: str,
    label_column: str,
    transform: Transform | None,
    batch_size: int,
    num_workers: int = 0,
    may_lack_labels: bool = False,
    may_be_damaged: bool = False,
) -> Iterator[tuple[list[Row], Tensor | None]]:
    """Batches of rows and the pixels of those that could be decoded, under a progress bar.

    Args:
        dataset: from `open_stream`; of its columns the image, the label and those of names are read.
        transform: None reads and hashes, but decodes nothing.
        num_workers: processes; each reads a run of consecutive shards, so more of them than shards stay away.
        may_lack_labels: rows without a label are let through.
        may_be_damaged: a damaged shard is read up to its damage, with a warning; else it is an error.

    Yields:
        rows, and `(B, 3, h, w)`, as the transform has it (uint8 mostly), for those without a `reason`, in their order;
        None if there are none.

    Raises:
        ValueError: a row has no label.
    """
    names = [name for name in KEY_COLUMNS if name in dataset.features]
    dataset = dataset.select_columns(list(dict.fromkeys([image_column, label_column, *names])))
    loader = DataLoader(
        _Rows(dataset, image_column, label_column, transform, may_lack_labels, may_be_damaged),
        batch_size=batch_size,
        num_workers=min(num_workers, dataset.num_shards),
        collate_fn=_collate,
        worker_init_fn=_leave_interrupts_to_the_main_process,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else every pass would take a draw from torch's global one
    )
    interval = 0.1 if sys.stderr.isatty() else 10  # seconds; a log file keeps every update
    name = "reading" if transform is None else "encoding"
    with tqdm(desc=name, unit=" images", dynamic_ncols=True, mininterval=interval, delay=interval, leave=False) as bar:
        with _interrupts_held_back():
            batches = iter(loader)
        for rows, pixels in batches:
            yield rows, pixels
            bar.update(len(rows))


class _Rows(torch.utils.data.IterableDataset):
    """(row, its pixels or None), one after the other."""

    def __init__(
        self,
        dataset: IterableDataset,
        image_column: str,
        label_column: str,
        transform: Transform | None,
        may_lack_labels: bool,
        may_be_damaged: bool,
    ):
        self.dataset, self.image_column, self.label_column = dataset, image_column, label_column
        self.transform, self.may_lack_labels, self.may_be_damaged = transform, may_lack_labels, may_be_damaged

    def __iter__(self) -> Iterator[tuple[Row, Tensor | None]]:
        dataset, worker, number = self.dataset, 0, 0
        if (info := get_worker_info()) is not None:
            fsspec.asyn.reset_lock()  # a lock inherited through fork hangs remote reads; datasets does so in __iter__
            dataset, worker = dataset.shard(num_shards=info.num_workers, index=info.id), info.id
        # iter(dataset) would split once more by DataLoader worker; dataset.iter() does not.
        batches = dataset.iter(batch_size=ROWS_READ_AT_ONCE)
        for columns in read_on(batches) if self.may_be_damaged else batches:
            for values in zip(*columns.values(), strict=True):
                yield self._read(dict(zip(columns, values, strict=True)), (worker, number))
                number += 1

    def _read(self, row: dict[str, Any], place: tuple[int, int]) -> tuple[Row, Tensor | None]:
        image, label = row[self.image_column], row[self.label_column]
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
        key = next((str(row[name]) for name in KEY_COLUMNS if row.get(name) is not None), path)
        if not self.may_lack_labels and not isinstance(label, list) and label in UNLABELLED:
            raise ValueError(
                f"{key or f'row {place[1]}'} has no label in {self.label_column} (it is {label}; -1 and -100 mean "
                "none): choose a labelled split"
            )
        digest = hashlib.sha256(json.dumps([key, label]).encode() + b"\0" + (data if isinstance(data, bytes) else b""))
        pixels, reason = None, None
        if self.transform is not None:
            try:
                sample = {KEY: key or "<row>", self.image_column: image}
                prepared = prepare_image(
                    sample, _UNUSED_GENERATOR, image_column=self.image_column, transform=self._evaluate
                )
                pixels = prepared["pixel_values"]
            except ImageDecodeError as error:
                reason = error.reason
        return Row(place, key, label, digest.digest(), reason), pixels

    def _evaluate(self, image: np.ndarray, rng: np.random.Generator) -> Tensor:
        return self.transform(image)


def _collate(samples: list[tuple[Row, Tensor | None]]) -> tuple[list[Row], Tensor | None]:
    pictures = [pixels for _, pixels in samples if pixels is not None]
    return [row for row, _ in samples], torch.stack(pictures) if pictures else None


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Around the start of workers: an exception out of what Python does at a fork would be printed and forgotten."""
    if threading.current_thread() is not threading.main_thread():  # handlers are run in that one
        yield
        return
    interrupts = []
    handler = signal.signal(signal.SIGINT, lambda *_: interrupts.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupts:
        signal.raise_signal(signal.SIGINT)


def _leave_interrupts_to_the_main_process(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


__all__ = ["Label", "Row", "read_rows"]
