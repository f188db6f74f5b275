"""Which rows and columns of a data set a run reads, and what it makes of their images."""

import io
import itertools
import re
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from tiny import draw_image

from maws_hf.data.sources import DataSourceError
from maws_hf.data.streaming import StreamError
from maws_hf.processing.decode import decode_image
from maws_hf.processing.transforms import EvalTransform
from maws_hf.training import images
from maws_hf.training.image_labels import LabelRecipe, read_all_labels, read_labels
from maws_hf.training.images import (
    ImageOptions,
    ImageRecipe,
    build_training_loader,
    open_images,
    read_eval_samples,
)
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


def test_the_configuration_of_a_data_set_is_passed_on(shards, monkeypatch):
    opened = []

    def open_stream(source: str, **how: object):
        opened.append((how.pop("name"), how["split"]))
        return really(source, **how)

    really = images.open_stream
    monkeypatch.setattr(images, "open_stream", open_stream)
    monkeypatch.setattr("maws_hf.training.image_labels.open_stream", open_stream)
    options = {"dataset_name": str(shards), "image_column_name": "photo", "dataset_config_name": "large"}
    open_images(ImageOptions(**options), "train", ["label"])
    recipe = LabelRecipe(**options, output_dir=f"{shards}-out", num_labels=3)
    assert list(read_all_labels(recipe, "train", read_labels(recipe)[0], "checking"))
    assert set(opened) == {("large", "train")}


def write_split(folder: Path, split: str, pictures: list[bytes], shards: int = 1) -> None:
    kinds = Features({"image": Image(), "number": Value("int64")})
    images = [{"bytes": picture, "path": f"{split}-{number}.png"} for number, picture in enumerate(pictures)]
    rows = Dataset.from_dict({"image": images, "number": list(range(len(images)))}, features=kinds)
    for shard in range(shards):
        rows.shard(shards, shard).to_parquet(folder / f"{split}-{shard:05d}.parquet")


def recipe_of(folder: Path, **options: object) -> ImageRecipe:
    defaults = {"per_device_train_batch_size": 4, "dataloader_num_workers": 0}
    return ImageRecipe(dataset_name=str(folder), output_dir=f"{folder}-out", **{**defaults, **options})


def first_batches(recipe: ImageRecipe, count: int, **options: object) -> tuple[torch.Tensor, list[str]]:
    """Pixels and names of the images of so many batches, as one process of a run gets them."""
    accelerator = SimpleNamespace(process_index=0, num_processes=1)
    batches = list(itertools.islice(build_training_loader(recipe, 24, accelerator, **options), count))
    return torch.cat([batch["pixel_values"] for batch in batches]), [key for batch in batches for key in batch["keys"]]


def test_the_smallest_crop_is_the_one_asked_for(tmp_path):
    write_split(tmp_path, "train", [draw_image(0)] * 8)
    whole = torch.from_numpy(decode_image(draw_image(0))).permute(2, 0, 1)
    pixels, _ = first_batches(recipe_of(tmp_path, crop_scale=1.0), 2, hflip=0)
    assert all(torch.equal(image, whole) for image in pixels)  # a square is cropped to nothing but itself
    pixels, _ = first_batches(recipe_of(tmp_path, crop_scale=0.1), 2, hflip=0)
    assert not any(torch.equal(image, whole) for image in pixels)


def test_what_augments_a_crop_and_how_often_a_row_comes_are_heeded(tmp_path):
    write_split(tmp_path, "train", [draw_image(number) for number in range(8)])
    pixels, keys = first_batches(
        recipe_of(tmp_path),
        3,
        columns=["number"],
        augment=lambda crop, rng: np.full_like(crop, 7),
        repeats=lambda row: 3.0 * (row["number"] in (2, 5)),
    )
    assert (pixels == 7).all()
    assert sorted(set(keys)) == ["train-2.png", "train-5.png"]


def test_the_seed_and_the_block_decide_the_order_and_the_split_the_images(tmp_path):
    for split in ("train", "test"):
        write_split(tmp_path, split, [draw_image(number) for number in range(12)])
    orders = [
        first_batches(recipe_of(tmp_path, **options), 3)[1]
        for options in ({}, {}, {"seed": 1}, {"shuffle_block_size": 1}, {"dataset_split": "test"})
    ]
    assert orders[0] == orders[1]
    assert orders[2] != orders[0]
    assert orders[3] == [f"train-{number}.png" for number in range(12)]  # blocks of one image shuffle nothing
    assert sorted(orders[4]) == sorted(f"test-{number}.png" for number in range(12))


def test_as_many_shards_may_be_damaged_as_images(tmp_path):
    write_split(tmp_path, "train", [draw_image(number) for number in range(16)], shards=4)
    for shard in (1, 2):
        file = tmp_path / f"train-0000{shard}.parquet"
        file.write_bytes(file.read_bytes()[:-9])
    _, keys = first_batches(recipe_of(tmp_path, max_skip_rate=0.6), 4)
    assert set(keys) == {f"train-{number}.png" for number in (*range(4), *range(12, 16))}
    with pytest.raises(StreamError, match=r"meets 2 damaged shards .* allow more with --max_skip_rate"):
        first_batches(recipe_of(tmp_path), 4)


def test_a_sample_of_a_split_is_prepared_as_asked_and_spread_over_it(tmp_path):
    numbers = list(range(60))
    write_split(tmp_path, "train", [draw_image(0)])
    pictures = [draw_image(number, size=40) for number in numbers]
    pictures[:30] = [b"no picture"] * 30
    write_split(tmp_path, "test", pictures)

    def read(**options: object) -> list[dict]:
        recipe = recipe_of(tmp_path, eval_split=options.pop("eval_split", "test"), seed=options.pop("seed", 0))
        extra = {"columns": ["number"], "extra": lambda row, rng: {"number": row["number"]}}
        return read_eval_samples(recipe, 24, **{"count": 6, **extra, **options})

    with_resize = read(resize=30, keep=lambda row: row["number"] >= 30)
    assert len(with_resize) == 6
    for sample in with_resize:
        assert torch.equal(sample["pixel_values"], EvalTransform(24, 30)(decode_image(pictures[sample["number"]])))
    found = [[sample["number"] for sample in read(seed=seed, count=20)] for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert 0 < len(found[0]) < 20, "damaged ones are left out"
    assert [sample["number"] for sample in read(split="train", eval_split="test")] == [0]
    with pytest.raises(DataSourceError, match=r"the split test of .* has no image with labels or captions to look at"):
        read(keep=lambda row: False)
