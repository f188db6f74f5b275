"""What labelling a data set has come to: numbers to print and to keep, a picture, a dataset card."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maws_hf.visualization import save_picture

from .label_shards import ShardRecord, Tally
from .vocabulary import LabelClass, Vocabulary

__all__ = ["LabelCounts", "LabellingReport", "SplitCounts", "dataset_card", "plot_frequencies"]

SHOWN = 10  # classes and dropped tags on the screen
REPORTED_DROPS = 100  # of each reason, in report.json
DROPS_HELD, TAGS_HELD = 50_000, 500  # different ones of each reason and of each synset, while shards are summed up
KEPT_TAGS = 8  # of a class, in the vocabulary

CARD = """---
pretty_name: {pretty_name}
configs:
- config_name: default
  version: {version}
  data_files:
{files}
---

# {name} with weak labels

Made by `scripts/build_wsp_labels.py` of `maws_hf`: the columns are those of {name}, plus `synsets`, the WordNet 3.0
noun synsets (ImageNet's ids) that the tags of a row stand for, each once, sorted. `vocabulary.json` names the
{classes} classes to train on, with their frequencies in the split {counted}; other synsets are to be ignored.

WordNet 3.0, Princeton University, 2006, https://wordnet.princeton.edu. The rows keep the licences of their authors.
"""


@dataclass(frozen=True)
class SplitCounts:
    """Rows of a split.

    Attributes:
        rows: read; `written` of them.
        without_tags: with no tag at all, `unreadable` of them because the value is missing or broken.
        cut: with so many tags that only the first were read.
        labels_per_row: rows with 0, 1, 2, and 3 or more labels of the vocabulary.
    """

    rows: int
    written: int
    without_tags: int
    unreadable: int
    cut: int
    labels_per_row: tuple[int, ...] = ()

    @classmethod
    def of(cls, records: Iterable[ShardRecord]) -> "SplitCounts":
        names = ("rows", "written", "without_tags", "unreadable", "cut")
        sums = Counter()
        for record in records:
            sums.update({name: getattr(record, name) for name in names})
        return cls(**{name: sums[name] for name in names})

    def with_labels(self, labels_per_written_row: Sequence[int]) -> "SplitCounts":
        none, *some = labels_per_written_row
        return replace(self, labels_per_row=(none + self.rows - self.written, *some))


@dataclass(frozen=True)
class LabelCounts:
    """Tags and labels of a split, all shards together.

    Attributes:
        synsets: images with each synset.
        tags: occurrences of tags; `labels` of them stand for a synset, the others are `dropped`, by reason.
        lower_bounds: for "labels" and "dropped", whether there were too many different tags to count them all; then
            `tags_of` or `dropped_tags` give lower bounds.
    """

    synsets: Counter[str]
    tags: int
    labels: int
    dropped: dict[str, int]
    lower_bounds: dict[str, bool]
    _tags_of: dict[str, Tally]
    _dropped_tags: dict[str, Tally]

    @classmethod
    def of(cls, records: Iterable[ShardRecord]) -> "LabelCounts":
        synsets, dropped, sums, bounds = Counter(), Counter(), Counter(), Counter()
        tags_of: dict[str, Tally] = {}
        dropped_tags: dict[str, Tally] = {}
        for record in records:
            synsets.update(record.synsets)
            dropped.update(record.dropped)
            sums.update(tags=record.tags, labels=record.labels)
            bounds.update(record.lower_bounds)
            for synset, tags in record.tags_of.items():
                tags_of.setdefault(synset, Tally(TAGS_HELD)).update(tags)
            for reason, tags in record.dropped_tags.items():
                dropped_tags.setdefault(reason, Tally(DROPS_HELD)).update(tags)
        lower_bounds = {kind: bounds[kind] > 0 for kind in ("labels", "dropped")}
        return cls(synsets, sums["tags"], sums["labels"], dict(dropped), lower_bounds, tags_of, dropped_tags)

    def tags_of(self, synset: str) -> tuple[tuple[str, int], ...]:
        """The most frequent tags that became this label, with their occurrences."""
        return tuple(self._tags_of[synset].most_common(KEPT_TAGS)) if synset in self._tags_of else ()

    def dropped_tags(self, reason: str, number: int) -> list[tuple[str, int]]:
        """The most frequent tags dropped for this reason, with their occurrences."""
        return self._dropped_tags[reason].most_common(number)


@dataclass(frozen=True)
class LabellingReport:
    """What lies in the output folder; `print(report)` shows what one wants to know first.

    Attributes:
        output_dir: where.
        vocabulary: the classes.
        splits: rows, by split; the first has made the vocabulary.
        counts: its tags and labels.
    """

    output_dir: Path
    vocabulary: Vocabulary
    splits: dict[str, SplitCounts]
    counts: LabelCounts

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`."""
        counts = self.counts
        return {
            "splits": {split: vars(rows) for split, rows in self.splits.items()},
            "synsets": len(counts.synsets),
            "classes": len(self.vocabulary),
            "min_count": self.vocabulary.min_count,
            "images_with_a_class": self.vocabulary.images,
            "tags": counts.tags,
            "labels": counts.labels,
            "dropped": counts.dropped,
            "dropped_tags": {reason: counts.dropped_tags(reason, REPORTED_DROPS) for reason in counts.dropped},
            "counts_of_tags_are_lower_bounds": counts.lower_bounds,
        }

    def __str__(self) -> str:
        counts, classes = self.counts, self.vocabulary.classes
        lines = [f"{'split':<10}{'rows':>12}{'written':>12}{'0 labels':>12}{'1':>12}{'2':>12}{'3 or more':>12}"]
        for split, rows in self.splits.items():
            numbers = (rows.rows, rows.written, *rows.labels_per_row)
            lines.append(f"{split:<10}" + "".join(f"{number:>12,}" for number in numbers))
            lines += [f"  {number:,} rows {what}" for what, number in _troubles(rows).items() if number]
        lines += [
            "",
            f"{counts.tags:,} tags, {counts.labels / max(1, counts.tags):.1%} of them are WordNet nouns",
            f"{len(counts.synsets):,} synsets: {len(classes):,} classes, {len(counts.synsets) - len(classes):,} cut "
            f"(on fewer than {self.vocabulary.min_count} images, or beyond --max_classes)",
            "",
            *_class_lines("most frequent classes", classes[:SHOWN]),
            "",
            *_class_lines("rarest classes", classes[SHOWN:][-SHOWN:]),
            "",
            "dropped tags, counts are lower bounds" if counts.lower_bounds["dropped"] else "dropped tags",
        ]
        for reason, number in sorted(counts.dropped.items(), key=lambda item: -item[1]):
            shown = ", ".join(f"{_short(tag)} {count:,}" for tag, count in counts.dropped_tags(reason, SHOWN))
            lines.append(f"  {reason:<14}{number:>12,}   {shown}")
        return "\n".join(lines)


def plot_frequencies(counts: Iterable[int], vocabulary: Vocabulary, picture_file: Path) -> None:
    """Images of every synset over its rank, both logarithmic, and where the vocabulary ends."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    falling = sorted(counts, reverse=True)
    axis.loglog(range(1, len(falling) + 1), falling, marker="." if len(falling) < 60 else None)
    axis.axhline(vocabulary.min_count, linestyle="--", linewidth=1, color="grey")
    axis.annotate(f"at least {vocabulary.min_count}", (1, vocabulary.min_count), va="bottom", color="grey")
    axis.axvline(len(vocabulary), linestyle=":", linewidth=1, color="grey")
    axis.annotate(f"{len(vocabulary)} classes ", (len(vocabulary), falling[0]), ha="right", va="top", color="grey")
    axis.set(xlabel="rank of the synset", ylabel="images")
    save_picture(lambda path: figure.savefig(path, dpi=120, format="png"), picture_file)


def dataset_card(name: str, report: LabellingReport, digests: Iterable[str]) -> str:
    """README.md: tells `datasets` which file belongs to which split.

    Its version follows from the files: `datasets` caches a folder by path and version, not by content.
    """
    version = int(hashlib.sha256("".join(digests).encode()).hexdigest()[:7], 16)
    return CARD.format(
        pretty_name=_quoted(f"{name} with weak labels"),
        name=name,
        version=f"1.0.{version}",
        files="\n".join(
            f"  - split: {_quoted(split)}\n    path: {_quoted(f'data/{split}-*.parquet')}" for split in report.splits
        ),
        classes=len(report.vocabulary),
        counted=f"`{next(iter(report.splits))}`",
    )


def _quoted(text: str) -> str:
    """A string of YAML whatever it holds: those of JSON are."""
    return json.dumps(text, ensure_ascii=False)  # YAML does not join escaped halves of an emoji


def _troubles(counts: SplitCounts) -> Mapping[str, int]:
    return {
        "had no tags": counts.without_tags - counts.unreadable,
        "had no readable value": counts.unreadable,
        "had too many tags to read them all": counts.cut,
    }


def _class_lines(title: str, classes: Sequence[LabelClass]) -> list[str]:
    lines = [f"{title:<40}{'images':>10}"]
    for label in classes:
        lines.append(f"  {label.id}  {_short(label.name, 24):<26}{label.count:>10,}   {_short(label.gloss, 60)}")
    return lines


def _short(text: str, length: int = 24) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
