"""What a run reads of the labels of a split, without its images."""

from dataclasses import replace
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from tiny import draw_image

from maws_hf.data.sources import DataSourceError
from maws_hf.data.vocabulary import LabelClass, Vocabulary
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


def test_another_split_may_number_the_classes_otherwise(tmp_path):
    recipe = write_parquet(tmp_path, ClassLabel(names=["a", "b", "c"]), [0, 1])
    kinds = Features({"image": Image(), "label": ClassLabel(names=["c", "a", "b"])})
    rows = {"image": [{"bytes": draw_image(0), "path": "0.png"}] * 3, "label": [0, 1, 2]}
    Dataset.from_dict(rows, features=kinds).to_parquet(tmp_path / "test-0.parquet")
    reader, _ = read_labels(recipe)
    assert list(read_all_labels(recipe, "test", reader, "checking")) == [[2], [0], [1]]


def test_a_vocabulary_lies_beside_the_shards_or_where_it_is_said_to(tmp_path):
    ids = ["n00000001", "n00000002"]
    recipe = write_parquet(tmp_path / "data", List(Value("string")), [[ids[0]], [ids[1]], ids])

    def save(file: Path, name: str) -> None:
        classes = (
            LabelClass(id=id, name=f"{name} {id[-1]}", gloss="", count=2, rarest=1 + n) for n, id in enumerate(ids)
        )
        Vocabulary(images=3, min_count=1, classes=tuple(classes)).save(file)

    save(tmp_path / "data" / "vocabulary.json", "thing")
    for source in (
        tmp_path / "data",
        tmp_path / "data" / "train-*.parquet",
        tmp_path / "data" / "train-00000.parquet",
    ):
        reader, columns = read_labels(replace(recipe, dataset_name=str(source)))
        assert reader.names == ("thing 1", "thing 2")
        assert "label" in columns
    save(tmp_path / "others.json", "other")
    reader, _ = read_labels(replace(recipe, vocabulary_file=str(tmp_path / "others.json")))
    assert reader.names == ("other 1", "other 2")


def test_of_several_columns_the_named_one_is_read(tmp_path):
    recipe = write_parquet(tmp_path, Value("int64"), [0, 1, 2], bird=["owl", "ape", "owl"])
    reader, _ = read_labels(replace(recipe, label_column_name="bird"), texts_are_classes=True)
    assert list(read_all_labels(recipe, "train", reader, "checking")) == [[1], [0], [1]]


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
