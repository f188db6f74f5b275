"""Show images of rare labels more often: how many copies of an image an epoch holds.

    f(c) = share of the images that carry label c
    r(c) = max(1, sqrt(t / f(c)))
    r(I) = max of r(c) over the labels of image I, thus decided by its rarest label; 0 without any label

Source: repeat factor sampling of LVIS (Gupta, Dollar and Girshick, CVPR 2019). MAWS says only that 3 billion images
were resampled to 5 billion (section 4.1); that this was the rule is inferred. t is ours: solved from that ratio.

Images without a label are in none of the numbers here: the loss passes over them, so they are not even decoded.
"""

import hashlib
import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .samples import Sample


class RepeatFactors:
    """r(c) of every class, and from them r(I).

    Attributes:
        threshold: t; classes that fewer images than this share carry are repeated. 0 repeats none.
        by_class: `(C,)` float64, r(c). 1 for a class that was never counted, of whose frequency nothing is known.
        ratio: images in an epoch over unique images, both with labels, as an expectation.
        fingerprint: the same for the same factors only.

    Args:
        counts: `(C,)`, images with label c.
        rarest: `(C,)`, images whose rarest label is c.
        images: images with any label.
        threshold: t, in 0..1.

    Raises:
        ValueError: the numbers contradict each other or no image has a label, or the threshold is not a share.
    """

    def __init__(self, counts: Sequence[int], rarest: Sequence[int], images: int, threshold: float):
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}, it must be a share of the images, 0 to 1")
        counts, rarest = _checked(counts, rarest, images)
        frequencies = np.where(counts > 0, counts, images) / images
        self.threshold = float(threshold)
        self.by_class = np.maximum(1.0, np.sqrt(threshold / frequencies))
        self.ratio = math.fsum(rarest * self.by_class) / images
        self.fingerprint = hashlib.sha256(self.by_class.astype("<f8").tobytes()).hexdigest()[:12]

    @classmethod
    def from_ratio(cls, counts: Sequence[int], rarest: Sequence[int], images: int, ratio: float) -> "RepeatFactors":
        """Those with the threshold that `solve_threshold` finds."""
        return cls(counts, rarest, images, solve_threshold(counts, rarest, images, ratio))

    def of(self, labels: Sequence[int]) -> float:
        """r(I) of an image with these class indices; 0 without any.

        Raises:
            ValueError: a label is no class.
        """
        if len(labels) == 0:
            return 0.0
        lowest, highest = min(labels), max(labels)
        if lowest < 0 or highest >= len(self.by_class):
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"label {wrong} is not in 0..{len(self.by_class) - 1}: count the labels of these data")
        return float(max(self.by_class[label] for label in labels))

    def __str__(self) -> str:
        if self.ratio == 1:
            return "no image is repeated"
        most, t = self.by_class.max(), self.threshold
        return f"an epoch shows {self.ratio:.4g} x the images, the rarest {most:.3g} times (t = {t:.3g})"


@dataclass(frozen=True)
class RepeatRows:
    """`repeats` of an [`ImageStream`]: the factor of a row by its labels.

    Args:
        factors: of the classes.
        labels_of: class indices of a row, as a [`LabelReader`] reads them; a run is only continued with the same
            factors and the same `labels_of.fingerprint`.
    """

    factors: RepeatFactors
    labels_of: Callable[[Sample], Sequence[int]]

    def __call__(self, sample: Sample) -> float:
        return self.factors.of(self.labels_of(sample))

    @property
    def labels_fingerprint(self) -> str | None:
        return getattr(self.labels_of, "fingerprint", None)

    @property
    def fingerprint(self) -> str:
        return f"{self.factors.fingerprint}-{self.labels_fingerprint}"


def solve_threshold(counts: Sequence[int], rarest: Sequence[int], images: int, ratio: float) -> float:
    """The t with which an epoch holds `ratio` times the unique images, as an expectation.

    An image is repeated as its rarest label is, so with s = sqrt(t) the epoch holds

        sum over c of  rarest(c) * max(1, s / sqrt(f(c)))

    images: a rising line with a kink at every frequency. It is the highest of the straight lines in which just the k
    rarest classes are repeated, so the s wanted is the lowest of those lines' solutions; no search is needed.

    t goes no further than the frequency of the commonest class that is the rarest of some image. Beyond it every image
    is repeated, all by the same further factor: that is a longer epoch and no other mix. So t never exceeds 1 either,
    and where all classes are equally frequent only the ratio 1 is reached.

    Args:
        counts, rarest, images: see [`RepeatFactors`].
        ratio: 5 / 3 in the paper; 1 gives t = 0.

    Raises:
        ValueError: as `RepeatFactors`, or the ratio is below 1 or beyond what t reaches.
    """
    if not 1 <= ratio < math.inf:
        raise ValueError(f"ratio is {ratio}, it must be finite and at least 1: resampling leaves no image out")
    counts, rarest = _checked(counts, rarest, images)
    if ratio == 1:
        return 0.0
    deciding = np.flatnonzero(rarest)
    deciding = deciding[np.argsort(counts[deciding], kind="stable")]
    frequencies, decided = counts[deciding] / images, rarest[deciding]
    most = math.fsum(decided * np.sqrt(frequencies[-1] / frequencies)) / images
    if ratio > most * (1 + 1e-9):  # at the limit itself, rounding must not decide
        raise ValueError(
            f"ratio is {ratio:.6g}, but these labels are so evenly frequent that resampling reaches at most "
            f"{math.floor(1000 * most) / 1000:g}: ask for that or less, beyond it every image is repeated alike"
        )
    surplus = (ratio - 1) * images
    lines = (surplus + np.cumsum(decided)) / np.cumsum(decided / np.sqrt(frequencies))
    lowest = lines.min()
    return float(min(lowest * lowest, frequencies[-1]))


def count_labels(label_lists: Iterable[Sequence[int]], num_classes: int) -> tuple[np.ndarray, np.ndarray, int]:
    """One pass over the labels of a data set; keeps 4 bytes a label and 8 an image.

    Args:
        label_lists: class indices of each image; a repeated one counts once, an image without any not at all.
        num_classes: C.

    Returns:
        counts `(C,)` int64, images with label c; rarest `(C,)` int64, images whose rarest label is c (of equally
        frequent ones the lowest index); and the number of images with any label.

    Raises:
        ValueError: a label is no class; names its image by its place.
    """
    flat, starts = array("i"), array("q")
    for number, labels in enumerate(label_lists):
        distinct = set(labels)
        if not distinct:
            continue
        lowest, highest = min(distinct), max(distinct)
        if lowest < 0 or highest >= num_classes:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"image {number} has the label {wrong}, which is not in 0..{num_classes - 1}")
        starts.append(len(flat))
        flat.extend(distinct)
    labels = np.array(flat)
    counts = np.bincount(labels, minlength=num_classes)
    if not starts:
        return counts, np.zeros_like(counts), 0
    from_rarest = np.argsort(counts, kind="stable")
    rank = np.empty_like(from_rarest)
    rank[from_rarest] = np.arange(num_classes)
    rarest = from_rarest[np.minimum.reduceat(rank[labels], np.array(starts))]
    return counts, np.bincount(rarest, minlength=num_classes), len(starts)


def _checked(counts: Sequence[int], rarest: Sequence[int], images: int) -> tuple[np.ndarray, np.ndarray]:
    counts, rarest = np.asarray(counts), np.asarray(rarest)
    if images < 1:
        raise ValueError(f"images is {images}: no image has a label, so there is nothing to train on")
    if counts.ndim != 1 or counts.shape != rarest.shape:
        raise ValueError(f"counts {counts.shape} and rarest {rarest.shape} must both hold one number for each class")
    wrong = np.flatnonzero((rarest < 0) | (rarest > counts) | (counts > images))
    if len(wrong):
        label = wrong[0]
        raise ValueError(
            f"class {label} is the rarest of {rarest[label]} and in {counts[label]} of {images} images: "
            "each number may not exceed the next, count the labels anew"
        )
    if rarest.sum() != images:
        raise ValueError(f"rarest adds up to {rarest.sum()}, not to the {images} images: each has one rarest label")
    return counts, rarest


__all__ = ["RepeatFactors", "RepeatRows", "count_labels", "solve_threshold"]
