"""What a run reads of the labels of a split, without its images."""

from dataclasses import replace
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from tiny import draw_image

from maws_hf.data.sources import DataSourceError
from maws_hf.training.image_labels import LabelRecipe, read_all_labels, read_labels


def write_parquet(folder: Path, kind, labels: list, **columns: list) -> LabelRecipe:
    features = {"image": Image(), "label": kind, **{name: Value("string") for name in columns}}
    images = [{"bytes": draw_image(number), "path": f"{number}.png"} for number in range(len(labels))]
    rows = Dataset.from_dict({"image": images, "label": labels, **columns}, features=Features(features))
    folder.mkdir(exist_ok=True)
    for shard in range(2):
        rows.shard(2, shard).to_parquet(folder / f"train-{shard:05d}.parquet")
    return LabelRecipe(dataset_name=str(folder), output_dir=f"{folder}-out", num_labels=3)


def all_labels(recipe: LabelRecipe) -> list[list[int]]:
    reader, _ = read_labels(recipe)
    return list(read_all_labels(recipe, "train", reader, "checking"))


def test_all_labels_of_parquet_come_in_order(tmp_path):
    recipe = write_parquet(tmp_path, ClassLabel(names=["a", "b"]), [1, 0, -1, 1])
    assert all_labels(recipe) == [[1], [0], [], [1]]


@pytest.mark.parametrize(
    ("columns", "name"), [({"id": ["p", "q", "r", "s"]}, "r"), ({}, "row 2 of the split train")], ids=["id", "no id"]
)
def test_a_label_that_is_no_class_is_named_with_its_image(columns, name, tmp_path):
    recipe = write_parquet(tmp_path, Value("int64"), [0, 1, 7, 2], **columns)
    with pytest.raises(ValueError, match=f"^{name}: label 7 in label is not in 0..2"):
        all_labels(recipe)


def test_labels_of_class_folders_need_no_image(tmp_path, monkeypatch):
    for number, name in enumerate(("cat/1.png", "dog/2.png", "dog/3.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(draw_image(number))
    recipe = LabelRecipe(dataset_name=str(tmp_path), output_dir=f"{tmp_path}-out")
    reader, _ = read_labels(recipe)
    monkeypatch.setattr("builtins.open", refuse_images(open))
    assert list(read_all_labels(recipe, "train", reader, "checking")) == [[0], [1], [1]]


def refuse_images(really_open):
    def guarded(path, *arguments, **options):
        assert not str(path).endswith(".png"), "an image was opened"
        return really_open(path, *arguments, **options)

    return guarded


def test_texts_are_classes_by_alphabet_where_a_script_wants_that(tmp_path):
    recipe = write_parquet(tmp_path, Value("string"), ["owl", None, "ape", "owl"])
    reader, _ = read_labels(recipe, texts_are_classes=True)
    assert reader.names == ("ape", "owl")
    assert list(read_all_labels(recipe, "train", reader, "checking")) == [[1], [], [0], [1]]
    with pytest.raises(ValueError, match="newt in label is none of the 2 of the training split"):
        reader({"label": "newt"})
    with pytest.raises(DataSourceError, match="names of classes must be stored as a ClassLabel"):
        read_labels(recipe)
    absent = replace(recipe, vocabulary_file=str(tmp_path / "absent.json"))
    with pytest.raises(DataSourceError, match=r"absent\.json is not there"):
        read_labels(absent, texts_are_classes=True)


def test_several_texts_an_image_are_several_classes(tmp_path):
    recipe = write_parquet(tmp_path, List(Value("string")), [["owl", "ape"], [], ["newt"], ["owl", None]])
    reader, _ = read_labels(recipe, texts_are_classes=True)
    assert list(read_all_labels(recipe, "train", reader, "checking")) == [[0, 2], [], [1], [2]]


def test_a_damaged_shard_costs_its_labels_and_no_others(tmp_path):
    recipe = write_parquet(tmp_path, ClassLabel(names=["a", "b"]), [1, 0, 1, 1])
    damaged = tmp_path / "train-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=r"train-00001\.parquet is damaged after 0 parts"):
        assert all_labels(recipe) == [[1], [0]]
