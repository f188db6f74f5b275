"""Labelled images are read, resized and encoded as the options of an evaluation script say."""

from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from tiny import draw_image, tiny_config

from maws_hf import MawsViTModel
from maws_hf.evaluation.features import encode_images
from maws_hf.processing.decode import decode_image
from maws_hf.processing.transforms import EvalTransform
from maws_hf.training.labelled_images import LabelledImageOptions, build_transform, read_features


def options_of(folder: Path, **options: object) -> LabelledImageOptions:
    return LabelledImageOptions(
        dataset_name=str(folder), output_dir=f"{folder}-out", dataloader_num_workers=0, **options
    )


@pytest.fixture(scope="module")
def model() -> MawsViTModel:
    torch.manual_seed(0)
    return MawsViTModel(tiny_config()).eval()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two columns of labels, and in the test split other pictures."""
    kinds = Features({"image": Image(), "label": ClassLabel(names=["a", "b"]), "kind": ClassLabel(names=["c", "d"])})
    for split, first in (("train", 0), ("test", 10)):
        images = [{"bytes": draw_image(first + n, size=50), "path": f"{split}-{n}.png"} for n in range(3)]
        rows = {"image": images, "label": [0, 1, 0], "kind": [1, 1, 0]}
        Dataset.from_dict(rows, features=kinds).to_parquet(tmp_path / "data" / f"{split}-0.parquet")
    return tmp_path / "data"


def test_the_size_is_the_one_asked_for_or_the_models_own(model, tmp_path):
    assert build_transform(options_of(tmp_path), model) == EvalTransform(32)
    assert build_transform(options_of(tmp_path, resize_size=40), model) == EvalTransform(32, 40)
    assert build_transform(options_of(tmp_path, image_size=48, resize_size=50), model) == EvalTransform(48, 50)
    wide = MawsViTModel(tiny_config(image_size=(16, 32)))
    assert build_transform(options_of(tmp_path), wide) == EvalTransform((16, 32))
    with pytest.raises(ValueError, match="--resize_size 31 is less than the 32 pixels"):
        build_transform(options_of(tmp_path, resize_size=31), wide)


@pytest.mark.parametrize("bf16", [False, True])
def test_features_are_of_the_split_the_column_and_the_precision_asked_for(bf16, model, corpus):
    options = options_of(corpus, label_column_name="kind", image_size=48, bf16=bf16)
    found = read_features(options, "name", model, "test")
    assert found.labels == [1, 1, 0]
    pixels = torch.stack([EvalTransform(48)(decode_image(draw_image(number, size=50))) for number in (10, 11, 12)])
    expected = encode_images(model, pixels)
    assert ((found.features - expected).norm() > 1e-4 * expected.norm()) == bf16
    assert (found.features - expected).norm() < 0.1 * expected.norm()


def test_features_lie_where_they_are_said_to(model, corpus, tmp_path, capsys):
    for folder in (None, str(tmp_path / "shared"), str(tmp_path / "shared")):
        read_features(options_of(corpus, label_column_name="label", feature_cache=folder), "name", model, "test")
    assert len(list(Path(f"{corpus}-out", "features").iterdir())) == 1
    assert len(list((tmp_path / "shared").iterdir())) == 1
    said = capsys.readouterr().out
    assert said.count("features computed") == 2
    assert said.count("features read from the cache") == 1


def test_the_configuration_of_a_data_set_is_passed_on(tmp_path, monkeypatch):
    opened = {}
    monkeypatch.setattr("maws_hf.training.labelled_images.open_stream", lambda source, **how: opened.update(how))
    options_of(tmp_path, dataset_config_name="large", image_column_name="photo").open("validation")
    assert opened == {"split": "validation", "name": "large", "image_column": "photo"}
