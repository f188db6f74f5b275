from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from tiny import draw_image

from maws_hf.data.sources import open_stream
from maws_hf.evaluation.pixels import Pixels, read_pixels
from maws_hf.processing import EvalTransform, decode_image

TRANSFORM = EvalTransform(16)
COLUMNS = Features({"image": ImageFeature(), "label": Value("int64")})


def write(folder: Path, damaged: set[int], rows: int = 6) -> Path:
    images = [
        {"bytes": b"no image" if row in damaged else draw_image(row), "path": f"{row}.png" if row % 2 else None}
        for row in range(rows)
    ]
    table = Dataset.from_dict({"image": images, "label": [*range(rows)]}, features=COLUMNS)
    for shard in range(2):
        table.shard(2, shard).to_parquet(folder / f"train-{shard}.parquet")
    return folder


def read(folder: Path, **options) -> Pixels:
    return read_pixels(open_stream(folder), TRANSFORM, split="train", label_column="label", batch_size=2, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_decoded_is_left_out_and_named(workers: int, tmp_path: Path):
    found = read(write(tmp_path, {1, 4}), num_workers=workers)
    assert found.labels == found.places == [0, 2, 3, 5]
    expected = torch.stack([TRANSFORM(decode_image(draw_image(row))) for row in (0, 2, 3, 5)])
    assert torch.equal(found.pixels, expected)
    assert [record["key"] for record in found.skipped] == ["1.png", "row 4"]
    assert all(record["reason"] for record in found.skipped)


def test_of_the_rows_that_are_wanted_none_may_be_decoded(tmp_path: Path):
    write(tmp_path, {1, 4})
    found = read(tmp_path, only=[1, 2, 4])
    assert (found.labels, found.places) == ([2], [1])
    assert [record["key"] for record in found.skipped] == ["1.png", "row 4"]
    found = read(tmp_path, only=[4])
    assert (len(found.pixels), found.places, len(found.skipped)) == (0, [], 1)


def test_a_split_without_an_image_says_why(tmp_path: Path):
    write(tmp_path, set(range(6)))
    with pytest.raises(ValueError, match=r"none of 6 images of the split train can be decoded: .*\w"):
        read(tmp_path)


def test_rows_are_counted_through_the_split_also_with_workers(tmp_path: Path):
    found = read(write(tmp_path, set()), only=[0, 4, 5], num_workers=2)
    assert found.labels == [0, 4, 5]


def test_a_row_without_a_label_is_an_error_unless_it_may_lack_one(tmp_path: Path):
    images = [{"bytes": draw_image(row), "path": f"{row}.png"} for row in range(2)]
    Dataset.from_dict({"image": images, "label": [3, -1]}, features=COLUMNS).to_parquet(tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=r"1\.png has no label in label"):
        read(tmp_path)
    assert read(tmp_path, may_lack_labels=True).labels == [3, -1]


def test_a_key_may_be_the_number_nought(tmp_path: Path):
    images = [{"bytes": b"no image" if row < 2 else draw_image(row), "path": f"{row}.png"} for row in range(3)]
    columns = Features({**COLUMNS, "id": Value("int64")})
    rows = {"image": images, "label": [0, 1, 2], "id": [0, None, 7]}
    Dataset.from_dict(rows, features=columns).to_parquet(tmp_path / "train-0.parquet")
    assert [record["key"] for record in read(tmp_path).skipped] == ["0", "1.png"]
