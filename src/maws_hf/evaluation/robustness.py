"""Classifiers trained on ImageNet on other test sets (paper, Table 3): what is right, from logits to numbers.

Legend: N images, C = 1000 classes in ImageNet's order. No rule looks at images; `benchmark_of` says what each test set
compares. Ties go to the lower number, as `argmax` has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .label_maps import IMAGENET_CLASSES, imagenet_subset, objectnet_classes
from .metrics import label_ranks, share_within

Scores = dict[str, float | int]

# ---------------------------------------------------------------- rules


def score_classes(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> Scores:
    """Accuracy where only `classes` are candidates; the logits of others, however high, play no part.

    Args:
        logits: `(N, C)`.
        labels: `(N,)` class numbers, all among `classes`.
        classes: class numbers, ascending.

    Returns:
        `top1`, `top5`, `images`, `classes`.

    Raises:
        ValueError: there is no image, or a label is none of `classes`.
    """
    place = torch.full((logits.shape[1],), -1)
    place[list(classes)] = torch.arange(len(classes))
    places = place[labels]
    if (places < 0).any():
        raise ValueError(f"class {int(labels[places < 0][0])} is none of the {len(classes)} classes of this test set")
    return _accuracies(logits[:, list(classes)], places)


def score_objects(logits: Tensor, objects: Tensor, groups: Sequence[Sequence[int]]) -> Scores:
    """Accuracy over objects, each one or several classes: an object's score is its highest logit.

    The logits of classes of no object play no part. Where no class is shared, top-1 is the share of images whose best
    class among all of these is one of the object's.

    Args:
        logits: `(N, C)`.
        objects: `(N,)` places in `groups`.
        groups: of each object its class numbers, at least one.

    Returns:
        `top1`, `top5`, `images`, `classes` (objects).

    Raises:
        ValueError: there is no image.
    """
    return _accuracies(torch.stack([logits[:, list(group)].amax(dim=1) for group in groups], dim=1), objects)


def score_real(logits: Tensor, valid: Sequence[Sequence[int]]) -> Scores:
    """ReaL: the first prediction is right if it is one of the image's classes; images without any do not count.

    Args:
        logits: `(N, C)`.
        valid: N lists of class numbers, some empty.

    Returns:
        `top1`, `images` (that count), `classes`, `without_label` (that do not).

    Raises:
        ValueError: no image has a class.
    """
    predictions = logits.argmax(dim=1).tolist()
    right = [prediction in allowed for prediction, allowed in zip(predictions, valid, strict=True) if len(allowed)]
    if not right:
        raise ValueError(f"none of {len(predictions)} images has a class in ReaL")
    return {
        "top1": sum(right) / len(right),
        "images": len(right),
        "classes": logits.shape[1],
        "without_label": len(predictions) - len(right),
    }


def _accuracies(scores: Tensor, labels: Tensor) -> Scores:
    if not len(labels):
        raise ValueError("there is no image to score")
    ranks = label_ranks(scores, labels)
    accuracies = {f"top{k}": share_within(ranks, k) for k in (1, 5)}
    return {**accuracies, "images": len(labels), "classes": scores.shape[1]}


# ---------------------------------------------------------------- test sets


@dataclass(frozen=True)
class Benchmark:
    """A test set.

    Attributes:
        title: what it is called.
        groups: of each of its classes the class numbers that stand for it; only ObjectNet has several.
        folders: of each group the name, where labels are no wnids or class numbers (ObjectNet); None elsewhere.
        border: pixels to cut from each side.
        published_images: how many the whole set has, where that is known.
    """

    title: str
    groups: tuple[tuple[int, ...], ...] = tuple((number,) for number in range(IMAGENET_CLASSES))
    folders: tuple[str, ...] | None = None
    border: int = 0
    published_images: int | None = None

    @property
    def needed(self) -> list[int]:
        """Class numbers that a model must have."""
        return sorted({number for group in self.groups for number in group})

    def score(self, logits: Tensor, labels: Tensor) -> Scores:
        """By the rule of this test set.

        Args:
            logits: `(N, C)`.
            labels: `(N,)`: class numbers, or places in `folders`.
        """
        if self.folders is None:
            return score_classes(logits, labels, self.needed)
        return score_objects(logits, labels, self.groups)


# As the archives of ImageNetV2 unpack.
IMAGENET_V2_FOLDERS = {
    "matched-frequency": "imagenetv2-matched-frequency-format-val",
    "threshold-0.7": "imagenetv2-threshold0.7-format-val",
    "top-images": "imagenetv2-top-images-format-val",
}


def benchmark_of(name: str) -> Benchmark:
    """`imagenet_val`, `imagenet_v2/<variant>`, `imagenet_a`, `imagenet_r`, `imagenet_sketch` or `objectnet`.

    ObjectNet's pictures have a red border, one pixel wide, that no model should see; two are cut, as is usual.
    """
    family, _, variant = name.partition("/")
    if family == "imagenet_v2":
        return Benchmark(f"ImageNetV2 {variant}", published_images=10_000)
    if family == "objectnet":
        shared = {folder: classes for folder, classes in objectnet_classes().items() if classes}
        return Benchmark("ObjectNet", tuple(shared.values()), tuple(shared), border=2)
    if family in ("imagenet_a", "imagenet_r"):
        groups = tuple((number,) for number in imagenet_subset(family))
        title, images = {"imagenet_a": ("ImageNet-A", 7_500), "imagenet_r": ("ImageNet-R", 30_000)}[family]
        return Benchmark(title, groups, published_images=images)
    title, images = {"imagenet_val": ("ImageNet", 50_000), "imagenet_sketch": ("ImageNet-Sketch", None)}[family]
    return Benchmark(title, published_images=images)


__all__ = [
    "IMAGENET_V2_FOLDERS",
    "Benchmark",
    "benchmark_of",
    "score_classes",
    "score_objects",
    "score_real",
]
