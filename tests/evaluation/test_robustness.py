"""Scoring on ImageNet's relatives, against the same rules told in plain Python."""

import hashlib
import json
import random
import zipfile

import numpy as np
import pytest
import torch

from maws_hf.evaluation import real_labels
from maws_hf.evaluation.label_maps import LabelMapError, imagenet_subset
from maws_hf.evaluation.real_labels import load_real_labels, validation_number
from maws_hf.evaluation.robustness import benchmark_of, score_classes, score_objects, score_real


def random_logits(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1000, generator=torch.Generator().manual_seed(seed))


def test_only_the_logits_of_the_subset_decide():
    classes = imagenet_subset("imagenet_a")
    logits = random_logits(50)
    logits[:, 0] = 100.0  # tench is not in ImageNet-A
    labels = torch.tensor([random.Random(row).choice(classes) for row in range(50)])
    logits[range(25), labels[:25]] += 3.0
    scores = score_classes(logits, labels, classes)
    ordered = [sorted(classes, key=lambda number: -row[number]) for row in logits.tolist()]
    assert scores == {
        "top1": sum(order[0] == label for order, label in zip(ordered, labels.tolist(), strict=True)) / 50,
        "top5": sum(label in order[:5] for order, label in zip(ordered, labels.tolist(), strict=True)) / 50,
        "images": 50,
        "classes": 200,
    }
    assert 0 < scores["top1"] < scores["top5"] < 1
    assert score_classes(logits, labels, range(1000))["top1"] == 0


def test_a_label_outside_of_the_subset_is_an_error():
    with pytest.raises(ValueError, match="class 0 is none of the 200 classes"):
        score_classes(random_logits(2), torch.tensor([6, 0]), imagenet_subset("imagenet_a"))


def test_the_best_object_is_that_of_the_best_class_among_all_objects():
    benchmark = benchmark_of("objectnet")
    assert max(map(len, benchmark.groups)) > 1
    logits, objects = random_logits(400), torch.arange(400) % 113
    for row, place in enumerate(objects[:200].tolist()):
        logits[row, benchmark.groups[place][-1]] += 4.0
    mapped = np.array(sorted(number for group in benchmark.groups for number in group))
    assert len(mapped) == len(set(mapped))  # no class is shared, or the two rules could differ
    best = mapped[logits.numpy()[:, mapped].argmax(axis=1)]
    right = [number in benchmark.groups[place] for number, place in zip(best, objects.tolist(), strict=True)]
    scores = score_objects(logits, objects, benchmark.groups)
    assert scores["top1"] == pytest.approx(np.mean(right), abs=1e-12)
    assert 0.2 < scores["top1"] < 0.8
    assert (scores["images"], scores["classes"]) == (400, 113)


def test_an_object_is_scored_by_its_highest_class_and_a_shared_class_counts_for_both():
    logits = torch.full((2, 1000), -5.0)
    logits[0, [3, 4, 9]] = torch.tensor([1.0, 3.0, 2.0])
    logits[1, 999] = 50.0  # of no object
    logits[1, 9] = 1.0
    assert score_objects(logits, torch.tensor([0, 1]), [(3, 4), (9,)])["top1"] == 1
    assert score_objects(logits, torch.tensor([1, 1]), [(3, 4), (9,)])["top1"] == 0.5
    shared = [(3, 9), (9,)]  # equal scores: the first object is the prediction
    assert score_objects(logits[1:], torch.tensor([0]), shared)["top1"] == 1
    assert score_objects(logits[1:], torch.tensor([1]), shared) == {"top1": 0, "top5": 1, "images": 1, "classes": 2}


def test_real_accepts_each_of_an_images_classes_and_skips_images_without():
    logits = torch.zeros(4, 1000)
    logits[range(4), [7, 8, 9, 10]] = 1.0
    scores = score_real(logits, [[3, 7], [], [9], [11]])
    assert scores == {"top1": 2 / 3, "images": 3, "classes": 1000, "without_label": 1}
    with pytest.raises(ValueError, match="none of 1 images has a class"):
        score_real(logits[:1], [[]])


@pytest.mark.parametrize(
    "name",
    [
        "ILSVRC2012_val_00000123.JPEG",
        "a/n01440764/ILSVRC2012_val_00000123.jpg",
        "ILSVRC2012_val_00000123_n01440764.png",
    ],
)
def test_validation_images_are_known_by_their_number(name):
    assert validation_number(name) == 123


@pytest.mark.parametrize("name", [None, "n01440764/n01440764_10026.JPEG", "ILSVRC2012_val_00000001/other.JPEG"])
def test_an_image_without_that_number_is_no_validation_image(name):
    with pytest.raises(LabelMapError, match=r"ILSVRC2012_val_00000001\.JPEG"):
        validation_number(name)


def test_labels_of_real_are_read_whatever_their_spaces_and_refused_when_changed(tmp_path, monkeypatch):
    file = tmp_path / "real.json"
    file.write_text("[[],\n [970,   795]]")
    with pytest.raises(LabelMapError, match=r"as they were published.*--real_labels_file timm"):
        load_real_labels(file)
    monkeypatch.setattr(real_labels, "REAL_SHA256", hashlib.sha256(b"[[],[970,795]]").hexdigest())
    assert load_real_labels(file) == [[], [970, 795]]
    file.write_text(json.dumps([[], [970, 794]]))
    with pytest.raises(LabelMapError, match="as they were published"):
        load_real_labels(file)
    file.write_text("[[")
    with pytest.raises(LabelMapError, match="is not JSON"):
        load_real_labels(file)
    with pytest.raises(LabelMapError, match="cannot be read"):
        load_real_labels(tmp_path / "absent.json")


def test_labels_of_real_are_found_in_timms_wheel(tmp_path, monkeypatch):
    wheel = tmp_path / "timm.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(real_labels.MEMBER, "[[],[3]]")
    monkeypatch.setattr(real_labels, "fetch_wheel", lambda pinned, folder, size: wheel)
    monkeypatch.setattr(real_labels, "REAL_SHA256", hashlib.sha256(b"[[],[3]]").hexdigest())
    assert real_labels.fetch_real_labels(tmp_path) == [[], [3]]


def test_test_sets_compare_as_many_classes_as_they_are_known_for():
    names = ("imagenet_val", "imagenet_v2/top-images", "imagenet_sketch", "imagenet_a", "imagenet_r", "objectnet")
    assert [len(benchmark_of(name).groups) for name in names] == [1000, 1000, 1000, 200, 200, 113]
    assert [benchmark_of(name).border for name in names] == [0, 0, 0, 0, 0, 2]
    assert len(benchmark_of("objectnet").needed) == 125
    published = (50_000, 10_000, None, 7_500, 30_000, None)  # images, by the papers of the sets
    assert tuple(benchmark_of(name).published_images for name in names) == published


def test_without_an_image_there_is_no_accuracy():
    with pytest.raises(ValueError, match="no image to score"):
        score_classes(random_logits(0), torch.empty(0, dtype=torch.int64), range(1000))
