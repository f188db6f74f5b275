from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from tiny import draw_image

from maws_hf.data.sources import open_stream
from maws_hf.evaluation.features import find_label_column
from maws_hf.training.labelled_images import LabelledImageOptions, open_labelled


@pytest.fixture
def options(tmp_path: Path) -> LabelledImageOptions:
    """Of 40 images, sorted by class, in two shards; a mask beside each."""
    columns = Features({"mask": ImageFeature(), "image": ImageFeature(), "class": ClassLabel(names=["a", "b"])})
    images = [{"bytes": draw_image(number), "path": f"{number}.png"} for number in range(40)]
    labels = [number // 20 for number in range(40)]
    rows = Dataset.from_dict({"mask": images[::-1], "image": images, "class": labels}, features=columns)
    for shard in range(2):
        rows.shard(2, shard).to_parquet(tmp_path / "data" / f"train-{shard}.parquet")
    return LabelledImageOptions(
        dataset_name=str(tmp_path / "data"), output_dir=str(tmp_path / "run"), image_column_name="image"
    )


def test_a_random_choice_is_of_all_rows_and_depends_on_the_seed_alone(options: LabelledImageOptions):
    everything = {row["image"]["path"]: row for row in open_stream(options.dataset_name, image_column="image")}
    chosen = {seed: list(open_labelled(options, "train", 12, seed)) for seed in (0, 1)}
    assert chosen[0] == list(open_labelled(options, "train", 12, 0))
    names = [{row["__key__"] for row in rows} for rows in chosen.values()]
    assert [len(rows) for rows in names] == [12, 12]
    assert names[0] != names[1]
    for row in chosen[0]:
        whole = everything[row["__key__"]]
        assert (row["image"], row["class"]) == (whole["image"], whole["class"])
        assert "mask" not in row
    assert {row["class"] for row in chosen[0]} == {0, 1}


def test_a_random_choice_is_opened_like_a_split(options: LabelledImageOptions):
    dataset = open_labelled(options, "train", 12)
    assert find_label_column(dataset) == "class"
    parts = [list(dataset.shard(3, index)) for index in range(3)]
    assert [row for part in parts for row in part] == list(dataset)
    assert len(list(open_labelled(options, "train", 100))) == 40
    assert len(list(open_labelled(options, "train"))) == 40
