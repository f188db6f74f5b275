"""Labels and captions of images from the files that `datasets` has for them."""

import json
from pathlib import Path
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value, load_dataset
from tiny import draw_image

from maws_hf.data.sources import DataSourceError, digest_of_files, open_stream

ROWS = [{"file_name": "a.png", "label": "cat", "weight": 2}, {"file_name": "sub/b.png", "label": "dog", "weight": 3}]


def write(folder: Path, rows: list[dict], extension: str, images: tuple[str, ...] = ("a.png", "sub/b.png")) -> Path:
    for number, name in enumerate(images):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(draw_image(number))
    file = folder / f"metadata.{extension}"
    if extension == "csv":
        lines = [list(rows[0]), *(row.values() for row in rows)]
        file.write_text("".join(",".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
    elif extension == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    return folder


def read(dataset: IterableDataset, root: Path) -> list[tuple]:
    return [(str(Path(row.pop("image")["path"]).relative_to(root)), row) for row in dataset]


@pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet"])
def test_images_have_the_columns_that_datasets_gives_them(extension: str, tmp_path: Path):
    for split in ("train", "test"):
        write(tmp_path / "data" / split, ROWS[: 2 if split == "train" else 1], extension)
    ours = open_stream(tmp_path / "data")
    theirs = load_dataset("imagefolder", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))["train"]
    assert {name: kind for name, kind in ours.features.items() if name != "image"} == {
        name: kind for name, kind in theirs.features.items() if name != "image"
    }
    rows = read(ours, tmp_path / "data")
    assert rows == [("train/a.png", {"label": "cat", "weight": 2}), ("train/sub/b.png", {"label": "dog", "weight": 3})]
    assert [row for _, row in rows] == theirs.remove_columns("image").to_list()
    assert next(iter(ours))["image"]["bytes"] == draw_image(0)
    with pytest.warns(UserWarning, match=r"1 of 2 images have no row in test.metadata\..* and are left out"):
        assert [path for path, _ in read(open_stream(tmp_path / "data", split="test"), tmp_path)] == [
            "data/test/a.png"
        ]


def test_one_file_above_the_splits_is_of_both(tmp_path: Path):
    rows = [{"file_name": f"{split}/a.png", "label": split} for split in ("train", "test")]
    write(tmp_path, rows, "csv", ("train/a.png", "test/a.png"))
    for split in ("train", "test"):
        assert read(open_stream(tmp_path, split=split), tmp_path) == [(f"{split}/a.png", {"label": split})]


def test_an_image_with_two_rows_comes_twice_and_folders_are_no_labels(tmp_path: Path):
    rows = [{"file_name": name, "caption": [text]} for name in ("x/a.png", "y/b.png") for text in ("one", "two")]
    write(tmp_path, rows, "jsonl", ("x/a.png", "y/b.png"))
    dataset = open_stream(tmp_path)
    assert list(dataset.features) == ["image", "caption"]
    assert [row["caption"] for _, row in read(dataset, tmp_path)] == [["one"], ["two"]] * 2


def test_names_written_on_windows_are_found(tmp_path: Path):
    write(tmp_path, [{"file_name": "sub\\b.png", "label": "dog"}, {"file_name": "a.png", "label": "cat"}], "jsonl")
    assert [row["label"] for _, row in read(open_stream(tmp_path), tmp_path)] == ["cat", "dog"]


@pytest.mark.parametrize(("listed", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accented_names_are_found_in_either_form_of_unicode(listed: str, written: str, tmp_path: Path):
    folder, name = tmp_path / normalize(listed, "\u00dcbung"), "\u00e9t\u00e9.png"
    write(folder, [{"file_name": normalize(listed, name), "label": "sun"}], "jsonl", (normalize(written, name),))
    assert [row["label"] for _, row in read(open_stream(tmp_path), tmp_path)] == ["sun"]


def test_two_files_may_each_have_rows_of_an_image(tmp_path: Path):
    write(tmp_path / "sub", [{"file_name": "b.png", "label": "dog"}], "csv", ("b.png",))
    write(tmp_path, [{"file_name": "sub/b.png", "label": "hound"}], "csv", ())
    assert sorted(row["label"] for _, row in read(open_stream(tmp_path), tmp_path)) == ["dog", "hound"]


def test_declared_classes_stay_declared(tmp_path: Path):
    write(tmp_path, ROWS, "csv")
    columns = Features({"file_name": Value("string"), "label": ClassLabel(names=["ox", "cat"])})
    Dataset.from_dict({"file_name": ["a.png", "sub/b.png"], "label": [1, 0]}, features=columns).to_parquet(
        tmp_path / "metadata.parquet"
    )
    (tmp_path / "metadata.csv").unlink()
    dataset = open_stream(tmp_path)
    assert dataset.features["label"] == ClassLabel(names=["ox", "cat"])
    assert [row["label"] for _, row in read(dataset, tmp_path)] == [1, 0]


def test_the_data_set_changes_with_its_metadata(tmp_path: Path):
    before = digest_of_files(open_stream(write(tmp_path, ROWS, "csv")))
    assert digest_of_files(open_stream(tmp_path)) == before
    write(tmp_path, [ROWS[0], {**ROWS[1], "label": "otter"}], "csv")
    assert digest_of_files(open_stream(tmp_path)) != before


def test_a_file_without_names_of_images_is_told_and_not_read(tmp_path: Path):
    write(tmp_path, [{"image_id": "a.png", "label": 1}], "csv", ("cat/a.png", "dog/b.png"))
    with pytest.warns(UserWarning, match=r"metadata\.csv has no column file_name and is not read"):
        assert open_stream(tmp_path).features["label"].names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([{"file_name": "../../x.png", "label": 1}], r"metadata\.jsonl: there is no image \.\./\.\./x\.png: put it"),
        ([{"file_name": "a.png", "image": 1}], r"metadata\.jsonl: rename its column image"),
        (
            [{"file_name": "a.png", "label": 1}, {"file_name": "a.png", "label": []}],
            r"metadata\.jsonl cannot be read: ",
        ),
    ],
)
def test_what_is_wrong_is_said_with_the_file(rows: list[dict], wanted: str, tmp_path: Path):
    with pytest.raises(DataSourceError, match=wanted):
        open_stream(write(tmp_path, rows, "jsonl"))


def test_files_of_one_split_must_agree_and_say_something(tmp_path: Path):
    write(tmp_path / "x", [{"file_name": "a.png", "label": 1}], "jsonl", ("a.png",))
    write(tmp_path / "y", [{"file_name": "a.png", "label": "one"}], "jsonl", ("a.png",))
    with pytest.raises(
        DataSourceError, match=r"y.metadata\.jsonl and x.metadata\.jsonl disagree on the columns label:"
    ):
        open_stream(tmp_path)
    write(tmp_path / "split", [{"file_name": "train/a.png", "label": 1}], "jsonl", ("train/a.png", "test/b.png"))
    with pytest.raises(DataSourceError, match=r"metadata\.jsonl in .*split has no row of an image in this split"):
        open_stream(tmp_path / "split", split="test")


def test_a_split_without_a_file_of_its_own_is_read_by_its_folders(tmp_path: Path):
    write(tmp_path / "train", ROWS, "jsonl")
    write(tmp_path / "test", ROWS[:1], "csv", ("a.png", "b.png"))
    (tmp_path / "test" / "metadata.csv").unlink()
    assert open_stream(tmp_path, split="train").features["label"] == Value("string")
    assert list(open_stream(tmp_path, split="test").features) == ["image"]


def test_two_files_in_one_folder_are_refused(tmp_path: Path):
    write(tmp_path, ROWS, "csv")
    write(tmp_path, ROWS, "jsonl")
    with pytest.raises(DataSourceError, match=r"has more than one of metadata\.csv, metadata\.jsonl"):
        open_stream(tmp_path)


def test_an_image_without_a_label_leaves_the_others_theirs(tmp_path: Path):
    write(
        tmp_path, [{"file_name": "a.png", "label": 1}, {"file_name": "b.png", "label": 2}], "csv", ("a.png", "b.png")
    )
    file = tmp_path / "metadata.csv"
    file.write_text(file.read_text().replace(",2", ","))
    dataset = open_stream(tmp_path)
    assert dataset.features["label"] == Value("int64")
    assert [row["label"] for _, row in read(dataset, tmp_path)] == [1, None]
