"""Opening data sets: each kind is recognised, images stay bytes, and every refusal says what to type."""

import io
import os
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from maws_hf.data.sources import (
    DataSourceError,
    digest_of_files,
    find_image_column,
    open_stream,
    refuse_output_within,
    why_no_labels,
)
from maws_hf.data.targets import find_labels
from maws_hf.evaluation.features import find_label_column
from maws_hf.processing.decode import DEFAULT_LIMITS


def picture(shade: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    PILImage.new("RGB", (6, 4), (shade % 256, 0, 0)).save(file, form)
    return file.getvalue()


def write_parquet(path, shades, column="image", **columns):
    images = [{"bytes": picture(shade), "path": f"{shade}.png"} for shade in shades]
    features = Features({column: Image(), **{name: Value("string") for name in columns}})
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict({column: images, **columns}, features=features).to_parquet(str(path))


def write_tar(path, shades, extension="png"):
    with tarfile.open(path, "w") as tar:
        for shade in shades:
            for name, content in ((extension, picture(shade)), ("txt", b"a caption")):
                member = tarfile.TarInfo(f"{shade:04d}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_image(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(shade))


def stored(dataset, column="image"):
    return [row[column]["bytes"] for row in dataset]


def test_parquet_folder_keeps_the_bytes_as_they_are(tmp_path):
    write_parquet(tmp_path / "a.parquet", range(3))
    write_parquet(tmp_path / "b.parquet", range(3, 5))
    dataset = open_stream(tmp_path)
    assert stored(dataset) == [picture(shade) for shade in range(5)]
    assert dataset.num_shards == 2


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_brackets_in_the_name_of_a_folder_are_letters(kind: str, tmp_path: Path):
    write = write_parquet if kind == "parquet" else write_tar
    folder = tmp_path / "shards [1]" / "of two"
    folder.mkdir(parents=True)
    for number, shard in enumerate((f"a.{kind}", f"b[0].{kind}")):
        write(folder / shard, [number])
    column = "image" if kind == "parquet" else "png"
    for data_files in (None, f"*.{kind}"):
        assert stored(open_stream(folder, data_files=data_files), column) == [picture(0), picture(1)]
    assert stored(open_stream(folder / f"b[0].{kind}"), column) == [picture(1)]
    with pytest.raises(DataSourceError, match=re.escape(f"no file matches {folder}/c.{kind}")):
        open_stream(folder, data_files=f"c.{kind}")


def test_a_card_in_a_folder_with_brackets_is_refused_in_words(tmp_path: Path):
    folder = tmp_path / "mine [1]"
    write_parquet(folder / "train.parquet", [0])
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: '*.parquet'\n---\n")
    with pytest.raises(DataSourceError, match=r"mine \[1\] has \*, \? or \[ in its path.*: rename the folder$"):
        open_stream(folder)


def test_data_are_read_where_nobody_may_write_to_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_parquet(tmp_path / "shards" / "a.parquet", [0])
    write_image(tmp_path / "images" / "a.png", 1)
    (tmp_path / "file").touch()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "file" / "cache"))
    assert stored(open_stream(tmp_path / "shards")) == [picture(0)]
    assert stored(open_stream(tmp_path / "images")) == [picture(1)]


@pytest.mark.parametrize("cache", ["~/cache", "memory://cache"])
def test_no_folder_is_made_where_one_is(cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_image(tmp_path / "images" / "a.png", 1)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    assert stored(open_stream(tmp_path / "images")) == [picture(1)]
    assert not list(Path().iterdir())


def test_a_path_that_would_be_taken_for_a_file_within_another_is_refused(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet", [0])
    (tmp_path / "a.parquet::copy.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    with pytest.raises(DataSourceError, match=r"a\.parquet::copy\.parquet cannot be opened with :: in its path"):
        open_stream(tmp_path)


def test_files_named_after_splits_are_kept_apart(tmp_path):
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", range(3))
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", range(3, 5))
    assert len(stored(open_stream(tmp_path))) == 3
    assert len(stored(open_stream(tmp_path, split="val"))) == 2
    with pytest.raises(DataSourceError, match=r"no split 'test', there are train, validation"):
        open_stream(tmp_path, split="test")


def test_folder_with_a_card_is_read_as_the_card_says(tmp_path):
    write_parquet(tmp_path / "x" / "one.parquet", range(3))
    write_parquet(tmp_path / "x" / "two.parquet", range(3, 5))
    config = "configs:\n- config_name: default\n  data_files:\n  - split: holdout\n    path: x/two.parquet\n"
    (tmp_path / "README.md").write_text(f"---\n{config}---\n# Words\n")
    assert stored(open_stream(tmp_path, split="holdout")) == [picture(3), picture(4)]
    with pytest.raises(DataSourceError, match="there are holdout"):
        open_stream(tmp_path)


def test_card_without_configurations_changes_nothing(tmp_path):
    write_parquet(tmp_path / "one.parquet", range(3))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Words\n")
    assert len(stored(open_stream(tmp_path))) == 3


def test_tar_folder_glob_and_single_file(tmp_path):
    write_tar(tmp_path / "shard-0.tar", range(3))
    write_tar(tmp_path / "shard-1.tar", range(3, 5))
    assert len(stored(open_stream(tmp_path), "png")) == 5
    assert len(stored(open_stream(f"{tmp_path}/*.tar"), "png")) == 5
    assert len(stored(open_stream(tmp_path / "shard-1.tar"), "png")) == 2
    assert len(stored(open_stream(tmp_path, data_files="shard-0.tar"), "png")) == 3


def test_a_tar_sample_has_its_image_whatever_the_extension(tmp_path):
    write_tar(tmp_path / "shard-0.tar", range(6), "jpg")
    write_tar(tmp_path / "shard-1.tar", range(6, 9), "png")
    dataset = open_stream(tmp_path)
    assert stored(dataset, "jpg") == [picture(shade) for shade in range(9)]
    assert [row["jpg"]["path"] for row in dataset][-1] == "0008.png"
    assert stored(dataset.select_columns(["__key__", "jpg"]).shard(2, 1), "jpg") == [picture(s) for s in range(6, 9)]


def test_file_that_shares_its_name_with_a_tar_member_does_not_displace_it(tmp_path, monkeypatch):
    write_tar(tmp_path / "shard-0.tar", range(3))
    elsewhere = tmp_path / "elsewhere"
    write_image(elsewhere / "0001.png", shade=99)
    monkeypatch.chdir(elsewhere)
    assert stored(open_stream(tmp_path / "shard-0.tar"), "png") == [picture(shade) for shade in range(3)]


def test_image_folder_without_classes(tmp_path):
    for shade in range(4):
        write_image(tmp_path / f"{shade}.png", shade)
    (tmp_path / "notes.txt").write_text("not an image")
    dataset = open_stream(tmp_path)
    assert stored(dataset) == [picture(shade) for shade in range(4)]
    assert dataset.num_shards == 4
    assert list(dataset.features) == ["image"]


def test_image_folder_with_classes_and_splits(tmp_path):
    for split, count in (("train", 2), ("val", 1)):
        for name in ("cat", "dog"):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i}.png")
    dataset = open_stream(tmp_path)
    assert [row["label"] for row in dataset] == [0, 0, 1, 1]
    assert dataset.features["label"].names == ["cat", "dog"]
    assert len(list(open_stream(tmp_path, split="validation"))) == 2


def test_a_misspelt_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    write_image(tmp_path / "pictures" / "emoji" / "0.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataSourceError, match=r"pictures/emojis does not exist \(did you mean pictures/emoji\?\)"):
        open_stream("pictures/emojis")


def test_class_called_train_is_a_class(tmp_path):
    for name in ("boat", "train"):
        write_image(tmp_path / name / "0.png")
    assert open_stream(tmp_path).features["label"].names == ["boat", "train"]


def test_a_class_that_a_split_lacks_does_not_renumber_the_others(tmp_path):
    for place in ("train/ant", "train/bee", "train/cat", "test/bee", "test/cat", "val/cat"):
        write_image(tmp_path / place / "0.png")
    for split, labels in (("train", [0, 1, 2]), ("test", [1, 2]), ("validation", [2])):
        dataset = open_stream(tmp_path, split=split)
        assert dataset.features["label"].names == ["ant", "bee", "cat"]
        assert sorted(row["label"] for row in dataset) == labels
    write_image(tmp_path / "test" / "loose.png")
    assert "label" not in open_stream(tmp_path, split="test").features


def test_linked_class_folders_are_followed_and_loops_end(tmp_path):
    write_image(tmp_path / "elsewhere" / "0.png")
    root = tmp_path / "root"
    write_image(root / "a" / "0.png")
    os.symlink(tmp_path / "elsewhere", root / "b")
    os.symlink(root, root / "a" / "loop")
    assert len(list(open_stream(root))) == 2


def test_vanished_or_oversized_image_files_are_left_for_the_decoder_to_refuse(tmp_path):
    for shade in range(3):
        write_image(tmp_path / f"{shade}.png", shade)
    dataset = open_stream(tmp_path)
    (tmp_path / "1.png").unlink()
    with open(tmp_path / "2.png", "wb") as file:
        file.truncate(DEFAULT_LIMITS.max_bytes * 100)
    lengths = [len(content) for content in stored(dataset)]
    assert lengths == [len(picture(0)), 0, DEFAULT_LIMITS.max_bytes + 1]


def test_image_column_is_found_by_type_by_name_or_by_argument(tmp_path):
    write_parquet(tmp_path / "typed" / "0.parquet", [1], column="photo", image=["a caption"])
    assert find_image_column(open_stream(tmp_path / "typed")) == "photo"
    (tmp_path / "named").mkdir()
    pq.write_table(pa.table({"jpg": [picture(1)], "other": [b"x"]}), tmp_path / "named" / "0.parquet")
    assert next(iter(open_stream(tmp_path / "named")))["jpg"] == picture(1)
    assert find_image_column(open_stream(tmp_path / "named", image_column="other"), "other") == "other"
    (tmp_path / "capitals").mkdir()
    pq.write_table(pa.table({"Image": [picture(1)], "other": [b"x"]}), tmp_path / "capitals" / "0.parquet")
    assert find_image_column(open_stream(tmp_path / "capitals")) == "Image"


def test_ambiguous_or_absent_image_column_names_the_columns(tmp_path):
    row = {"bytes": picture(1), "path": None}
    pair = Dataset.from_dict({"left": [row], "right": [row]}, features=Features({"left": Image(), "right": Image()}))
    (tmp_path / "pair").mkdir()
    pair.to_parquet(str(tmp_path / "pair" / "0.parquet"))
    with pytest.raises(DataSourceError, match=r"several image columns \(left, right\).*--image_column_name"):
        open_stream(tmp_path / "pair")
    rows = next(iter(open_stream(tmp_path / "pair", image_column="right")))
    assert rows["left"]["bytes"] == rows["right"]["bytes"] == picture(1)

    (tmp_path / "text").mkdir()
    pq.write_table(pa.table({"caption": ["a"], "url": ["b"]}), tmp_path / "text" / "0.parquet")
    with pytest.raises(DataSourceError, match=r"no image column among the columns caption, url.*--image_column_name"):
        open_stream(tmp_path / "text")
    with pytest.raises(DataSourceError, match="--image_column_name photo: no such column, there are caption, url"):
        open_stream(tmp_path / "text", image_column="photo")


def test_a_column_without_images_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", [1], caption=["a"])
    table = pq.read_table(tmp_path / "a.parquet")
    table = table.append_column("label", pa.array([1])).append_column("box", pa.array([{"x": 1}]))
    pq.write_table(table.replace_schema_metadata(), tmp_path / "a.parquet")
    for column, kind in (("caption", "string"), ("label", "int64"), ("box", "dict")):
        sentence = f"--image_column_name {column}: it holds {kind}, not images or their bytes; columns that do: image$"
        with pytest.raises(DataSourceError, match=sentence):
            open_stream(tmp_path, image_column=column)
    assert stored(open_stream(tmp_path, image_column="image")) == [picture(1)]


def test_nothing_there_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataSourceError, match="does not exist: give a folder"):
        open_stream(tmp_path / "absent")
    with pytest.raises(DataSourceError, match=r"no file matches .*nothing-\*\.tar"):
        open_stream(f"{tmp_path}/nothing-*.tar")
    (tmp_path / "words.csv").write_text("a,b\n")
    with pytest.raises(DataSourceError, match=r"holds none of \*\.parquet, \*\.tar or images"):
        open_stream(tmp_path)


def test_broken_shard_is_named(tmp_path):
    (tmp_path / "train-0.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataSourceError, match=r"cannot be opened: .*learnt from train-0\.parquet, which must be"):
        open_stream(tmp_path)


def test_pipes_and_other_commands_are_not_sources():
    with pytest.raises(DataSourceError, match="does not exist"):
        open_stream("pipe:cat shard.tar")


@pytest.mark.parametrize(
    "names",
    [
        ["train/a.png", "val/b.png", "logo.png"],
        ["train/a.png", "test/b.png", "unlabeled/c.png"],
        ["train-0.png", "test-0.png", "unseen-0.png"],
    ],
)
def test_held_out_files_never_slip_into_training_because_of_a_stray_one(names: list[str], tmp_path: Path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataSourceError, match=r"has the splits (test, train|train, validation), but .* none of them"):
        open_stream(tmp_path)


def test_numbered_split_folders_are_splits(tmp_path: Path):
    for name in ("train2017/a.png", "val2017/b.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    assert [Path(row["image"]["path"]).name for row in open_stream(tmp_path)] == ["a.png"]


def test_large_image_folders_are_dealt_into_few_shards_with_all_classes(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("maws_hf.data.sources.MOST_IMAGE_SHARDS", 4)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(9):
            (tmp_path / name / f"{index}.png").write_bytes(f"{name}{index}".encode())
    stream = open_stream(tmp_path)
    assert stream.num_shards == 4
    rows = list(stream)
    assert sorted(row["image"]["bytes"] for row in rows) == sorted(f"{n}{i}".encode() for n in "ab" for i in range(9))
    assert {row["label"] for row in rows[:5]} == {0, 1}
    assert all(Path(row["image"]["path"]).parent.name == "ab"[row["label"]] for row in rows)


def test_an_empty_parquet_shard_is_no_obstacle(tmp_path: Path):
    table = pa.table({"image": [b"one", b"two"]})
    pq.write_table(table.slice(0, 0), tmp_path / "train-0.parquet")
    pq.write_table(table, tmp_path / "train-1.parquet")
    assert [row["image"] for row in open_stream(tmp_path)] == [b"one", b"two"]


def test_a_data_set_without_images_opens_where_none_are_required(tmp_path):
    Dataset.from_dict({"caption": ["a #dog", "a #cat"]}).to_parquet(str(tmp_path / "captions.parquet"))
    with pytest.raises(DataSourceError, match="no image column among the columns caption"):
        open_stream(tmp_path)
    assert [row["caption"] for row in open_stream(tmp_path, require_image=False)] == ["a #dog", "a #cat"]
    with pytest.raises(DataSourceError, match="--image_column_name photo: no such column"):
        open_stream(tmp_path, image_column="photo", require_image=False)


def test_only_the_wanted_columns_of_parquet_are_read(tmp_path):
    rows = {"image": [picture(shade) for shade in range(3)], "id": ["a", "b", "c"], "label": [1, 0, 1]}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "a.parquet"))
    found = list(open_stream(tmp_path, require_image=False, columns=["label", "id"]))
    assert found == [{"id": "a", "label": 1}, {"id": "b", "label": 0}, {"id": "c", "label": 1}]


@pytest.mark.parametrize("declared", [False, True])
def test_rows_of_tars_are_whole_whatever_columns_are_wanted(declared, tmp_path):
    write_tar(tmp_path / "a.tar", range(3), "jpg")
    if declared:
        configs = "configs:\n- config_name: default\n  data_files: a.tar\n"
        (tmp_path / "README.md").write_text(f"---\n{configs}---\n")
    rows = open_stream(tmp_path, require_image=False, columns=["__key__"])
    assert stored(rows, "jpg") == [picture(shade) for shade in range(3)]


def test_image_files_are_named_but_not_opened_where_only_their_labels_are_wanted(tmp_path):
    for name in ("cat/1.png", "dog/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(picture(1))
    rows = list(open_stream(tmp_path, require_image=False, columns=["label"]))
    assert [(row["image"]["bytes"], row["image"]["path"], row["label"]) for row in rows] == [
        (None, str(tmp_path / "cat/1.png"), 0),
        (None, str(tmp_path / "dog/2.png"), 1),
    ]


def test_images_stay_bytes_also_where_none_are_required(tmp_path):
    write_parquet(tmp_path / "a.parquet", range(3))
    assert stored(open_stream(tmp_path, require_image=False)) == [picture(shade) for shade in range(3)]


def opened(folder: Path, names: list[str], split: str = "train") -> tuple[list[str], list[str] | None]:
    """The images of a split in a folder of empty files, and its classes."""
    for name in names:
        write_image(folder / name)
    dataset = open_stream(folder, split=split)
    images = [str(Path(row["image"]["path"]).relative_to(folder)) for row in dataset]
    return sorted(images), dataset.features["label"].names if "label" in dataset.features else None


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("images/train2017/{}", "images/val2017/{}"),
        ("training_set/{}", "validation_set/{}"),
        ("train_images/{}", "val_images/{}"),
        ("my-train data/{}", "my-valid data/{}"),
        ("set/CLS-LOC/train/{}", "set/CLS-LOC/val/{}"),
        ("trainset/{}", "valset/{}"),
        ("COCO_train2014_{}", "COCO_val2014_{}"),
    ],
)
def test_splits_are_found_at_any_level_and_beside_other_words(train: str, held_out: str, tmp_path: Path):
    names = [path.format(f"{i}.png") for path in (train, held_out) for i in range(2)]
    assert opened(tmp_path, names) == (names[:2], None)
    assert opened(tmp_path, [], "validation") == (names[2:], None)


@pytest.mark.parametrize(
    "place", ["data/{split}/{name}", "{split}_set/{name}", "{name}/{split}", "{split}/{name}/images"]
)
def test_classes_are_the_level_of_folders_besides_the_splits(place: str, tmp_path: Path):
    names = [place.format(split=split, name=name) + "/0.png" for split in ("test", "train") for name in ("cat", "dog")]
    assert opened(tmp_path, names) == (names[2:], ["cat", "dog"])
    assert opened(tmp_path, [], "test") == (names[:2], ["cat", "dog"])


def test_parquet_as_the_hub_converts_it_has_its_splits(tmp_path):
    write_parquet(tmp_path / "default" / "train" / "0000.parquet", range(3))
    write_parquet(tmp_path / "default" / "test" / "0000.parquet", range(3, 5))
    assert len(stored(open_stream(tmp_path))) == 3
    assert len(stored(open_stream(tmp_path, split="test"))) == 2


def test_shards_named_after_a_split_anywhere_are_told_from_a_stray_one(tmp_path):
    for name in ("cifar-train-0", "cifar-test-0"):
        write_parquet(tmp_path / f"{name}.parquet", range(3))
    assert len(stored(open_stream(tmp_path))) == 3
    write_parquet(tmp_path / "cifar-more-0.parquet", range(3))
    with pytest.raises(
        DataSourceError, match=r"has the splits test, train, but cifar-more-0\.parquet belongs to none"
    ):
        open_stream(tmp_path)


@pytest.mark.parametrize("held_out", ["test", "val2017", "set/train/dev"])
def test_a_folder_called_like_held_out_data_is_not_trained_on(held_out: str, tmp_path: Path):
    for name in ("photos/0.png", f"{held_out}/1.png", "set/train/2.png"):
        write_image(tmp_path / name)
    with pytest.raises(
        DataSourceError, match=r"but photos/0\.png belongs to none of them.*'.*/\*\*/\*\.png' reads all"
    ):
        open_stream(tmp_path)
    assert len(list(open_stream(f"{tmp_path}/**/*.png"))) == 3


def test_words_that_also_mean_splits_are_words_in_captions_and_classes(tmp_path):
    names = ["a steam train.png", "an eye test.png", "the sea.png"]
    assert opened(tmp_path / "captions", names) == (names, None)
    classes = ["boat", "bullet train", "train"]
    assert opened(tmp_path / "classes", [f"{name}/0.png" for name in classes])[1] == classes
    assert opened(tmp_path / "tube", [f"{name}/0.png" for name in ("beaker", "test tube")])[1] == [
        "beaker",
        "test tube",
    ]
    names = [f"{split}/{name}/0.png" for split in ("test", "train") for name in ("boat", "test", "train")]
    assert opened(tmp_path / "both", names) == (names[3:], ["boat", "test", "train"])


def test_nested_folders_that_leave_open_what_the_class_is_give_no_labels(tmp_path):
    names = [f"{animal}/{year}/0.png" for animal in ("cat", "dog") for year in (2020, 2021)]
    assert opened(tmp_path, names) == (names, None)  # and a run that wants none hears nothing of it
    dataset = open_stream(tmp_path)
    reason = "; images lie in nested folders such as cat/2020, .* cannot be told: give a folder in which only one"
    for look in (find_label_column, lambda images: find_labels(images.features, None, why_none=why_no_labels(images))):
        with pytest.raises(DataSourceError, match=reason):
            look(dataset.shuffle(seed=0).take(2))
    assert why_no_labels(open_stream(tmp_path / "cat")) is None


def test_the_files_of_a_split_are_known_by_their_names_and_shards_by_their_sizes(tmp_path, monkeypatch):
    write_parquet(tmp_path / "shards" / "train-0.parquet", [1])
    write_parquet(tmp_path / "shards" / "test-0.parquet", [1])
    for name in ("cat/1.png", "dog/2.png"):
        write_image(tmp_path / "photos" / name)
    monkeypatch.chdir(tmp_path)
    shards, photos = digest_of_files(open_stream("shards")), digest_of_files(open_stream("photos"))
    assert digest_of_files(open_stream(tmp_path / "photos")) == photos
    assert digest_of_files(open_stream("shards/train*")) == digest_of_files(open_stream(f"{tmp_path}/shards/train*"))
    write_parquet(tmp_path / "shards" / "test-0.parquet", [1, 2])
    assert digest_of_files(open_stream("shards")) == shards
    write_parquet(tmp_path / "shards" / "train-0.parquet", [1, 2])
    assert digest_of_files(open_stream("shards")) != shards
    (tmp_path / "photos" / "dog" / "2.png").rename(tmp_path / "photos" / "dog" / "3.png")
    assert digest_of_files(open_stream("photos")) != photos
    for split in ("train", "test"):
        write_image(tmp_path / "both" / split / "1.png")
    train = digest_of_files(open_stream("both"))
    (tmp_path / "both" / "test" / "1.png").rename(tmp_path / "both" / "test" / "2.png")
    assert digest_of_files(open_stream("both")) == train


@pytest.mark.parametrize("folder", ["val_test", "val and test"])
def test_a_folder_called_like_several_splits_is_not_trained_on(tmp_path, folder):
    write_image(tmp_path / folder / "1.png")
    with pytest.raises(DataSourceError, match=f"has {folder}/1.png, whose folder is called like several splits: move"):
        open_stream(tmp_path)


def test_hidden_files_and_folders_are_none_of_the_data(tmp_path):
    names = ["cat/1.png", "dog/2.png", "cat/.1.png", ".thumbnails/3.png", "dog/.trash/4.png"]
    assert opened(tmp_path, names) == (names[:2], ["cat", "dog"])


def test_endings_in_capitals_are_endings(tmp_path):
    assert opened(tmp_path / "images", ["1.JPG", "2.Png"])[0] == ["1.JPG", "2.Png"]
    write_parquet(tmp_path / "shards" / "0.PARQUET", range(2))
    assert len(stored(open_stream(tmp_path / "shards"))) == 2


def test_a_file_that_two_patterns_match_is_read_once(tmp_path):
    write_parquet(tmp_path / "shards" / "a.parquet", range(3))
    write_parquet(tmp_path / "shards" / "b.parquet", range(3, 5))
    rows = stored(open_stream(tmp_path / "shards", data_files=["a*", "*.parquet"]))
    assert rows == [picture(shade) for shade in range(5)]


def test_the_signs_of_a_glob_in_the_name_of_a_folder_are_part_of_its_name(tmp_path):
    write_parquet(tmp_path / "cats [2020]" / "a*.parquet", range(2))
    write_parquet(tmp_path / "cats [2020]" / "ab.parquet", range(2, 3))
    assert len(stored(open_stream(tmp_path / "cats [2020]"))) == 3


def test_picked_files_are_read_whatever_the_card_says(tmp_path):
    write_parquet(tmp_path / "one.parquet", range(3))
    write_parquet(tmp_path / "two.parquet", range(3, 5))
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: one.parquet\n---\n")
    assert len(stored(open_stream(tmp_path))) == 3
    assert len(stored(open_stream(tmp_path, data_files="two.parquet"))) == 2


def test_picked_files_keep_the_classes_of_their_folders(tmp_path):
    names = [f"{split}/{name}/0.png" for split in ("train", "val") for name in ("cat", "dog")]
    opened(tmp_path, names)
    assert [row["label"] for row in open_stream(f"{tmp_path}/*/*/*.png")] == [0, 1, 0, 1]


@pytest.mark.parametrize("inside", ["photos", "photos/runs/mine", "elsewhere/../photos/runs", "link/runs"])
def test_an_output_within_listed_data_is_refused(inside: str, tmp_path: Path):
    write_image(tmp_path / "photos" / "0.png")
    os.symlink(tmp_path / "photos", tmp_path / "link")
    source, folder = str(tmp_path / "photos"), str(tmp_path / inside)
    with pytest.raises(DataSourceError, match=f"--feature_cache {folder} lies in {source}, the data set"):
        refuse_output_within(source, output_dir=str(tmp_path / "runs"), feature_cache=folder)


def test_an_output_that_no_listing_finds_is_not_refused(tmp_path, monkeypatch):
    write_image(tmp_path / "photos" / "0.png")
    monkeypatch.chdir(tmp_path)
    refuse_output_within("photos", output_dir="photos-runs/mine", feature_cache=None)
    refuse_output_within("photos", output_dir="photos/.runs")  # hidden folders are not read
    refuse_output_within("user/name", output_dir="user/name/runs")  # on the Hub, as there is no such folder here
    (tmp_path / "photos" / "README.md").write_text("---\nconfigs:\n- config_name: default\n---\n")
    refuse_output_within("photos", output_dir="photos/runs")


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (["seg_train/seg_train/sea/1.png", "seg_train/seg_train/wood/2.png", "seg_test/seg_test/sea/3.png"], 2, 1),
        (["trainval/cat/1.png", "trainval/dog/2.png", "test/cat/3.png"], 2, 1),
        (["train_val/cat/1.png", "train_val/dog/2.png", "test_set/cat/3.png"], 2, 1),
        (["train_val2018/cat/1.png", "train_val2018/dog/2.png"], 2, 0),
        (["train_val_1.png", "test_2.png"], 1, 1),
        (["train/boat/1.png", "train/test/2.png"], 2, 0),
        (["valid/1.png", "invalid/2.png"], 2, 0),
        (["Train/cat/1.png", "Train/dog/2.png", "TEST/cat/3.png"], 2, 1),
    ],
)
def test_layouts_of_the_wild(names: list[str], train: int, test: int, tmp_path: Path):
    for name in names:
        write_image(tmp_path / name)
    dataset = open_stream(tmp_path)
    assert len(list(dataset)) == train
    assert ("label" in dataset.features) == (names[0].count("/") > 0)
    if test:
        assert len(list(open_stream(tmp_path, split="test"))) == test


@pytest.mark.parametrize(
    ("names", "stray"),
    [
        (["train/sea/1.png", "test/sea/2.png", "pred/3.png"], "pred/3.png"),
        (["test_images/1.png", "photos/2.png"], "photos/2.png"),
        (["validation-0.parquet", "part-0.parquet"], "part-0.parquet"),
    ],
)
def test_what_lies_beside_held_out_data_is_not_taken_for_training(names: list[str], stray: str, tmp_path: Path):
    for name in names:
        if name.endswith(".png"):
            write_image(tmp_path / name)
        else:
            write_parquet(tmp_path / name, range(2))
    with pytest.raises(DataSourceError, match=f"but {re.escape(stray)} belongs to none of them"):
        open_stream(tmp_path)


def test_picked_files_may_have_classes_that_sound_like_splits(tmp_path: Path):
    for name in ("bullet_train/1.png", "test_tube/2.png"):
        write_image(tmp_path / name)
    assert open_stream(f"{tmp_path}/**/*.png").features["label"].names == ["bullet_train", "test_tube"]
