"""Labelling a data set: the numbers equal those counted by hand, whatever happens on the way."""

import io
import json
import os
import random
import runpy
import shutil
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset, Features, Image, List, Value
from leftovers import temporary_of
from matplotlib.figure import Figure
from tiny import draw_image

from maws_hf.data import label_shards
from maws_hf.data.label_report import LabelCounts, LabellingReport, SplitCounts, plot_frequencies
from maws_hf.data.label_shards import ShardRecord, Tally, load_mapper
from maws_hf.data.labelling import LabellingError, label_dataset
from maws_hf.data.sources import DataSourceError, open_stream
from maws_hf.data.vocabulary import LabelClass, Vocabulary
from maws_hf.data.wordnet import WordNetError, find_wordnet

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_wsp_labels.py"
TAGS = [
    "dog",
    "Dogs",
    "GoldenRetriever",
    "cat",
    "🐱",
    "crane",
    "tree",
    "new york",
    "selfie",
    "犬",
    "me",
    "2020",
    "cafés",
]
DOG, CAT = "n02084071", "n02121620"


def write_shards(folder: Path, rows: list[dict], shards: int, features: Features | None = None, split="train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        columns = {name: [row[name] for row in rows[shard::shards]] for name in rows[0]}
        dataset = Dataset.from_dict(columns, features=features)
        dataset.to_parquet(str(folder / f"{split}-{shard:05d}.parquet"))
    return folder


def tagged_rows(count: int, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(TAGS))]
    return [{"key": f"{i:04d}", "tags": rng.choices(TAGS, weights, k=rng.randint(0, 5))} for i in range(count)]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return tagged_rows(200)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, rows) -> Path:
    return write_shards(tmp_path_factory.mktemp("source") / "tagged", rows, shards=5)


def label(source: Path, output_dir: Path, **options):
    return label_dataset(source, output_dir, **{"tags_column": "tags", "min_count": 3} | options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def labelled(folder: Path, split: str = "train") -> list[dict]:
    return list(open_stream(folder, split=split, require_image=False))


@pytest.fixture(scope="module")
def done(source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "done"
    label(source, folder)
    return folder


# ---------------------------------------------------------------- what comes out


def test_counts_equal_those_made_by_hand(rows, source, done):
    mapper = load_mapper(find_wordnet())
    synsets = {row["key"]: sorted({mapper(tag).synset for tag in row["tags"]} - {None}) for row in rows}
    counts = Counter(synset for labels in synsets.values() for synset in labels)
    vocabulary = Vocabulary.load(done / "vocabulary.json")

    order = sorted((synset for synset in counts if counts[synset] >= 3), key=lambda synset: (-counts[synset], synset))
    assert [label.id for label in vocabulary.classes] == order
    assert [label.count for label in vocabulary.classes] == [counts[synset] for synset in order]
    known = [[order.index(synset) for synset in labels if synset in order] for labels in synsets.values()]
    rarest = Counter(max(places) for places in known if places)
    assert [label.rarest for label in vocabulary.classes] == [rarest[place] for place in range(len(order))]
    assert vocabulary.images == sum(map(bool, known))

    assert {row["key"]: row["synsets"] for row in labelled(done)} == {k: v for k, v in synsets.items() if v}
    report = json.loads((done / "report.json").read_text(encoding="utf-8"))
    lengths = Counter(min(len(places), 3) for places in known)
    assert report["splits"]["train"]["labels_per_row"] == [lengths[number] for number in range(4)]
    assert report["splits"]["train"]["rows"] == len(rows)
    assert report["splits"]["train"]["without_tags"] == sum(not row["tags"] for row in rows)
    dropped = Counter(mapper(tag).reason for row in rows for tag in row["tags"])
    assert report["dropped"] == {reason: number for reason, number in dropped.items() if reason}
    assert report["labels"] == dropped[None]
    assert dict(report["dropped_tags"]["unknown"]) == {"selfie": dropped["unknown"]}
    assert report["counts_of_tags_are_lower_bounds"] == {"labels": False, "dropped": False}


def test_the_plot_shows_falling_counts_and_where_the_vocabulary_ends(tmp_path, monkeypatch):
    figures = []

    class Kept(Figure):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            figures.append(self)

    monkeypatch.setattr("matplotlib.figure.Figure", Kept)
    classes = (LabelClass(DOG, "dog", "", 5, 5), LabelClass(CAT, "cat", "", 3, 3))
    plot_frequencies([1, 5, 3], Vocabulary(images=8, min_count=3, classes=classes), tmp_path / "frequencies.png")
    curve, least, end = figures[0].axes[0].lines
    assert curve.get_xydata().tolist() == [[1, 5], [2, 3], [3, 1]]
    assert list(least.get_ydata()) == [3, 3]
    assert list(end.get_xdata()) == [2, 2]


def test_tags_of_one_synset_are_one_class(rows, done):
    classes = {label.id: label for label in Vocabulary.load(done / "vocabulary.json").classes}
    occurrences = Counter(tag for row in rows for tag in row["tags"])
    assert dict(classes[DOG].tags) == {"dog": occurrences["dog"], "dogs": occurrences["Dogs"]}
    assert dict(classes[CAT].tags) == {"cat": occurrences["cat"] + occurrences["🐱"]}
    assert (classes[DOG].name, classes[DOG].gloss[:12]) == ("dog", "a member of ")


def test_the_report_shows_shares_troubles_and_what_was_dropped_most():
    record = ShardRecord(
        **{"rows": 100, "written": 60, "without_tags": 30, "unreadable": 10, "cut": 4, "tags": 200, "labels": 50},
        synsets={DOG: 40, CAT: 20, "n13104059": 1},
        dropped={"too_long": 20, "unknown": 130},
        dropped_tags={"too_long": {"x" * 30: 20}, "unknown": {"omg": 100, "lol": 30}},
        lower_bounds={"labels": False, "dropped": False},
    )
    ids = [DOG, CAT, *(f"n9999999{number}" for number in range(10))]
    classes = tuple(LabelClass(id, f"class {id}", "", 20 - place, 5) for place, id in enumerate(ids))
    report = LabellingReport(
        Path("out"),
        Vocabulary(images=60, min_count=2, classes=classes),
        {"train": SplitCounts.of([record]).with_labels([1, 40, 15, 4])},
        LabelCounts.of([record]),
    )
    lines = str(report).splitlines()
    assert lines[1].split() == ["train", "100", "60", "41", "40", "15", "4"]
    for line in (
        "  20 rows had no tags",
        "  10 rows had no readable value",
        "200 tags, 25.0% of them are WordNet nouns",
    ):
        assert line in lines
    ends = [line.split()[0] for line in lines if line.startswith("  n")]
    assert ends == ids  # the first ten and the two others, none twice
    assert [line.split()[:2] for line in lines[-2:]] == [["unknown", "130"], ["too_long", "20"]]
    assert lines[-2].endswith("omg 100, lol 30")
    assert report.to_json()["images_with_a_class"] == 60


def test_classes_of_one_frequency_are_ordered_by_their_ids(tmp_path):
    rows = [{"key": str(number), "tags": [tag]} for number, tag in enumerate(["cat", "dog"] * 3)]
    label(write_shards(tmp_path / "tagged", rows, shards=2), tmp_path / "out")  # the cats are counted first
    classes = Vocabulary.load(tmp_path / "out" / "vocabulary.json").classes
    assert [(each.id, each.count) for each in classes] == [(DOG, 3), (CAT, 3)]
    assert DOG < CAT


def test_a_class_is_on_ten_images_unless_said_otherwise(tmp_path):
    source = write_shards(tmp_path / "tagged", [{"tags": [tag]} for tag in ["dog"] * 10 + ["cat"] * 9], 1)
    report = label_dataset(source, tmp_path / "out", tags_column="tags")
    assert [each.id for each in report.vocabulary.classes] == [DOG]
    assert (report.vocabulary.min_count, report.vocabulary.images) == (10, 10)


def test_the_configuration_asked_for_is_labelled(tmp_path):
    for tag in ("cat", "dog"):
        write_shards(tmp_path / "in" / tag, [{"tags": [tag]}], 1)
    configs = [{"config_name": tag, "data_files": f"{tag}/*.parquet"} for tag in ("cat", "dog")]
    (tmp_path / "in" / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    for tag, synset in (("cat", CAT), ("dog", DOG)):
        label(tmp_path / "in", tmp_path / tag, dataset_config_name=tag, min_count=1)
        assert [row["synsets"] for row in labelled(tmp_path / tag)] == [[synset]]


def test_any_number_of_processes_gives_the_same_bytes(source, done, tmp_path):
    label(source, tmp_path / "two", num_proc=2)
    ours, theirs = contents(tmp_path / "two"), contents(done)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_images_stay_the_bytes_they_were(tmp_path):
    pictures = [draw_image(number) for number in range(12)]
    rows = [
        {"image": {"bytes": picture, "path": f"{number}.png"}, "tags": ["dog"] if number % 3 else []}
        for number, picture in enumerate(pictures)
    ]
    features = Features({"image": Image(), "tags": List(Value("string"))})
    source = write_shards(tmp_path / "pictures", rows, 2, features)
    label(source, tmp_path / "out", min_count=1)
    stream = open_stream(tmp_path / "out")
    assert stream.features["synsets"] == List(Value("string"))
    assert {row["image"]["path"]: row["image"]["bytes"] for row in stream} == {
        f"{number}.png": picture for number, picture in enumerate(pictures) if number % 3
    }
    schema = pq.read_schema(tmp_path / "out" / "data" / "train-00000-of-00002.parquet")
    assert Features.from_arrow_schema(schema)["image"] == Image()


def test_image_files_are_named_within_the_data_set_however_it_was_typed(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    (folder / "in").mkdir(parents=True)
    for number in range(4):
        (folder / "in" / f"{number}.png").write_bytes(draw_image(number))
    (folder / "metadata.csv").write_text("file_name,tags\n" + "".join(f"in/{i}.png,dog;cat\n" for i in range(4)))
    monkeypatch.chdir(tmp_path)
    for typed, output in ((folder, "whole"), ("photos/", "short"), ("./photos/in/..", "odd")):
        label(typed, tmp_path / output, min_count=1, tag_separator=";")
        assert contents(tmp_path / output) == contents(tmp_path / "whole")
    assert [row["image"]["path"] for row in open_stream("whole")] == [f"in/{i}.png" for i in range(4)]


def test_rows_without_labels_are_kept_on_request(source, rows, tmp_path):
    report = label(source, tmp_path / "all", keep_unlabelled=True)
    assert len(labelled(tmp_path / "all")) == len(rows) == report.splits["train"].written
    assert report.splits["train"].labels_per_row[0] == sum(
        not row["synsets"] for row in labelled(tmp_path / "all")
    ) + sum(
        bool(row["synsets"]) and not report.vocabulary.encode(row["synsets"]) for row in labelled(tmp_path / "all")
    )


def test_captions_in_tar_shards(tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number in range(8):
            files = [("png", draw_image(number)), ("txt", b"a #dog" if number % 2 else b"nothing")]
            for name, content in files[: 1 if number == 6 else 2]:  # one has no caption
                member = tarfile.TarInfo(f"{number:04d}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    label(tmp_path / "shard.tar", tmp_path / "out", min_count=1, tags_column=None, text_column="txt")
    stored = list(open_stream(tmp_path / "out"))
    assert [row["__key__"] for row in stored] == ["0001", "0003", "0005", "0007"]
    assert [row["png"]["bytes"] for row in stored] == [draw_image(number) for number in (1, 3, 5, 7)]
    assert not {"__url__", "__local_path__"} & set(stored[0])  # where the shard lies on this computer
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "shard.tar").rename(tmp_path / "elsewhere" / "shard.tar")
    moved = {"min_count": 1, "tags_column": None, "text_column": "txt"}
    label(tmp_path / "elsewhere" / "shard.tar", tmp_path / "out2", **moved)
    assert contents(tmp_path / "out") == contents(tmp_path / "out2")


def test_the_script_labels_and_says_what_to_do_next(source, done, tmp_path, monkeypatch, capsys):
    command = f"build_wsp_labels.py --dataset_name {source} --tags_column_name tags --min_count 3 --output_dir"
    monkeypatch.setattr(sys, "argv", [*command.split(), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as finished:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert finished.value.code == 0
    assert contents(tmp_path / "out") == contents(done)
    printed = capsys.readouterr().out
    for expected in ("n02084071  dog", "dropped tags", "frequencies.png", "images are needed", "3 or more"):
        assert expected in printed
    assert "run_wsp.py" not in printed
    monkeypatch.setattr(sys, "argv", [*command.split(), str(source / "inside")])
    with pytest.raises(SystemExit, match=r"^build_wsp_labels\.py: error: .* would become part of it"):
        runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.mark.parametrize(("of_dogs", "reached"), [(1, False), (16, True)])
def test_the_script_names_the_next_step_where_there_are_images(of_dogs, reached, tmp_path, monkeypatch, capsys):
    image = {"bytes": draw_image(0), "path": "0.png"}
    rare = ["cat", "zebra", "car", "house", "boat", "tree", "flower", "horse"]
    rows = [{"image": image, "tags": [tag]} for tag in ["dog"] * of_dogs + rare]
    features = Features({"image": Image(), "tags": List(Value("string"))})
    source = write_shards(tmp_path / "in", rows, 1, features)
    command = f"build_wsp_labels.py --dataset_name {source} --tags_column_name tags --min_count 1 --output_dir"
    monkeypatch.setattr(sys, "argv", [*command.split(), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as finished:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert finished.value.code == 0
    printed = capsys.readouterr().out
    assert f"--dataset_name {tmp_path / 'out'} " in printed
    assert "examples/run_wsp.py" in printed
    assert ("--resampling_ratio 1 " in printed) is not reached  # the recipe's would be refused


def test_any_name_of_the_data_makes_a_card_that_loads(tmp_path):
    folder = write_shards(tmp_path / "colon: it's #1 🐶 {x}", tagged_rows(20), 2)
    label(folder, tmp_path / "of folder", min_count=1)
    label(f"{folder}/*.parquet", tmp_path / "of glob", min_count=1)
    for output in ("of folder", "of glob"):
        assert labelled(tmp_path / output)
        card = (tmp_path / output / "README.md").read_text(encoding="utf-8")
        assert yaml.safe_load(card.split("---")[1])["pretty_name"] == f"{folder.name} with weak labels"
        assert "*.parquet with" not in card


def test_the_version_on_the_card_follows_from_every_shard_of_every_split(tmp_path):
    versions = set()
    for number, tags in enumerate((["dog"] * 3, ["cat", "dog", "dog"], ["dog", "cat", "dog"], ["dog", "dog", "cat"])):
        source = tmp_path / str(number) / "tagged"
        write_shards(source, [{"tags": [tag]} for tag in tags[:2]], 2)
        write_shards(source, [{"tags": tags[2:]}], 1, split="test")
        label(source, tmp_path / str(number) / "out", splits=["train", "test"], min_count=1)
        card = (tmp_path / str(number) / "out" / "README.md").read_text(encoding="utf-8")
        versions.add(yaml.safe_load(card.split("---")[1])["configs"][0]["version"])
    assert len(versions) == 4


def test_other_splits_are_labelled_but_not_counted(source, done, tmp_path):
    both = tmp_path / "both"
    write_shards(both, tagged_rows(200), 5)
    write_shards(both, [{"key": "t", "tags": ["dog", "zebra"]}], 1, split="test")
    report = label(both, tmp_path / "out", splits=["train", "test"])
    assert report.vocabulary == Vocabulary.load(done / "vocabulary.json")
    assert [row["synsets"] for row in labelled(tmp_path / "out", "test")] == [[DOG, "n02391049"]]
    assert report.splits["test"].labels_per_row == (0, 1, 0, 0)
    assert len(labelled(tmp_path / "out")) == report.splits["train"].written
    with pytest.raises(LabellingError, match=r"test-00000-of-00001\.parquet is not one of the shards"):
        label(both, tmp_path / "out")


def test_a_shard_without_any_label_does_no_harm(tmp_path):
    write_shards(tmp_path / "in", [{"tags": ["dog"]}, {"tags": ["selfie"]}], 2)
    report = label(tmp_path / "in", tmp_path / "out", min_count=1)
    assert report.vocabulary.images == len(labelled(tmp_path / "out")) == 1


def test_a_batch_without_any_label_does_no_harm(tmp_path):
    tags = pa.array([["dog"]] * label_shards.BATCH_ROWS + [["selfie"]])
    (tmp_path / "in").mkdir()  # written without `datasets`, whose types the columns get in the output
    pq.write_table(pa.table({"image": [draw_image(0)] * len(tags), "tags": tags}), tmp_path / "in" / "train.parquet")
    report = label(tmp_path / "in", tmp_path / "out", min_count=1)
    assert report.vocabulary.images == len(labelled(tmp_path / "out")) == label_shards.BATCH_ROWS


@pytest.mark.parametrize(("limit", "groups"), [("GROUP_ROWS", [512, 88]), ("GROUP_BYTES", [256, 256, 88])])
def test_row_groups_are_closed_at_their_limit_and_hold_every_row_once(tmp_path, monkeypatch, limit, groups):
    monkeypatch.setattr(label_shards, limit, 300)
    rows = [{"key": f"{number:04d}", "tags": ["dog"]} for number in range(600)]
    label(write_shards(tmp_path / "in", rows, 1), tmp_path / "out")
    assert [row["key"] for row in labelled(tmp_path / "out")] == [row["key"] for row in rows]
    file = pq.ParquetFile(tmp_path / "out" / "data" / "train-00000-of-00001.parquet")
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == groups


def test_a_shard_of_many_rows_is_counted_to_its_end(tmp_path):
    rows = 65_536 + 10  # so many are counted at once
    (tmp_path / "in").mkdir()
    tags = pa.array(["dog"] * (rows - 5) + ["cat"] * 5)
    pq.write_table(pa.table({"tags": tags}), tmp_path / "in" / "train.parquet")
    report = label(tmp_path / "in", tmp_path / "out", tag_separator=",")
    assert [(each.count, each.rarest) for each in report.vocabulary.classes] == [(rows - 5, rows - 5), (5, 5)]
    assert report.splits["train"].labels_per_row == (0, rows, 0, 0)


def test_many_small_shards_are_joined(source, done, tmp_path):
    label(source, tmp_path / "out", max_shards=2)
    assert len(list((tmp_path / "out" / "data").iterdir())) == 2
    assert [row["key"] for row in labelled(tmp_path / "out")] == [row["key"] for row in labelled(done)]


# ---------------------------------------------------------------- where tags are


def test_tags_in_text_and_in_separated_strings(tmp_path):
    rows = [
        {
            "caption": "my #dog and #cat",
            "captions": ["a #dog", None, "un #cat"],
            "keywords": "dog, Golden Retriever,,cat",
        },
        {"caption": "no tag", "captions": [], "keywords": ""},
    ]
    source = write_shards(tmp_path / "in", rows, 1)
    for number, (options, expected) in enumerate(
        [
            ({"tags_column": None, "text_column": "caption"}, [DOG, CAT]),
            ({"tags_column": None, "text_column": "captions"}, [DOG, CAT]),
            ({"tags_column": "keywords", "tag_separator": ","}, [DOG, "n02099601", CAT]),
            ({"tags_column": "keywords", "tag_separator": ",", "text_column": "caption"}, [DOG, "n02099601", CAT]),
            ({"tags_column": "keywords", "tag_separator": ",", "text_column": "captions"}, [DOG, "n02099601", CAT]),
        ]
    ):
        report = label(source, tmp_path / str(number), min_count=1, **options)
        assert [row["synsets"] for row in labelled(tmp_path / str(number))] == [expected]
        assert report.splits["train"].without_tags == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tags_column": None}, "where are the tags.*--text_column_name; there are key, tags"),
        ({"tags_column": "tag"}, "--tags_column_name tag: no such column, there are key, tags"),
        ({"tags_column": "key"}, "--tags_column_name key: it holds strings; .* --tag_separator"),
        ({"tag_separator": ","}, "--tags_column_name tags: it holds lists, which are not cut: leave out --tag_sep"),
        (
            {"tags_column": None, "text_column": "key", "tag_separator": ","},
            "--tag_separator cuts the strings of --ta",
        ),
        ({"text_column": "number"}, "--text_column_name number: it holds int64, a string or a list of strings"),
        (
            {"tags_column": "numbers"},
            "--tags_column_name numbers: it holds list.*int64.*, a string or a list of strings",
        ),
    ],
)
def test_columns_that_cannot_hold_tags_are_refused(tmp_path, options, message):
    rows = [{"key": "a", "tags": ["dog"], "number": 1, "numbers": [1, 2]}]
    source = write_shards(tmp_path / "in", rows, 1)
    with pytest.raises(DataSourceError, match=message):
        label(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- hostile rows


def test_broken_values_are_counted_and_nothing_more(tmp_path):
    values = [
        ["dog"],
        None,
        [],
        [None, "cat"],
        ["x" * 10_000_000, "dog"],
        ["dog"] * 100_000,
        ["\x00", "🐶" * 300, "#"],
    ]
    text = ["#dog", None, "", "#" * 500_000 + "cat", "#a" * 200_000, "#cat", "plain"]
    rows = [{"tags": tags, "text": caption} for tags, caption in zip(values, text, strict=True)]
    features = Features({"tags": List(Value("string")), "text": Value("string")})
    source = write_shards(tmp_path / "in", rows, 1, features)

    report = label(source, tmp_path / "tags", min_count=1)
    train = report.splits["train"]
    assert (train.rows, train.unreadable, train.without_tags, train.cut) == (7, 1, 2, 1)
    assert {label.id: label.count for label in report.vocabulary.classes} == {DOG: 3, CAT: 1}
    assert report.counts.dropped["too_long"] == 2
    assert report.counts.dropped["empty"] == 2

    report = label(source, tmp_path / "text", min_count=1, tags_column=None, text_column="text")
    train = report.splits["train"]
    assert (train.rows, train.unreadable, train.without_tags, train.cut) == (7, 1, 4, 2)


def test_as_many_tags_as_are_read_are_all_read_and_one_more_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(label_shards, "MOST_TAGS", 3)
    rows = [{"tags": tags} for tags in (["x1", "x2", "cat"], ["x1", "x2", "tree", "dog"])]
    report = label(write_shards(tmp_path / "in", rows, 1), tmp_path / "out", min_count=1)
    assert report.splits["train"].cut == 1
    assert [row["synsets"] for row in labelled(tmp_path / "out")] == [[CAT], ["n13104059"]]
    assert report.counts.tags == 6


def test_as_much_of_a_text_as_is_read_is_all_read_and_one_more_character_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(label_shards, "LONGEST_TEXT", 8)
    rows = [{"key": key} for key in ("#cat;dog", "#cat;tree", "#cat;dogs")]
    source = write_shards(tmp_path / "in", rows, 1)
    report = label(source, tmp_path / "tags", min_count=1, tags_column="key", tag_separator=";")
    assert [row["synsets"] for row in labelled(tmp_path / "tags")] == [[DOG, CAT], [CAT], [DOG, CAT]]
    assert report.splits["train"].cut == 2
    report = label(source, tmp_path / "text", min_count=1, tags_column=None, text_column="key")
    assert report.splits["train"].cut == 2


def test_a_row_with_one_value_of_two_is_readable_and_cut_if_either_is(tmp_path, monkeypatch):
    monkeypatch.setattr(label_shards, "MOST_TAGS", 2)
    rows = [
        {"tags": ["dog"], "caption": None},
        {"tags": None, "caption": "#cat"},
        {"tags": None, "caption": None},
        {"tags": ["dog", "dog", "dog"], "caption": None},
        {"tags": ["dog", "dog", "dog"], "caption": "plain"},
        {"tags": ["dog", "dog"], "caption": "#cat"},
    ]
    report = label(write_shards(tmp_path / "in", rows, 1), tmp_path / "out", min_count=1, text_column="caption")
    train = report.splits["train"]
    assert (train.rows, train.written, train.unreadable, train.without_tags, train.cut) == (6, 5, 1, 1, 3)


def test_what_is_no_utf8_is_unreadable(tmp_path):
    (tmp_path / "in").mkdir()
    broken = pa.array([b"#dog", b"#caf\xe9 \xff", b"#cat"]).view(pa.string())
    pq.write_table(pa.table({"caption": broken}), tmp_path / "in" / "train.parquet")
    with pytest.warns(UserWarning, match="caption of row 1 cannot be decoded"):
        report = label(tmp_path / "in", tmp_path / "out", min_count=1, tags_column=None, text_column="caption")
    assert report.splits["train"].unreadable == 1
    assert report.vocabulary.images == 2


def test_endless_junk_is_counted_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(label_shards, "TALLIED", 50)
    rows = [{"tags": [f"zzz{i}q", "omg", f"dog{i + 10_000}"]} for i in range(1000)]
    report = label(write_shards(tmp_path / "in", rows, 2), tmp_path / "out", min_count=1)
    assert report.counts.lower_bounds == {"labels": False, "dropped": True}
    assert report.counts.dropped == {"unknown": 2000}
    assert report.counts.dropped_tags("unknown", 1) == [("omg", 1000)]
    assert "counts are lower bounds" in str(report)


def test_a_tally_keeps_what_is_frequent():
    tally = Tally(3)
    for number in range(100):
        tally.update(["often", "often", f"once {number}"])
        assert len(tally.counts) <= 6
    assert tally.pruned
    assert tally.most_common(1) == [("often", 200)]
    exact = Tally(3)
    exact.update("abcabcbb")
    assert exact.most_common() == [("b", 4), ("a", 2), ("c", 2)]
    assert not exact.pruned


# ---------------------------------------------------------------- again, and otherwise


class Killed(BaseException):
    """Stands in for a kill: nothing may catch it."""


@pytest.mark.parametrize("survivors", range(6))
def test_a_killed_run_continues(source, done, tmp_path, monkeypatch, survivors):
    write, written = label_shards.write_atomically, []

    def write_until_killed(path: Path, content: bytes) -> None:
        if len(written) == survivors:  # the data file lies there, its record does not; and a torn one beside
            temporary_of(path).write_bytes(content[:10])
            raise Killed
        write(path, content)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(label_shards, "write_atomically", write_until_killed)
        if survivors < 5:
            with pytest.raises(Killed):
                label(source, tmp_path / "out")
            assert not (tmp_path / "out" / "README.md").exists()
        else:
            label(source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in written}
    label(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(done)
    assert {path: path.stat().st_mtime_ns for path in written} == before


def test_a_run_that_ends_leaves_another_in_the_same_folder_at_work(source, tmp_path):
    folder = tmp_path / "out"
    label(source, folder)
    (folder / "README.md").unlink()
    names = ("data/train-0.parquet", "records/train-0.json", "vocabulary.json")
    at_work = [temporary_of(folder / name, process=os.getppid()) for name in names]
    for temporary in at_work:
        temporary.write_bytes(b"half")
    label(source, folder)
    assert all(temporary.exists() for temporary in at_work)


def test_a_damaged_shard_is_made_again(source, done, tmp_path):
    label(source, tmp_path / "out")
    damaged, lost, kept, *_ = sorted((tmp_path / "out" / "data").iterdir())
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    lost.unlink()
    time = kept.stat().st_mtime_ns
    label(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(done)
    assert kept.stat().st_mtime_ns == time


def test_another_threshold_only_makes_the_vocabulary_again(source, tmp_path):
    label(source, tmp_path / "out")
    shards = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "data").iterdir()}
    many = label(source, tmp_path / "out", min_count=1).vocabulary
    few = label(source, tmp_path / "out", min_count=1, max_classes=2).vocabulary
    assert few.classes[0].count == many.classes[0].count
    assert [label.id for label in few.classes] == [label.id for label in many.classes[:2]]
    assert few.images <= many.images
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "data").iterdir()} == shards
    with pytest.raises(LabellingError, match=r"no synset is on 1000 images, dog is on most, \d+: lower --min_count"):
        label(source, tmp_path / "out", min_count=1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_unlabelled": True}, "was made with keep_unlabelled=False, not True: choose another --output_dir"),
        ({"tags_column": "tags", "text_column": "key"}, "was made with text_column=None, not 'key'"),
        ({"max_shards": 2}, "the split train in 5 shards and would now get 2: give --max_shards as before"),
    ],
)
def test_other_options_are_refused(source, done, options, message):
    with pytest.raises(LabellingError, match=message):
        label(source, done, **options)


@pytest.mark.parametrize(("rules", "told"), [(1, "rules=1, not "), (None, "rules=None, not ")])
def test_labels_of_other_rules_are_not_mixed_with_ours(source, done, tmp_path, rules, told):
    shutil.copytree(done, tmp_path / "out")
    options = json.loads((tmp_path / "out" / "labelling.json").read_text(encoding="utf-8"))
    others = {name: value for name, value in options.items() if name != "rules"}
    (tmp_path / "out" / "labelling.json").write_text(json.dumps(others | ({"rules": rules} if rules else {})))
    with pytest.raises(LabellingError, match=f"was made with {told}"):
        label(source, tmp_path / "out")


@pytest.mark.parametrize("pattern", ["", "/tagged/*.parquet", "/**/*.parquet"])
def test_other_rows_are_refused(tmp_path, pattern):
    copy = write_shards(tmp_path / "in" / "tagged", tagged_rows(20), 2)
    named = f"{tmp_path}/in{pattern}" if pattern else copy
    label(named, tmp_path / "out", min_count=1)
    label(named, tmp_path / "out", min_count=1)
    write_shards(copy, tagged_rows(30, seed=1), 2)
    with pytest.raises(LabellingError, match="was made with dataset_files="):
        label(named, tmp_path / "out", min_count=1)


@pytest.mark.parametrize("content", [b"{", b"3", b"\xff"])
def test_an_output_whose_options_cannot_be_read_is_refused(source, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labelling.json").write_bytes(content)
    with pytest.raises(LabellingError, match=r"labelling\.json is not what was written there .*: delete"):
        label(source, tmp_path / "out")


def test_an_option_that_only_a_later_version_knows_and_a_strange_shard_are_refused(source, done, tmp_path):
    shutil.copytree(done, tmp_path / "out")
    shutil.copy(source / "train-00000.parquet", tmp_path / "out" / "data" / "train-extra.parquet")
    with pytest.raises(LabellingError, match=r"train-extra\.parquet is not one of the shards to be made"):
        label(source, tmp_path / "out")
    options = json.loads((tmp_path / "out" / "labelling.json").read_text(encoding="utf-8"))
    (tmp_path / "out" / "labelling.json").write_text(json.dumps(options | {"later": 1}))
    with pytest.raises(LabellingError, match="was made with later=1, not None"):
        label(source, tmp_path / "out")


def test_notes_and_hidden_files_beside_the_rows_change_nothing(rows, tmp_path):
    copy = write_shards(tmp_path / "tagged", rows[:20], 2)
    label(copy, tmp_path / "out", min_count=1)
    before = contents(tmp_path / "out")
    for folder in (".cache", "more/.cache"):
        (copy / folder).mkdir(parents=True)
    for name in (".hidden", ".cache/0.parquet", "more/.cache/0.parquet", "notes.md"):
        (copy / name).write_text("not a row")
    label(copy, tmp_path / "out", min_count=1)
    assert contents(tmp_path / "out") == before


def test_an_output_inside_the_data_is_refused(source):
    with pytest.raises(LabellingError, match="would become part of it: choose another --output_dir"):
        label(source, source / "labels")


def test_without_any_label_the_dropped_tags_are_shown(tmp_path):
    source = write_shards(tmp_path / "in", [{"tags": ["dog;cat", "dog;cat", "selfie"]}], 1)
    with pytest.raises(
        LabellingError, match=r"of 3: dog cat \(unknown, 2 times\), selfie .* is it the right column\?$"
    ):
        label(source, tmp_path / "out")
    source = write_shards(tmp_path / "none", [{"tags": None}], 1, Features({"tags": List(Value("string"))}))
    with pytest.raises(LabellingError, match="there are none at all"):
        label(source, tmp_path / "out2")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_count": 0}, ValueError, "--min_count 0 is not possible: it must be at least 1"),
        ({"max_classes": 0}, ValueError, "--max_classes 0 is not possible"),
        ({"tag_separator": ""}, ValueError, "--tag_separator is empty: give what stands between"),
        ({"num_proc": 0}, ValueError, "--num_proc 0 is not possible"),
        ({"splits": ["train", "train"]}, ValueError, "--dataset_split train train is not possible"),
        ({"splits": []}, ValueError, "--dataset_split  is not possible: name each split once"),
        ({"splits": ["dev"]}, DataSourceError, "no split 'dev'"),
        ({"image_column": "photo"}, DataSourceError, "--image_column_name photo: no such column"),
        ({"wordnet_dir": "/nowhere"}, WordNetError, r"/nowhere has no index\.noun"),
    ],
)
def test_impossible_options_are_refused(source, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        label(source, tmp_path / "out", **options)
    assert not os.path.exists(tmp_path / "out")


def test_a_data_set_that_has_synsets_is_refused(done, tmp_path):
    with pytest.raises(DataSourceError, match="has a column 'synsets' already"):
        label(done, tmp_path / "out")


def test_a_wrong_separator_leaves_nothing_in_the_way(tmp_path):
    source = write_shards(tmp_path / "in", [{"tags": "dog;cat", "other": "omg;lol"}] * 4, 2)
    with pytest.raises(LabellingError, match=r"right column, and does --tag_separator ',' stand between its tags\?"):
        label(source, tmp_path / "out", tag_separator=",")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(LabellingError, match="no tag is a WordNet noun"):
        label(source, tmp_path / "out", tag_separator=",")
    label(source, tmp_path / "out", tag_separator=";")
    assert [row["synsets"] for row in labelled(tmp_path / "out")] == [[DOG, CAT]] * 4
    assert (tmp_path / "out" / "mine.txt").exists()


def test_a_wrong_separator_of_a_killed_run_leaves_nothing_in_the_way(tmp_path, monkeypatch):
    source = write_shards(tmp_path / "in", [{"tags": "dog;cat"}] * 4, 2)

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LabelCounts, "of", kill)
        with pytest.raises(Killed):
            label(source, tmp_path / "out", tag_separator=",")
    assert len(list((tmp_path / "out" / "data").iterdir())) == 2
    with pytest.raises(LabellingError, match="no tag is a WordNet noun"):
        label(source, tmp_path / "out", tag_separator=",")
    assert not (tmp_path / "out").exists()


def test_a_split_without_nouns_leaves_finished_ones_alone(source, done, tmp_path):
    both = tmp_path / "both"
    write_shards(both, tagged_rows(20), 2)
    write_shards(both, [{"key": "t", "tags": ["selfie"]}], 1, split="test")
    label(both, tmp_path / "out", min_count=1)
    before = contents(tmp_path / "out")
    with pytest.raises(LabellingError, match="no tag is a WordNet noun"):
        label(both, tmp_path / "out", splits=["test", "train"], min_count=1)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        (pa.list_(pa.string(), 2), ["dog", "selfie"]),
        (pa.string_view(), "dog,selfie"),
        (pa.list_(pa.string_view()), ["dog", "selfie"]),
        (pa.large_list(pa.string_view()), ["dog", "selfie"]),
    ],
    ids=str,
)
def test_tags_of_every_arrow_type_are_counted_alike(tmp_path, kind, cell):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"tags": pa.array([cell, None, cell], kind)}), tmp_path / "in" / "train.parquet")
    report = label(
        tmp_path / "in", tmp_path / "out", min_count=1, tag_separator="," if isinstance(cell, str) else None
    )
    train = report.splits["train"]
    assert (train.rows, train.written, train.unreadable, train.cut) == (3, 2, 1, 0)
    assert (report.counts.tags, report.counts.labels, report.counts.dropped) == (4, 2, {"unknown": 2})
    assert [row["synsets"] for row in labelled(tmp_path / "out")] == [[DOG], [DOG]]
