"""Small real images that several tests train on."""

from pathlib import Path

import pytest
from tiny import draw_image


@pytest.fixture(scope="session")
def image_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four Parquet shards with 24 images each."""
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    folder = tmp_path_factory.mktemp("image_shards")
    for shard in range(4):
        rows = [{"bytes": draw_image(24 * shard + i), "path": f"{shard}/{i}.png"} for i in range(24)]
        dataset = Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature()}))
        dataset.to_parquet(folder / f"train-{shard:05d}-of-00004.parquet")
    return folder
