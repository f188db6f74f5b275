"""What a locked image tower says about every image, computed once and streamed ever after.

A shard of the data set becomes a shard with the same rows: names, captions, and in place of the image the tower's
features of one or several views of it. It is written beside and renamed, then its record is. A record vouches for the
rows it was made from (a digest of names, captions and image bytes) and for the file; the folder is named after the
tower, the views and everything else that a feature depends on. So a killed pass goes on where it stopped, other data
or another tower never meet the wrong features, and only shards whose rows have changed are computed again.

Rows are read to see whether they have changed only if their files have, by size and time, or if they are not in files.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Features, IterableDataset, Value
from torch import Tensor
from tqdm.auto import tqdm

from ..processing.decode import ImageDecodeError, decode_image
from ..whole_files import remove_leftovers, sha256_of, temporary_beside, write_atomically
from .samples import KEY, Sample, sample_key
from .tolerance import Loss, innermost_layer, read_on

FEATURES = "vision_features"
NAME = "key"
ROWS_AT_ONCE = 256
# In an image folder every image is a shard. So many files are enough to shuffle and, for up to 64 ranks, to share out;
# each costs some 50 ms when it is made and 2 ms in every epoch (1,024 of 2,000 images against 256, once).
MOST_SHARDS = 256
SHARDS_A_RANK = 4  # of more ranks: none is idle then, and each of its data workers has some of its own

Views = Callable[[np.ndarray, np.random.Generator], list[Tensor]]
Encode = Callable[[Tensor], Tensor]


@dataclass
class FeatureRecord:
    """What one shard holds.

    Attributes:
        rows: written, each with its features.
        source: SHA-256 of the names, captions and image bytes of all rows read.
        files: which files they came from, with sizes and times; None if that cannot be told.
        skipped: `{"key", "reason"}` of images that could not be decoded.
        damaged: the same of shards of the data set that could be read up to their damage only.
        bytes, sha256: of the file.
    """

    rows: int = 0
    source: str = ""
    files: str | None = None
    skipped: list[dict[str, str]] = field(default_factory=list)
    damaged: list[dict[str, str]] = field(default_factory=list)
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class FeatureJob:
    """All shards of a split.

    Args:
        dataset: from `open_stream`, not shuffled, with its image, captions and names and no other columns.
        image_column: of it.
        views: a decoded picture to the views of it, uint8 `(3, h, w)` each.
        encode: views `(B, 3, h, w)` to features `(B, D)`.
        seed: of the views.
        folder: named after everything that decides a feature; holds `train-00000-of-00008.parquet` and records.
        shards: how many are written, from [`choose_shards`].
    """

    dataset: IterableDataset
    image_column: str
    views: Views
    encode: Encode
    seed: int
    folder: Path
    shards: int

    def data_file(self, shard: int) -> Path:
        return self.folder / f"train-{shard:05d}-of-{self.shards:05d}.parquet"

    @property
    def features(self) -> Features:
        """Of the rows that are written: the data set's own, without the image, with a name and features."""
        kinds = {name: kind for name, kind in self.dataset.features.items() if name not in (self.image_column, KEY)}
        return Features({**kinds, NAME: Value("string"), FEATURES: Value("binary")})

    def source(self, shard: int) -> IterableDataset:
        """What becomes one shard."""
        return self.dataset.shard(num_shards=self.shards, index=shard)

    def rows(self, shard: int, tell: Callable[[Loss], None]) -> Iterator[list[Sample]]:
        """The rows of one shard, some at a time; `tell` hears of damage."""
        number = 0
        for columns in read_on(self.source(shard).iter(ROWS_AT_ONCE), tell):
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            for row in rows:
                row[KEY] = sample_key(row) or f"shard {shard} row {number}"
                number += 1
            yield rows


def choose_shards(folder: Path, dataset: IterableDataset, world_size: int = 1) -> int:
    """Into how many files a data set's features go: as many as the folder was begun with, by however many ranks.

    Files of two divisions would both be read, so a new one would have to replace all that is there.
    """
    begun = next(folder.glob("train-*-of-*.parquet"), None)
    if begun is not None:
        return int(begun.stem.rpartition("-")[2])
    return min(dataset.num_shards, max(MOST_SHARDS, SHARDS_A_RANK * world_size))


def compute_features(job: FeatureJob, *, rank: int = 0, world_size: int = 1, num_threads: int = 2) -> None:
    """Makes every `world_size`-th shard, from `rank`, unless it is there and its rows are still the same.

    Args:
        num_threads: that decode while the tower works.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(job.folder)
    shards = range(rank, job.shards, world_size)
    with (
        ThreadPoolExecutor(num_threads) as pool,
        tqdm(unit=" images", dynamic_ncols=True, delay=1, leave=False, disable=rank > 0) as bar,
    ):
        for number, shard in enumerate(shards, start=1):
            bar.set_description(f"image features, shard {number} of {len(shards)}", refresh=False)
            if not _is_finished(job, shard):
                _write_shard(job, shard, pool, bar)


def read_records(job: FeatureJob) -> list[FeatureRecord]:
    """Of all shards, once they are all there."""
    return [_read_record(job, shard) for shard in range(job.shards)]


def unpack_features(stored: bytes, width: int) -> np.ndarray:
    """`(views, width)` float32 of a row."""
    return np.frombuffer(stored, np.float32).reshape(-1, width)


def _is_finished(job: FeatureJob, shard: int) -> bool:
    file = job.data_file(shard)
    try:
        record = _read_record(job, shard)
        if file.stat().st_size != record.bytes or sha256_of(file) != record.sha256:
            return False
    except (OSError, ValueError, TypeError):
        return False  # missing, torn or not ours
    files = _files_of(job.source(shard))
    if files is not None and files == record.files:
        return True
    digest, damaged = hashlib.sha256(), []
    for rows in job.rows(shard, lambda loss: damaged.append(_described(loss))):
        for row in rows:
            _digest_row(digest, row, job.image_column)
    if digest.hexdigest() != record.source or damaged != record.damaged:
        return False
    record.files = files  # copied or touched, but the same
    _write_record(job, shard, record)
    return True


def _write_shard(job: FeatureJob, shard: int, pool: ThreadPoolExecutor, bar: tqdm) -> None:
    record = FeatureRecord(files=_files_of(job.source(shard)))  # before they are read: a later change is one
    file = job.data_file(shard)
    temporary = temporary_beside(file)
    try:
        _write_rows(job, shard, temporary, record, pool, bar)
        record.bytes, record.sha256 = temporary.stat().st_size, sha256_of(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    _write_record(job, shard, record)


def _write_rows(
    job: FeatureJob, shard: int, file: Path, record: FeatureRecord, pool: ThreadPoolExecutor, bar: tqdm
) -> None:
    """Also fills the part of the record that is about rows."""
    digest, schema = hashlib.sha256(), job.features.arrow_schema
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for rows, pictures in _decoded_ahead(job, shard, record, pool):
            kept = []
            for row, views in zip(rows, pictures, strict=True):
                _digest_row(digest, row, job.image_column)
                if isinstance(views, ImageDecodeError):
                    record.skipped.append({"key": row[KEY], "reason": views.reason})
                else:
                    kept.append((row, views))
            if kept:
                writer.write_table(pa.Table.from_pylist(_with_features(job, kept), schema=schema))
            record.rows += len(kept)
            bar.update(len(rows))
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
    record.source = digest.hexdigest()


def _with_features(job: FeatureJob, kept: list[tuple[Sample, list[Tensor]]]) -> list[Sample]:
    """Rows as they are stored: the image gone, the features of its views in its place."""
    pixels = torch.stack([view for _, views in kept for view in views])
    features = job.encode(pixels).float().cpu().numpy()
    count = len(features) // len(kept)
    stored = []
    for place, (row, _) in enumerate(kept):
        own = features[place * count : (place + 1) * count]
        columns = {name: value for name, value in row.items() if name not in (job.image_column, KEY)}
        stored.append({**columns, NAME: row[KEY], FEATURES: own.tobytes()})
    return stored


def _decoded_ahead(
    job: FeatureJob, shard: int, record: FeatureRecord, pool: ThreadPoolExecutor
) -> Iterator[tuple[list[Sample], list]]:
    """Rows with the views of their pictures, the next ones being decoded while these are encoded."""
    number, waiting = 0, None
    for rows in job.rows(shard, lambda loss: record.damaged.append(_described(loss))):
        keys = range(number, number + len(rows))
        pending = [pool.submit(_views_of, job, row, shard, key) for row, key in zip(rows, keys, strict=True)]
        number += len(rows)
        if waiting is not None:
            yield waiting[0], [task.result() for task in waiting[1]]
        waiting = (rows, pending)
    if waiting is not None:
        yield waiting[0], [task.result() for task in waiting[1]]


def _views_of(job: FeatureJob, row: Sample, shard: int, number: int) -> list[Tensor] | ImageDecodeError:
    image = row[job.image_column]
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes):
        return ImageDecodeError(row[KEY], "it holds no image")
    try:
        return job.views(decode_image(data, key=row[KEY]), np.random.default_rng([job.seed, shard, number]))
    except ImageDecodeError as error:
        return error


def _described(loss: Loss) -> dict[str, str]:
    return {"key": loss.shard, "reason": loss.reason}


def _digest_row(digest: Any, row: Sample, image_column: str) -> None:
    image = row[image_column]
    data = image.get("bytes") if isinstance(image, dict) else image
    rest = {name: value for name, value in row.items() if name != image_column}
    digest.update(json.dumps(rest, sort_keys=True, default=str).encode() + b"\0")
    digest.update(hashlib.sha256(data if isinstance(data, bytes) else b"").digest())


def _files_of(dataset: IterableDataset) -> str | None:
    """Digest of the paths, sizes and times of the files of a shard; None if it has others than these or none."""
    known, waiting = [], [getattr(innermost_layer(dataset), "kwargs", {})]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, str) and os.path.isfile(value):
            status = os.stat(value)
            known.append([value, status.st_size, status.st_mtime_ns])
        elif isinstance(value, str) and re.match(r"hf://.+@[0-9a-f]{40}/", value):
            known.append([value])
        elif isinstance(value, str):
            return None
        else:
            known.append(value if isinstance(value, int) else None)  # a label; the row groups of a file
    if not any(isinstance(item, list) for item in known):
        return None
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _record_file(job: FeatureJob, shard: int) -> Path:
    return job.data_file(shard).with_suffix(".json")


def _read_record(job: FeatureJob, shard: int) -> FeatureRecord:
    return FeatureRecord(**json.loads(_record_file(job, shard).read_text(encoding="utf-8")))


def _write_record(job: FeatureJob, shard: int, record: FeatureRecord) -> None:
    write_atomically(_record_file(job, shard), f"{json.dumps(asdict(record))}\n".encode())


__all__ = [
    "FEATURES",
    "FeatureJob",
    "FeatureRecord",
    "choose_shards",
    "compute_features",
    "read_records",
    "unpack_features",
]
