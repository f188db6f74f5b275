"""From tags to a data set for weakly supervised pretraining: rows with synsets, and the vocabulary of classes.

Every shard of the input becomes a shard of the output, in as many processes as wanted and with the same result for
any number. The shards hold synset ids, not class indices, so that another `min_count` only builds the vocabulary
again. The output folder:

    data/<split>-00000-of-000NN.parquet   the rows with their own columns and `synsets`
    records/                              what each shard holds; a killed run continues from here
    labelling.json                        the options that all of it was made with
    vocabulary.json                       the classes, from the first split
    report.json, frequencies.png          what to look at
    README.md                             the dataset card, written last
"""

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset

from ..whole_files import remove_leftovers, to_json, write_atomically
from .label_report import LabelCounts, LabellingReport, SplitCounts, dataset_card, plot_frequencies
from .label_shards import (
    SYNSETS,
    LabelRules,
    ShardJob,
    ShardRecord,
    is_list,
    is_text,
    label_shard,
    load_mapper,
    read_record,
)
from .sources import DataSourceError, find_image_column, lies_within, open_stream
from .vocabulary import LabelClass, Vocabulary
from .wordnet import WordNet, find_wordnet

__all__ = ["LabellingError", "LabellingReport", "label_dataset"]

OPTIONS = "labelling.json"
# Part of the recorded options: raise it with any change to how tags are read, so that labels are not mixed.
RULES = 2


class LabellingError(RuntimeError):
    """The data set cannot be labelled as asked; the message names what is in the way."""


def label_dataset(
    dataset_name: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    dataset_config_name: str | None = None,
    splits: Sequence[str] = ("train",),
    tags_column: str | None = None,
    text_column: str | None = None,
    tag_separator: str | None = None,
    image_column: str | None = None,
    min_count: int = 10,
    max_classes: int | None = None,
    keep_unlabelled: bool = False,
    num_proc: int = 1,
    max_shards: int = 1024,
    wordnet_dir: str | os.PathLike[str] | None = None,
) -> LabellingReport:
    """Label every split, count the first, and write the vocabulary.

    The same call continues a run that was killed. A finished folder is verified, and other values of `min_count` and
    `max_classes` build its vocabulary again; more splits are added.

    Args:
        dataset_name: folder, glob or Hub id, as for `open_stream`; images are not needed and not decoded.
        output_dir: gets the labelled data set; outside of `dataset_name`.
        dataset_config_name: configuration of a Hub data set that has several.
        splits: parts to label; the vocabulary comes from the first.
        tags_column: a column with a list of tags, or with a string to cut at `tag_separator`.
        text_column: a column with text, or a list of texts, whose #hashtags are taken. Both columns may be given.
        tag_separator: what stands between the tags of a string.
        image_column: column of the images; found by itself if there is just one.
        min_count: images that a synset must be on to become a class.
        max_classes: keep so many classes, the most frequent.
        keep_unlabelled: write rows without synsets, too.
        num_proc: processes.
        max_shards: of the output, for each split; where the input has more, neighbours are joined.
        wordnet_dir: WordNet 3.0; see `find_wordnet` for where it is looked for.

    Raises:
        LabellingError: `output_dir` holds something else, or nothing is left to be a class.
        DataSourceError: the data set cannot be opened, or a column is absent or of another type.
        WordNetError, CorpusError: WordNet is not there and cannot be fetched.
        ValueError: a number is out of range.
    """
    source, output_dir = os.fspath(dataset_name), Path(output_dir)
    _check_numbers(min_count=min_count, max_classes=max_classes, num_proc=num_proc, max_shards=max_shards)
    if not splits or len(set(splits)) < len(splits):
        raise ValueError(f"--dataset_split {' '.join(splits)} is not possible: name each split once")
    if tag_separator == "":
        raise ValueError("--tag_separator is empty: give what stands between the tags of a string, as in ';'")
    rules = LabelRules(tags_column, text_column, tag_separator, keep_unlabelled)
    files = _digest_of_files(source)
    # What may be published with the data: no path of this computer.
    name = source if files is None else Path(source).resolve().name
    options = {"rules": RULES, "dataset_name": name, "dataset_config_name": dataset_config_name}
    options |= {"image_column": image_column, **asdict(rules), "dataset_files": files}
    _check_output(output_dir, source, options)

    jobs = []
    wordnet = find_wordnet(wordnet_dir)
    for split in splits:
        dataset = open_stream(
            source, split=split, name=dataset_config_name, image_column=image_column, require_image=False
        )
        _check_columns(dataset, rules)
        shards = min(dataset.num_shards, max_shards)
        image = _image_column(dataset, image_column)
        jobs.append(ShardJob(dataset, source, split, shards, image, rules, output_dir, wordnet))
    _no_strangers(output_dir, jobs)
    finished = (output_dir / "README.md").exists()
    kept = {job.data_file(shard) for job in jobs for shard in range(job.shards) if job.data_file(shard).exists()}
    for folder in ("data", "records"):
        (output_dir / folder).mkdir(parents=True, exist_ok=True)
    write_atomically(output_dir / OPTIONS, to_json(options))
    load_mapper(wordnet)  # before there are processes, which then share it
    for job in jobs:
        _map_shards(job, _label_one, num_proc, f"{job.split}: labelling shards")

    counted = LabelCounts.of(_records(jobs[0]))
    if not counted.synsets:
        # An option is wrong: what it has left must not stand in the way of the right one.
        _remove_labels(jobs, kept if finished else set(), options_too=not finished)
        raise _no_nouns(counted, rules)
    report = _count(jobs, counted, min_count, max_classes, num_proc)
    card = dataset_card(_title(source, name), report, map(_digest_of_records, jobs))
    write_atomically(output_dir / "README.md", card.encode())
    for folder in (output_dir, output_dir / "data", output_dir / "records"):
        remove_leftovers(folder)
    return report


# ---------------------------------------------------------------- labels and classes


def _label_one(row: dict[str, int], job: ShardJob) -> None:
    label_shard(row["shard"], job)


def _count(
    jobs: Sequence[ShardJob], counted: LabelCounts, min_count: int, max_classes: int | None, num_proc: int
) -> LabellingReport:
    """Everything that is counted, with the vocabulary of the first job, written to the output folder."""
    first, output_dir = jobs[0], jobs[0].output_dir
    wordnet = load_mapper(first.wordnet_dir).wordnet
    splits = {job.split: SplitCounts.of(_records(job)) for job in jobs}
    frequent = [(synset, count) for synset, count in counted.synsets.items() if count >= min_count]
    frequent = sorted(frequent, key=lambda item: (-item[1], item[0]))[:max_classes]
    if not frequent:
        raise _no_classes(counted, min_count, wordnet)

    ids = [synset for synset, _ in frequent]
    rarest: dict[str, list[int]] = {}
    for job in jobs:
        rarest[job.split], labels_per_row = _count_classes(job, ids, num_proc)
        splits[job.split] = splits[job.split].with_labels(labels_per_row)
    classes = [
        LabelClass(
            id=synset,
            name=wordnet.names(synset)[0],
            gloss=wordnet.gloss(synset),
            count=count,
            rarest=last,
            tags=counted.tags_of(synset),
        )
        for (synset, count), last in zip(frequent, rarest[first.split], strict=True)
    ]
    vocabulary = Vocabulary(images=sum(rarest[first.split]), min_count=min_count, classes=tuple(classes))
    report = LabellingReport(output_dir, vocabulary, splits, counted)
    vocabulary.save(output_dir / "vocabulary.json")
    write_atomically(output_dir / "report.json", to_json(report.to_json()))
    plot_frequencies(counted.synsets.values(), vocabulary, output_dir / "frequencies.png")
    return report


def _count_classes(job: ShardJob, ids: list[str], num_proc: int) -> tuple[list[int], list[int]]:
    """Rows whose rarest label is each class, and rows with 0, 1, 2 and 3 or more labels, of all that were written."""
    sums = _map_shards(job, _count_some, num_proc, f"{job.split}: counting classes", batched=True, ids=ids)
    rarest, per_row = (np.sum(sums.with_format("numpy")[name], axis=0) for name in ("rarest", "per_row"))
    return rarest.tolist(), per_row.tolist()


def _count_some(rows: dict[str, list[int]], job: ShardJob, ids: list[str]) -> dict[str, list[np.ndarray]]:
    rarest, per_row = np.zeros(len(ids), np.int64), np.zeros(4, np.int64)
    value_set = pa.array(ids)
    for shard in rows["shard"]:
        for batch in pq.ParquetFile(job.data_file(shard)).iter_batches(65_536, columns=[SYNSETS]):
            synsets = batch.column(0)
            places = pc.index_in(synsets.flatten(), value_set=value_set)
            known = places.is_valid().to_numpy(zero_copy_only=False)
            row = pc.list_parent_indices(synsets).to_numpy(zero_copy_only=False)[known]
            place = places.drop_null().to_numpy(zero_copy_only=False)
            last = np.full(len(synsets), -1)
            np.maximum.at(last, row, place)
            rarest += np.bincount(last[last >= 0], minlength=len(ids))
            per_row += np.bincount(np.bincount(row, minlength=len(synsets)).clip(max=3), minlength=4)
    return {"rarest": [rarest], "per_row": [per_row]}


def _map_shards(
    job: ShardJob, function: Callable, num_proc: int, description: str, *, batched: bool = False, **arguments
) -> Dataset:
    """`function` on every shard number, in `num_proc` processes of `datasets`, or in this one."""
    processes = min(num_proc, job.shards)
    return Dataset.from_dict({"shard": range(job.shards)}).map(
        function,
        fn_kwargs={"job": job, **arguments},
        num_proc=processes if processes > 1 else None,
        batched=batched,
        batch_size=max(1, job.shards // (4 * processes)),
        remove_columns=["shard"] if batched else None,
        load_from_cache_file=False,
        new_fingerprint=hashlib.sha256(os.urandom(16)).hexdigest()[:16],  # nothing is cached: no need to hash the job
        desc=description,
    )


def _records(job: ShardJob) -> Iterator[ShardRecord]:
    return (read_record(job, shard) for shard in range(job.shards))


def _digest_of_records(job: ShardJob) -> str:
    return "".join(record.sha256 for record in _records(job))


def _no_classes(counted: LabelCounts, min_count: int, wordnet: WordNet) -> LabellingError:
    synset, count = min(counted.synsets.items(), key=lambda item: (-item[1], item[0]))
    name = wordnet.names(synset)[0]
    return LabellingError(f"no synset is on {min_count} images, {name} is on most, {count}: lower --min_count")


def _no_nouns(counted: LabelCounts, rules: LabelRules) -> LabellingError:
    tags = [(count, tag, reason) for reason in counted.dropped for tag, count in counted.dropped_tags(reason, 5)]
    shown = ", ".join(f"{tag[:40]} ({reason}, {count} times)" for count, tag, reason in sorted(tags, reverse=True)[:8])
    separated = f", and does --tag_separator {rules.tag_separator!r} stand between its tags"
    return LabellingError(
        f"no tag is a WordNet noun; the most frequent of {counted.tags}: {shown or 'there are none at all'}: is it "
        f"the right column{separated if rules.tag_separator else ''}?"
    )


def _remove_labels(jobs: Sequence[ShardJob], kept: set[Path], *, options_too: bool) -> None:
    """Take back the shards that are not `kept`; folders go where nothing is left in them."""
    output_dir = jobs[0].output_dir
    for job in jobs:
        for shard in range(job.shards):
            if job.data_file(shard) not in kept:
                job.record_file(shard).unlink(missing_ok=True)
                job.data_file(shard).unlink(missing_ok=True)
    if options_too:
        (output_dir / OPTIONS).unlink(missing_ok=True)
    for folder in (output_dir / "data", output_dir / "records", output_dir):
        with contextlib.suppress(OSError):  # something else lies there
            folder.rmdir()


def _title(source: str, name: str) -> str:
    """What the dataset card calls the data set: for a glob, the folder that holds the files."""
    if os.path.exists(source) or not glob.has_magic(source):
        return name
    folders = {os.path.dirname(os.path.abspath(path)) for path in glob.glob(source, recursive=True)}
    return os.path.basename(os.path.commonpath(folders)) if folders else name


# ---------------------------------------------------------------- refusals


def _check_numbers(**options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value} is not possible: it must be at least 1")


def _check_columns(dataset: IterableDataset, rules: LabelRules) -> None:
    columns = dataset.features or {}
    if rules.tags_column is None and rules.text_column is None:
        raise DataSourceError(
            f"where are the tags? name their column with --tags_column_name, or one of text with #hashtags with "
            f"--text_column_name; there are {', '.join(columns)}"
        )
    if rules.tag_separator is not None and rules.tags_column is None:
        raise DataSourceError(
            "--tag_separator cuts the strings of --tags_column_name only: name that column, or leave the separator out"
        )
    if SYNSETS in columns:
        raise DataSourceError(f"the data set has a column {SYNSETS!r} already: rename it, or train on it as it is")
    for option, column in (("tags_column_name", rules.tags_column), ("text_column_name", rules.text_column)):
        if column is None:
            continue
        if column not in columns:
            raise DataSourceError(f"--{option} {column}: no such column, there are {', '.join(columns)}")
        kind = dataset.features.arrow_schema.field(column).type
        if not is_text(kind) and not (is_list(kind) and is_text(kind.value_type)):
            raise DataSourceError(f"--{option} {column}: it holds {kind}, a string or a list of strings is wanted")
        if option == "tags_column_name" and is_list(kind) and rules.tag_separator is not None:
            raise DataSourceError(f"--{option} {column}: it holds lists, which are not cut: leave out --tag_separator")
        if option == "tags_column_name" and is_text(kind) and rules.tag_separator is None:
            raise DataSourceError(
                f"--{option} {column}: it holds strings; say what stands between their tags with --tag_separator, or "
                "take their #hashtags with --text_column_name"
            )


def _image_column(dataset: IterableDataset, image_column: str | None) -> str | None:
    try:
        return find_image_column(dataset, image_column)
    except DataSourceError:
        return None  # none is needed


def _check_output(output_dir: Path, source: str, options: dict[str, Any]) -> None:
    """Raises LabellingError if the folder is part of the data set, or was made with other options."""
    if lies_within(output_dir, source):
        raise LabellingError(f"{output_dir} lies in {source} and would become part of it: choose another --output_dir")
    file = output_dir / OPTIONS
    if not file.exists():
        return
    try:
        theirs = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise LabellingError(f"{file} is not what was written there ({error}): delete {output_dir}") from error
    for name in {**options, **theirs}:
        if theirs.get(name) != options.get(name):
            raise LabellingError(
                f"{output_dir} was made with {name}={theirs.get(name)!r}, not {options.get(name)!r}: choose another "
                "--output_dir, or delete that one"
            )


def _no_strangers(output_dir: Path, jobs: Sequence[ShardJob]) -> None:
    expected = {job.data_file(shard) for job in jobs for shard in range(job.shards)}
    for file in sorted((output_dir / "data").glob("*.parquet")):
        split, *_, shards = file.stem.rsplit("-", 3)
        now = {job.split: job.shards for job in jobs}.get(split)
        if now is not None and shards.isdecimal() and int(shards) != now:
            raise LabellingError(
                f"{output_dir} holds the split {split} in {int(shards)} shards and would now get {now}: give "
                "--max_shards as before, or choose another --output_dir"
            )
        if file not in expected:
            raise LabellingError(
                f"{file} is not one of the shards to be made but would load with them: name its split, too, or choose "
                "another --output_dir"
            )


def _digest_of_files(source: str) -> str | None:
    """Changes with the names and sizes of the files of a local data set; None for the Hub."""
    if os.path.isdir(source):
        files = sorted(path for path in Path(source).rglob("*") if path.suffix != ".md" and path.is_file())
        named = [(path.relative_to(source).as_posix(), path.stat().st_size) for path in files]
        named = [(name, size) for name, size in named if not name.startswith(".") and "/." not in name]
    else:
        named = [(os.path.basename(path), os.path.getsize(path)) for path in sorted(glob.glob(source, recursive=True))]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest() if named else None
