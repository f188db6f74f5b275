"""From folders and tables on disk to the logits and class numbers of a test set."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from tiny import draw_image, tiny_config
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from maws_hf import MawsViTForImageClassification
from maws_hf.data.sources import DataSourceError
from maws_hf.evaluation.benchmark_images import BenchmarkImages, classify_images, fingerprint, open_benchmark
from maws_hf.evaluation.classifiers import Preprocessing, load_classifier, logits_of, preprocessing_of
from maws_hf.evaluation.label_maps import LabelMapError, imagenet_classes, imagenet_subset
from maws_hf.evaluation.robustness import benchmark_of
from maws_hf.processing.image_processors import square_image_processor_of
from maws_hf.processing.transforms import IMAGENET_MEAN, IMAGENET_STD

WNIDS = list(imagenet_classes())
ANY = ("test", "validation", "train")
UNTOUCHED = Preprocessing(size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)


def put(folder: Path, *names: str, size: int = 8) -> Path:
    """Pictures of their own in these files."""
    for number, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(draw_image(number, size=max(size, 12)))
    return folder


def seen(images: BenchmarkImages, transform=UNTOUCHED, classes=range(1000)) -> dict[str, int]:
    """File name -> label of each image that a classifier is shown."""
    outputs = classify_images(images, lambda pixels: torch.zeros(len(pixels), 1000), transform, classes, classes)
    names = [Path(path or "?").name for path in outputs.paths]
    return dict(zip(names, outputs.labels.tolist(), strict=True))


def test_integer_folders_are_class_numbers_not_places_among_sorted_names(tmp_path):
    put(tmp_path, "0/a.png", "1/b.png", "2/c.png", "10/d.png", "100/e.png")
    found = seen(open_benchmark(str(tmp_path), benchmark_of("imagenet_v2/top-images"), splits=ANY))
    assert found == {"a.png": 0, "b.png": 1, "c.png": 2, "d.png": 10, "e.png": 100}


def test_wnid_folders_are_classes_even_if_there_is_just_one(tmp_path):
    many = put(tmp_path / "many", f"{WNIDS[5]}/a.png", f"{WNIDS[3]}/b.png")
    assert seen(open_benchmark(str(many), benchmark_of("imagenet_sketch"), splits=ANY)) == {"a.png": 5, "b.png": 3}
    one = put(tmp_path / "one", f"{WNIDS[5]}/a.png")
    assert seen(open_benchmark(str(one), benchmark_of("imagenet_sketch"), splits=ANY)) == {"a.png": 5}


def test_folders_that_are_no_classes_are_refused_before_an_image_is_read(tmp_path):
    put(tmp_path, "cats/a.png", "dogs/b.png")
    with pytest.raises(LabelMapError, match="the label 'cats' is no class of ImageNet"):
        open_benchmark(str(tmp_path), benchmark_of("imagenet_sketch"), splits=ANY)
    with pytest.raises(LabelMapError, match="'cats' is none of ObjectNet's 313 folders"):
        open_benchmark(str(tmp_path), benchmark_of("objectnet"), splits=ANY)


def test_a_class_outside_of_the_subset_names_its_image(tmp_path):
    inside = WNIDS[imagenet_subset("imagenet_a")[0]]
    put(tmp_path, f"{WNIDS[0]}/a.png", f"{inside}/b.png")
    images = open_benchmark(str(tmp_path), benchmark_of("imagenet_a"), splits=ANY)
    with pytest.raises(LabelMapError, match=r"a\.png: class 0 of ImageNet, n01440764, is none of the 200"):
        seen(images)


def test_objects_outside_of_imagenet_are_never_decoded(tmp_path):
    put(tmp_path, "images/alarm_clock/a.png", "images/banana/b.png")
    (tmp_path / "images/air_freshener").mkdir()
    (tmp_path / "images/air_freshener/damaged.png").write_bytes(b"not a picture")
    benchmark = benchmark_of("objectnet")
    images = open_benchmark(str(tmp_path), benchmark, splits=ANY)
    outputs = classify_images(images, lambda p: torch.zeros(len(p), 1000), UNTOUCHED, range(1000), range(1000))
    assert outputs.skipped == []
    names = {
        Path(path).name: benchmark.folders[label] for path, label in zip(outputs.paths, outputs.labels, strict=True)
    }
    assert names == {"a.png": "alarm_clock", "b.png": "banana"}


def test_the_border_is_cut_before_resizing():
    picture = np.zeros((9, 14, 3), np.uint8)
    picture[..., 0] = 255  # red all around
    picture[2:-2, 2:-2] = (10, 20, 30)
    for resize in ("square", "crop"):
        bare = Preprocessing(resize=resize, size=(6, 6), mean=(0.0,) * 3, std=(1.0,) * 3, border=2)
        colours = (bare(picture) * 255).flatten(1)
        assert colours.min(dim=1).values.tolist() == colours.max(dim=1).values.tolist()
        assert colours[:, 0].round().tolist() == [10, 20, 30]
        assert not torch.equal(Preprocessing(resize=resize, size=(6, 6))(picture), bare(picture))


def test_a_picture_that_is_all_border_is_skipped_like_a_damaged_one(tmp_path):
    put(tmp_path, "banana/a.png", "banana/c.png", "alarm_clock/b.png")
    Image.new("RGB", (4, 30)).save(tmp_path / "banana/thin.png")
    (tmp_path / "banana/damaged.png").write_bytes((tmp_path / "banana/a.png").read_bytes()[:60])
    images = open_benchmark(str(tmp_path), benchmark_of("objectnet"), splits=ANY)
    transform = Preprocessing(size=(8, 8), border=2)
    outputs = classify_images(images, lambda p: torch.zeros(len(p), 1000), transform, range(1000), range(1000))
    assert sorted(Path(path).name for path in outputs.paths) == ["a.png", "b.png", "c.png"]
    reasons = {Path(bad["key"]).name: bad["reason"] for bad in outputs.skipped}
    assert reasons.keys() == {"thin.png", "damaged.png"}
    assert "border of 2 pixels" in reasons["thin.png"]


@pytest.mark.parametrize("names", [["10", "2"], [WNIDS[10], WNIDS[2]]])
def test_class_names_of_a_table_are_read_as_what_they_say(names, tmp_path):
    columns = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    images = [{"bytes": draw_image(number), "path": f"{number}.png"} for number in range(3)]
    Dataset.from_dict({"image": images, "label": [0, 1, 0]}, features=columns).to_parquet(tmp_path / "test-0.parquet")
    found = seen(open_benchmark(str(tmp_path), benchmark_of("imagenet_val"), splits=ANY))
    assert found == {"0.png": 10, "1.png": 2, "2.png": 10}


def test_integers_and_strings_of_a_table_are_class_numbers_and_wnids(tmp_path):
    images = [{"bytes": draw_image(number), "path": f"{number}.png"} for number in range(2)]
    for name, labels in {"numbers": [2, 10], "wnids": [WNIDS[2], WNIDS[10]]}.items():
        table = Dataset.from_dict({"image": images, "label": labels}).cast_column("image", ImageFeature())
        (tmp_path / name).mkdir()
        table.to_parquet(tmp_path / name / "validation-0.parquet")
        found = seen(open_benchmark(str(tmp_path / name), benchmark_of("imagenet_val"), splits=ANY))
        assert found == {"0.png": 2, "1.png": 10}


def test_minus_one_of_an_unlabelled_split_is_not_the_last_class(tmp_path):
    columns = Features({"image": ImageFeature(), "label": ClassLabel(names=WNIDS)})
    rows = {"image": [{"bytes": draw_image(0), "path": "0.png"}], "label": [-1]}
    Dataset.from_dict(rows, features=columns).to_parquet(tmp_path / "test-0.parquet")
    images = open_benchmark(str(tmp_path), benchmark_of("imagenet_val"), splits=ANY)
    with pytest.raises(LabelMapError, match="the split has no labels"):
        seen(images)


def test_a_label_that_is_missing_is_not_a_class(tmp_path):
    columns = Features({"image": ImageFeature(), "label": ClassLabel(names=WNIDS)})
    rows = {"image": [{"bytes": draw_image(0), "path": "0.png"}], "label": [None]}
    Dataset.from_dict(rows, features=columns).to_parquet(tmp_path / "test-0.parquet")
    images = open_benchmark(str(tmp_path), benchmark_of("imagenet_val"), splits=ANY)
    with pytest.raises(LabelMapError, match=r"0\.png: the label None is not a single class"):
        seen(images)


def test_a_column_of_other_classes_is_refused_also_where_labels_may_lack(tmp_path):
    columns = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": draw_image(0), "path": "0.png"}], "label": [1]}
    Dataset.from_dict(rows, features=columns).to_parquet(tmp_path / "test-0.parquet")
    with pytest.raises(LabelMapError, match="'cat' is no class of ImageNet"):
        open_benchmark(str(tmp_path), benchmark_of("imagenet_val"), splits=ANY, may_lack_labels=True)


def test_only_a_missing_split_makes_way_for_the_next_one(tmp_path, monkeypatch):
    asked = []

    def refuse(source, *, split, **options):
        asked.append(split)
        raise DataSourceError("no split 'test'" if split == "test" else f"{split} is damaged")

    monkeypatch.setattr("maws_hf.evaluation.benchmark_images.open_stream", refuse)
    with pytest.raises(DataSourceError, match="validation is damaged"):
        open_benchmark(str(tmp_path), benchmark_of("imagenet_val"), splits=ANY)
    assert asked == ["test", "validation"]


def test_a_flat_folder_has_no_labels_and_is_refused_where_they_are_wanted(tmp_path):
    put(tmp_path, "ILSVRC2012_val_00000002.png", "ILSVRC2012_val_00000001.png")
    benchmark = benchmark_of("imagenet_val")
    images = open_benchmark(str(tmp_path), benchmark, splits=ANY, may_lack_labels=True)
    outputs = classify_images(images, lambda p: torch.zeros(len(p), 1000), UNTOUCHED, range(1000), range(1000))
    assert outputs.labels is None
    assert len(outputs.paths) == 2
    with pytest.raises(LabelMapError, match="is no class of ImageNet"):
        open_benchmark(str(tmp_path), benchmark, splits=ANY)


def test_logits_come_into_imagenets_order_and_absent_classes_are_last(tmp_path):
    put(tmp_path, "3/a.png", "7/b.png")
    images = open_benchmark(str(tmp_path), benchmark_of("imagenet_val"), splits=ANY)
    model = torch.tensor([[1.0, 2.0, 3.0]])
    outputs = classify_images(images, lambda p: model.expand(len(p), 3), UNTOUCHED, [3, 7], [2, 0])
    assert outputs.logits[:, [3, 7]].tolist() == [[3.0, 1.0]] * 2
    assert (outputs.logits == -torch.inf).sum() == 2 * 998


def test_another_file_makes_another_fingerprint(tmp_path):
    put(tmp_path, "3/a.png", "7/b.png")
    before = fingerprint(str(tmp_path))
    assert fingerprint(str(tmp_path)) == before
    file = tmp_path / "7" / "b.png"
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    assert fingerprint(str(tmp_path)) != before, "another time"
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(str(tmp_path)) == before
    file.rename(tmp_path / "7" / "c.png")
    assert fingerprint(str(tmp_path)) != before, "another name"
    (tmp_path / "7" / "c.png").rename(file)
    put(tmp_path, "8/c.png")
    assert fingerprint(str(tmp_path)) != before, "another file"
    assert fingerprint("user/name:part") == "user/name:part"


# ---------------------------------------------------------------- classifiers


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    MawsViTForImageClassification(tiny_config(num_labels=5)).save_pretrained(folder)
    return folder


def test_the_whole_picture_is_squared_as_the_released_script_does(classifier):
    picture = np.random.default_rng(0).integers(0, 256, (40, 75, 3), np.uint8)
    model = load_classifier(str(classifier))
    squared = Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC)
    mean, deviation = (np.array(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = ((np.asarray(squared) / 255 - mean) / deviation).transpose(2, 0, 1)
    square = preprocessing_of(str(classifier), model, "square")
    assert np.abs(square(picture).numpy() - expected).max() < 1e-5
    crop = preprocessing_of(str(classifier), model, "crop")
    assert crop(picture).shape == (3, 32, 32)
    assert not torch.equal(crop(picture), square(picture))


def test_a_models_own_processor_is_the_default_and_without_one_resize_must_be_said(classifier, tmp_path):
    model = load_classifier(str(classifier))
    with pytest.raises(ValueError, match=r"no preprocessor_config\.json|without a preprocessor_config\.json"):
        preprocessing_of(str(classifier), model)
    square_image_processor_of(model.config).save_pretrained(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (40, 75, 3), np.uint8)
    own = preprocessing_of(str(tmp_path), model)
    assert torch.allclose(own(picture), preprocessing_of(str(tmp_path), model, "square")(picture), atol=1e-5)
    assert own.description()["processor"]["image_processor_type"].startswith("ViTImageProcessor")


def test_logits_are_those_of_the_model_on_uint8_pixels(classifier):
    model = load_classifier(str(classifier))
    picture = np.asarray(Image.open(io.BytesIO(draw_image(3, size=32))).convert("RGB"))
    pixels = preprocessing_of(str(classifier), model, "square")(picture)
    with torch.no_grad():
        expected = model(torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].to(model.device)).logits.cpu()
    assert torch.allclose(logits_of(model, pixels[None]), expected, atol=1e-5)


def test_a_classifier_without_its_head_is_refused(tmp_path):
    MawsViTForImageClassification(tiny_config(num_labels=5)).vit.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a trained classifier is wanted"):
        load_classifier(str(tmp_path))


def test_a_classifier_comes_in_evaluation_mode(classifier):
    assert not load_classifier(str(classifier)).training


def test_another_size_can_be_asked_for_if_patches_divide_it(classifier):
    model = load_classifier(str(classifier))
    picture = np.random.default_rng(0).integers(0, 256, (40, 75, 3), np.uint8)
    assert preprocessing_of(str(classifier), model, "square", 48)(picture).shape == (3, 48, 48)
    with pytest.raises(ValueError, match=r"--image_size 36 is not possible: .* has patches of 8"):
        preprocessing_of(str(classifier), model, "square", 36)


def test_resizing_otherwise_keeps_the_mean_and_the_deviation_of_the_processor(classifier, tmp_path):
    model = load_classifier(str(classifier))
    ViTImageProcessorPil(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]).save_pretrained(tmp_path)
    picture = np.full((40, 75, 3), 51, np.uint8)  # a fifth of 255
    found = preprocessing_of(str(tmp_path), model, "crop")(picture)[:, 0, 0]
    assert found.tolist() == pytest.approx([0.1 / 0.5, 0.0, -0.1 / 0.7], abs=1e-6)


def test_a_model_without_a_processor_is_normalised_as_its_config_says(classifier):
    model = load_classifier(str(classifier))
    model.config.image_mean, model.config.image_std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    found = preprocessing_of(str(classifier), model, "crop")(np.full((40, 75, 3), 51, np.uint8))[:, 0, 0]
    assert found.tolist() == pytest.approx([0.1 / 0.5, 0.0, -0.1 / 0.7], abs=1e-6)


def test_all_that_pixels_depend_on_is_described():
    processor = ViTImageProcessorPil()
    changes = {"resize": "crop", "size": (16, 8), "mean": (0.0,) * 3, "std": (1.0,) * 3, "border": 2}
    settings = [Preprocessing(), *(Preprocessing(**{name: value}) for name, value in changes.items())]
    settings += [Preprocessing(processor), Preprocessing(processor, border=2)]
    settings += [Preprocessing(ViTImageProcessorPil(resample=3))]
    descriptions = {json.dumps(setting.description()) for setting in settings}
    assert len(descriptions) == len(settings)


def test_the_whole_picture_is_squared_unless_a_crop_is_asked_for():
    picture = np.random.default_rng(0).integers(0, 256, (40, 75, 3), np.uint8)
    assert torch.equal(Preprocessing(size=(8, 8))(picture), Preprocessing(resize="square", size=(8, 8))(picture))


@pytest.fixture(scope="module")
def other() -> ViTForImageClassification:
    """One of transformers', which takes other sizes only if it is told to."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=5)).eval()


def test_other_models_resample_their_positions_for_another_size(other):
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = other(pixel_values=pixels, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(logits_of(other, pixels), expected)


def test_bfloat16_is_used_when_asked_for(other):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exact, rounded = logits_of(other, pixels), logits_of(other, pixels, bf16=True)
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.05


def test_logits_that_are_no_numbers_are_an_error(other):
    with pytest.raises(ValueError, match="logits that are not finite"):
        logits_of(other, torch.full((1, 3, 32, 32), float("nan")))
