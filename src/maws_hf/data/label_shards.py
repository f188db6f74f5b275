"""One shard of a labelled data set: rows in, rows with synsets out, and a record of what was counted.

A shard depends on its rows and the rules only, never on other shards or on the process that makes it. It is written
beside and renamed, then its record is; a shard whose record and checksum agree is finished and never made again.
"""

import heapq
import json
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import fsspec.asyn
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features, Image, IterableDataset, LargeList, List, Value
from datasets.table import table_cast

from ..whole_files import sha256_of, temporary_beside, write_atomically
from .hashtags import LONGEST_RAW_TAG, DropReason, MappedTag, TagMapper, extract_hashtags
from .wordnet import WordNet

__all__ = [
    "LabelRules",
    "ShardJob",
    "ShardRecord",
    "Tally",
    "is_finished",
    "is_list",
    "is_text",
    "label_shard",
    "load_mapper",
    "read_record",
]

SYNSETS = "synsets"
READ_FROM = ("__url__", "__local_path__")  # what readers of tar shards add: where these lie here, nothing of the rows
BATCH_ROWS = 256
GROUP_ROWS, GROUP_BYTES = 10_000, 32 << 20  # a row group is closed at either: what a reader holds at once
MOST_TAGS = 1000  # of a row; the rest is not read
LONGEST_TEXT = 100_000  # characters of a caption; the rest is not read
TALLIED = 50_000  # distinct tags of a shard that are surely counted, labels and dropped ones each
RECORDED_TAGS, RECORDED_DROPS = 16, 500  # most frequent tags in a record: of a synset, of a reason


class Tally:
    """How often things occur, in bounded memory even if no two are alike.

    When there are more than `2 * limit` different things, the rarest are forgotten: all that came once, if that is not
    enough all that came twice, and so on until `limit` are left or fewer. What is forgotten and comes back starts at
    0, so from then on (`pruned`) counts are lower bounds.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.counts: Counter = Counter()
        self.pruned = False

    def update(self, things: Iterable[Hashable]) -> None:
        self.counts.update(things)
        if len(self.counts) > 2 * self.limit:
            forgotten, least = 0, 0
            of_count = Counter(self.counts.values())
            while len(self.counts) - forgotten > self.limit:
                least += 1
                forgotten += of_count[least]
            self.counts = Counter({thing: count for thing, count in self.counts.items() if count > least})
            self.pruned = True

    def most_common(self, number: int | None = None) -> list[tuple[Any, int]]:
        """Things and counts, most frequent first, equals by their order."""
        number = len(self.counts) if number is None else number
        return heapq.nsmallest(number, self.counts.items(), key=lambda item: (-item[1], item[0]))


@dataclass(frozen=True)
class LabelRules:
    """Where tags are found and what is written.

    Attributes:
        tags_column: a list of tags, or a string to be cut at `tag_separator`.
        text_column: a string, or a list of strings, with #hashtags.
        tag_separator: what stands between the tags of a string.
        keep_unlabelled: write rows without any synset, too.
    """

    tags_column: str | None = None
    text_column: str | None = None
    tag_separator: str | None = None
    keep_unlabelled: bool = False


@dataclass(frozen=True)
class ShardJob:
    """All shards of one split; picklable. `source` is where the data set lies, as `open_stream` takes it."""

    dataset: IterableDataset
    source: str
    split: str
    shards: int
    image_column: str | None
    rules: LabelRules
    output_dir: Path
    wordnet_dir: Path

    def data_file(self, shard: int) -> Path:
        return self.output_dir / "data" / f"{self.split}-{shard:05d}-of-{self.shards:05d}.parquet"

    def record_file(self, shard: int) -> Path:
        return self.output_dir / "records" / f"{self.data_file(shard).stem}.json"

    @property
    def features(self) -> Features:
        """Of the rows that are written: the data set's own and `synsets`."""
        kinds = {name: kind for name, kind in self.dataset.features.items() if name not in READ_FROM}
        kinds = {name: _without_views(kind) for name, kind in kinds.items()}
        images = {name for name, kind in kinds.items() if name == self.image_column or isinstance(kind, Image)}
        features = {name: Image() if name in images else kind for name, kind in kinds.items()}
        return Features(features | {SYNSETS: List(Value("string"))})


@dataclass
class ShardRecord:
    """What one finished shard holds; JSON beside it.

    Attributes:
        rows: read; `written` of them have labels, or were kept without.
        without_tags: rows with no tag at all, `unreadable` of them because the value is missing or broken.
        cut: rows of which only the first `MOST_TAGS` tags or `LONGEST_TEXT` characters were read.
        tags: occurrences of tags, `labels` of them with a synset; the others by reason in `dropped`.
        synsets: images with each synset.
        tags_of: the most frequent tags of each synset with their occurrences.
        dropped_tags: the most frequent tags dropped for each reason.
        lower_bounds: there were too many distinct tags to count them all: which of the two above are lower bounds.
        bytes, sha256: of the data file.
    """

    rows: int = 0
    written: int = 0
    without_tags: int = 0
    unreadable: int = 0
    cut: int = 0
    tags: int = 0
    labels: int = 0
    synsets: dict[str, int] = field(default_factory=dict)
    tags_of: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    dropped_tags: dict[str, dict[str, int]] = field(default_factory=dict)
    lower_bounds: dict[str, bool] = field(default_factory=dict)
    bytes: int = 0
    sha256: str = ""


@cache
def load_mapper(wordnet_dir: Path) -> TagMapper:
    """One mapper a process; processes forked after the first call share it."""
    return TagMapper(WordNet.load(wordnet_dir))


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow column of this type holds strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether an Arrow column of this type holds lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def read_record(job: ShardJob, shard: int) -> ShardRecord:
    """The record of a finished shard."""
    return ShardRecord(**json.loads(job.record_file(shard).read_text(encoding="utf-8")))


def is_finished(job: ShardJob, shard: int) -> bool:
    """Whether a shard is on disk as it was recorded."""
    file = job.data_file(shard)
    try:
        record = read_record(job, shard)
        return file.stat().st_size == record.bytes and sha256_of(file) == record.sha256
    except (OSError, ValueError, TypeError):
        return False  # missing, torn or not ours: the shard is made again


def label_shard(shard: int, job: ShardJob) -> None:
    """Write one shard and its record, unless both are there."""
    if is_finished(job, shard):
        return
    fsspec.asyn.reset_lock()  # a lock inherited through fork hangs remote reads
    counts = _Counts()
    mapper = load_mapper(job.wordnet_dir)
    batches = _read_batches(job, job.dataset.shard(num_shards=job.shards, index=shard))
    labelled = (_label_batch(batch, job.rules, mapper, counts) for batch in batches)
    counts.record.bytes, counts.record.sha256 = _write_parquet(job.data_file(shard), labelled, job.features)
    text = json.dumps(vars(counts.finish()), ensure_ascii=False)
    write_atomically(job.record_file(shard), f"{text}\n".encode())


def _read_batches(job: ShardJob, dataset: IterableDataset) -> Iterator[pa.Table]:
    """Arrow tables as they are stored, where they are; rows put into tables otherwise (tar shards, image files)."""
    if getattr(dataset._ex_iterable, "iter_arrow", None):  # asked for tables, datasets guesses the types of rows
        for table in dataset.with_format("arrow").iter(BATCH_ROWS):
            kinds = {field.name: _arrow_without_views(field.type) for field in table.schema}
            yield table if list(kinds.values()) == table.schema.types else table.cast(pa.schema(kinds))
    else:
        schema = dataset.features.arrow_schema
        names = [name for name, kind in job.features.items() if isinstance(kind, Image)]
        if READ_FROM[0] in schema.names:
            names = []  # an image's path is the name of its member
        for batch in dataset.iter(BATCH_ROWS):
            images = {name: [_named_within(job.source, image) for image in batch[name]] for name in names}
            yield pa.Table.from_pydict({**batch, **images}, schema=schema)


def _named_within(source: str, image: Any) -> Any:
    """An image file by its path in the data set's folder, else by its name: no path of this computer is published."""
    if not isinstance(image, dict) or image.get("path") is None:
        return image
    path = os.path.relpath(image["path"], source)
    return {**image, "path": os.path.basename(path) if path.startswith(os.pardir) else path}


def _arrow_without_views(kind: pa.DataType) -> pa.DataType:
    """Strings instead of string views, whose rows Arrow cannot choose from; alone or in lists, as tags are."""
    if pa.types.is_string_view(kind):
        return pa.string()
    if is_list(kind) and pa.types.is_string_view(kind.value_type):
        return pa.large_list(pa.string()) if pa.types.is_large_list(kind) else pa.list_(pa.string())
    return kind


def _without_views(kind: Any) -> Any:
    """The same, as `datasets` names types."""
    if kind == Value("string_view"):
        return Value("string")
    if isinstance(kind, List | LargeList) and kind.feature == Value("string_view"):
        return type(kind)(Value("string"))
    return kind


class _Counts:
    """What is counted while a shard is read."""

    def __init__(self):
        self.record = ShardRecord()
        self.synsets: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.mapped, self.dropped = Tally(TALLIED), Tally(TALLIED)

    def finish(self) -> ShardRecord:
        record = self.record
        record.synsets = dict(sorted(self.synsets.items()))
        record.dropped = {reason.value: self.reasons[reason] for reason in DropReason if self.reasons[reason]}
        record.tags = record.labels + sum(record.dropped.values())
        record.lower_bounds = {"labels": self.mapped.pruned, "dropped": self.dropped.pruned}
        for (synset, _, tag), count in self.mapped.most_common():
            tags = record.tags_of.setdefault(synset, {})
            if len(tags) < RECORDED_TAGS:
                tags[tag] = count
        by_reason: dict[str, Tally] = {}
        for (_, reason, tag), count in self.dropped.counts.items():
            by_reason.setdefault(reason.value, Tally(TALLIED)).counts[tag] += count
        record.dropped_tags = {
            reason: dict(by_reason[reason].most_common(RECORDED_DROPS)) for reason in record.dropped
        }
        return record


def _label_batch(table: pa.Table, rules: LabelRules, mapper: TagMapper, counts: _Counts) -> pa.Table:
    """The rows that are kept, with their synsets; images stay where they are, in Arrow's memory."""
    record, rows = counts.record, []
    mapped: list[MappedTag] = []
    dropped: list[MappedTag] = []
    for tags in _tags_of_rows(table, rules, record):
        synsets = set()
        for tag in tags:
            result = mapper(tag)
            if result.synset is None:
                dropped.append(result)
            else:
                synsets.add(result.synset)
                mapped.append(result)
        rows.append(sorted(synsets))
    record.rows += len(rows)
    record.labels += len(mapped)
    counts.synsets.update(chain.from_iterable(rows))
    counts.reasons.update(result.reason for result in dropped)
    counts.mapped.update(mapped)
    counts.dropped.update(dropped)

    table = table.select([name for name in table.column_names if name not in READ_FROM])
    table = table.append_column(SYNSETS, pa.array(rows, pa.list_(pa.string())))
    if not rules.keep_unlabelled:
        table = table.filter(pa.array(map(bool, rows), pa.bool_()))
    record.written += table.num_rows
    return table


def _tags_of_rows(table: pa.Table, rules: LabelRules, record: ShardRecord) -> Iterator[list[str]]:
    """The tags of each row; what is missing, broken or absurd is counted and never raises."""
    columns = []
    if rules.tags_column is not None:
        columns.append([(value, _listed_tags) for value in _values(table.column(rules.tags_column))])
    if rules.text_column is not None:
        columns.append([(value, _hashtags) for value in _values(table.column(rules.text_column))])
    for row in zip(*columns, strict=True):
        record.unreadable += all(value is None for value, _ in row)
        tags, cut = [], False
        for value, read in row:
            if value is not None:
                found, shortened = read(value, rules)
                tags += found
                cut |= shortened
        record.without_tags += not tags
        record.cut += cut or len(tags) > MOST_TAGS
        yield tags[:MOST_TAGS]


def _listed_tags(value: str | list, rules: LabelRules) -> tuple[list[str], bool]:
    """Tags of a list or of a separated string, and whether the value was too long to be read whole."""
    if isinstance(value, str):
        tags = [tag for tag in value[:LONGEST_TEXT].split(rules.tag_separator) if tag.strip()]
        return tags, len(value) > LONGEST_TEXT
    # A tag too long to count is cut to a length at which it still is, and is then quick to pass over.
    return [tag[: LONGEST_RAW_TAG + 1] if isinstance(tag, str) else "" for tag in value], len(value) > MOST_TAGS


def _hashtags(value: str | list, _: LabelRules) -> tuple[list[str], bool]:
    text = value if isinstance(value, str) else "\n".join(part for part in value if isinstance(part, str))
    return extract_hashtags(text[:LONGEST_TEXT]), len(text) > LONGEST_TEXT


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Python values; None where there is none or it was no UTF-8."""
    if is_list(column.type):
        # Lists of a fixed size would be filled up to this one.
        column = pc.list_slice(column, 0, MOST_TAGS + 1, return_fixed_size_list=False)
    return column.to_pylist()


def _write_parquet(path: Path, tables: Iterable[pa.Table], features: Features) -> tuple[int, str]:
    """Size and checksum of the file. Its schema carries `datasets`' description of the columns."""
    schema = features.arrow_schema
    temporary = temporary_beside(path)
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        group: list[pa.Table] = []
        for table in filter(len, tables):  # Arrow casts no table whose rows were all left out
            group.append(table_cast(table, schema))
            rows = sum(part.num_rows for part in group)
            if rows >= GROUP_ROWS or sum(part.nbytes for part in group) >= GROUP_BYTES:
                writer.write_table(pa.concat_tables(group), row_group_size=rows)
                group = []
        if rows := sum(part.num_rows for part in group):
            writer.write_table(pa.concat_tables(group), row_group_size=rows)
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    size, digest = temporary.stat().st_size, sha256_of(temporary)
    temporary.replace(path)
    return size, digest
