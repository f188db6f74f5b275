"""Which columns of a data set a run reads."""

import io
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import draw_image

from maws_hf.data.sources import DataSourceError
from maws_hf.training.image_labels import LabelRecipe, read_labels
from maws_hf.training.images import ImageOptions, open_images
from maws_hf.training.pairs import PairRecipe, open_pairs


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two, as other writers than `datasets` make them: a column without a value has no type."""
    for number, note in enumerate((None, "a text")):
        images = [{"bytes": draw_image(row), "path": None} for row in range(3)]
        table = {"text": [note] * 3, "photo": images, "id": ["p", "q", "r"], "label": [0, 1, 2], "other": images}
        pq.write_table(pa.table(table), tmp_path / f"train-{number}.parquet")
    return tmp_path


def test_columns_that_nobody_wants_may_differ_in_type(shards):
    options = ImageOptions(dataset_name=str(shards), image_column_name="photo")
    dataset, column = open_images(options, "train", ["label"])
    assert column == "photo"
    assert list(dataset.features) == ["photo", "id", "label"]
    assert [(row["id"], row["label"]) for row in dataset] == [("p", 0), ("q", 1), ("r", 2)] * 2
    assert [row["photo"]["bytes"] for row in dataset] == [draw_image(number) for number in range(3)] * 2


def test_a_wanted_column_without_a_type_is_named_with_its_shard(shards):
    options = {"dataset_name": str(shards), "output_dir": f"{shards}-out", "image_column_name": "photo"}
    wanted = re.escape(f"there is no value of text in {shards / 'train-0.parquet'}, from which types")
    with pytest.raises(DataSourceError, match=f"the captions in text are .*{wanted}"):
        open_pairs(PairRecipe(**options), "train")
    with pytest.raises(DataSourceError, match=f"the labels in text are .*{wanted}"):
        read_labels(LabelRecipe(**options, label_column_name="text"))


def test_wanted_columns_of_tar_shards_and_image_folders_stay(tmp_path):
    for folder in ("cat", "dog"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        (tmp_path / "images" / folder / "1.png").write_bytes(draw_image(0))
    dataset, _ = open_images(ImageOptions(dataset_name=str(tmp_path / "images")), "train", ["label"])
    assert [(row["image"]["bytes"], row["label"]) for row in dataset] == [(draw_image(0), 0), (draw_image(0), 1)]
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in {"a.png": draw_image(0), "a.cls": b"1", "a.txt": b"a dog"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    dataset, _ = open_images(ImageOptions(dataset_name=str(tmp_path / "0.tar")), "train", ["cls"])
    (row,) = dataset
    assert (row.keys(), row["png"]["bytes"], row["cls"]) == ({"png", "__key__", "cls"}, draw_image(0), 1)
