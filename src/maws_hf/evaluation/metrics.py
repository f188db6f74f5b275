"""How good are scores? Plain functions on tensors; `evaluate_metrics.py` has the same for Hugging Face `evaluate`.

Legend: N images, C classes, K places for the labels of an image. Labels are integers: `(N,)`, one class each, or
`(N, K)`, index lists padded with -100.
"""

import math

import torch
from torch import Tensor

SCORES_AT_ONCE = 2**22  # sorted together: at most 200 MB of sorted copies


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Place of each row's label among its scores, `(N,)` int64: 0 for the best.

    Equal scores rank in the order of classes, as `argmax` has it, so a head that tells nothing apart does not shine.
    A row with a NaN ranks last, C - 1 or worse.

    Args:
        scores: `(N, C)`.
        labels: `(N,)`, in 0..C-1.

    Raises:
        ValueError: the shapes do not fit, or a label is out of range.
    """
    rows, classes = scores.shape
    if labels.shape != (rows,):
        raise ValueError(f"labels has the shape {tuple(labels.shape)}, expected ({rows},) for {rows} rows of scores")
    if rows and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels reach from {int(labels.min())} to {int(labels.max())} for {classes} classes")
    own = scores.gather(1, labels[:, None])
    before = torch.arange(classes, device=scores.device) < labels[:, None]
    ranks = ((scores > own) | ((scores == own) & before)).sum(dim=1)
    return ranks.where(~scores.isnan().any(dim=1), classes)


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Share of rows whose label is among the k best scores; see `label_ranks`."""
    return share_within(label_ranks(scores, labels), k)


def share_within(ranks: Tensor, k: int) -> float:
    """Share of ranks below k; NaN of none."""
    return int((ranks < k).sum()) / len(ranks) if len(ranks) else math.nan  # counted: not all devices have float64


def mean_per_class_accuracy(scores: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy of each class, averaged over the classes that occur: rare ones count as much as frequent ones."""
    found = labels[label_ranks(scores, labels) == 0]
    right, total = (torch.bincount(rows, minlength=scores.shape[1]).cpu().double() for rows in (found, labels))
    return float((right / total)[total > 0].mean())


def average_precision(scores: Tensor, positives: Tensor) -> Tensor:
    """Area under each class's precision-recall steps, `(C,)` float64; NaN for a class without a positive.

    The sum over thresholds of (gain in recall) x precision, not interpolated, equal scores being one threshold:
    scikit-learn's `average_precision_score`.

    Args:
        scores: `(N, C)`, higher for more likely.
        positives: bool `(N, C)`.

    Raises:
        ValueError: the shapes differ, or a score is NaN.
    """
    if scores.shape != positives.shape:
        raise ValueError(f"scores are {tuple(scores.shape)} and positives {tuple(positives.shape)}: shapes must agree")
    if scores.device.type == "mps":  # has no float64
        scores, positives = scores.cpu(), positives.cpu()
    at_once = max(1, SCORES_AT_ONCE // max(1, len(scores)))
    columns = zip(scores.split(at_once, dim=1), positives.split(at_once, dim=1), strict=True)
    return torch.cat([_average_precision(*column) for column in columns])


def _average_precision(scores: Tensor, positives: Tensor) -> Tensor:
    rows = len(scores)
    ordered, order = scores.sort(dim=0, descending=True)
    if ordered.isnan().any():
        raise ValueError("scores hold NaN, which has no place in an order: leave such models out")
    hits = positives.gather(0, order).double()
    found = hits.cumsum(dim=0)
    # A threshold takes all equal scores in at once: each has the precision at the end of its run of equals.
    ends = torch.cat([ordered[1:] != ordered[:-1], torch.ones_like(ordered[:1], dtype=torch.bool)])
    places = torch.arange(rows, device=scores.device)[:, None].expand_as(order)
    end = places.where(ends, rows - 1).flip(0).cummin(dim=0).values.flip(0)
    precision = found.gather(0, end) / (end + 1)
    return (hits * precision).sum(dim=0) / found[-1]


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """mAP: `average_precision` averaged over the classes that have a positive.

    Args:
        scores: `(N, C)`.
        labels: `(N, K)` index lists padded with negatives. An image without a label does not count.

    Raises:
        ValueError: no image has a label, or a score is NaN.
    """
    labelled = (labels >= 0).any(dim=1)
    if not labelled.any():
        raise ValueError(f"none of {len(labels)} images has a label: mean average precision needs one")
    values = average_precision(scores[labelled], multi_hot(labels[labelled], scores.shape[1]))
    return float(values[~values.isnan()].mean())


def multi_hot(labels: Tensor, classes: int) -> Tensor:
    """Index lists `(N, K)` padded with negatives to bool `(N, classes)`."""
    dense = torch.zeros(len(labels), classes + 1, dtype=torch.bool, device=labels.device)
    index = torch.where(labels >= 0, labels, classes)  # padding falls into a column of its own
    return dense.scatter_(1, index, True)[:, :classes]


def score_classification(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """`{"mAP"}` for index lists, `{"top1", "top5"}` for single labels; the first is what models are chosen by.

    Of five classes or fewer there is no top5, which would always be 1.
    """
    if labels.dim() == 2:
        return {"mAP": mean_average_precision(scores, labels)}
    return score_ranks(label_ranks(scores, labels), scores.shape[1])


def score_ranks(ranks: Tensor, classes: int) -> dict[str, float]:
    """As [`score_classification`] of single labels, from their `label_ranks` among so many classes."""
    return {f"top{k}": share_within(ranks, k) for k in (1, 5) if k < max(classes, 2)}


__all__ = [
    "average_precision",
    "label_ranks",
    "mean_average_precision",
    "mean_per_class_accuracy",
    "multi_hot",
    "score_classification",
    "score_ranks",
    "share_within",
    "top_k_accuracy",
]
