"""Weighted nearest neighbours: what features are worth without training anything.

Wu et al. 2018 (arXiv 1805.01978, section 3.4), with the numbers that DINO made customary (Caron et al. 2021): the k
most similar training images vote for their labels, each with the weight exp(cosine similarity / 0.07).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import LabelledFeatures
from .metrics import score_classification

SIMILARITIES_AT_ONCE = 2**26  # 256 MiB


def knn_classify(
    train: LabelledFeatures,
    test: LabelledFeatures,
    neighbours: Sequence[int] = (20,),
    *,
    temperature: float = 0.07,
    device: torch.device | None = None,
) -> dict[int, dict[str, float]]:
    """`{"top1"}` for each number of neighbours, or `{"mAP"}` of the votes where images have label lists.

    Args:
        train, test: with the same classes.
        neighbours: all k are read off one search.
        temperature: of the weights.
        device: to search on; the features' by default.

    Raises:
        ValueError: the data do not fit together, or a k is impossible.
    """
    if train.multi_label != test.multi_label or train.num_classes != test.num_classes:
        raise ValueError(
            f"training has {train.num_classes} classes and test {test.num_classes}, or one of them has label lists: "
            "both must come from one list of classes"
        )
    votes = knn_votes(train, test.features, neighbours, temperature=temperature, device=device)
    results = {}
    for k, scores in votes.items():
        results[k] = score_classification(scores, test.labels)
        results[k].pop("top5", None)  # with fewer than five classes among the neighbours, an accident of the order
    return results


def knn_votes(
    train: LabelledFeatures,
    features: Tensor,
    neighbours: Sequence[int] = (20,),
    *,
    temperature: float = 0.07,
    device: torch.device | None = None,
) -> dict[int, Tensor]:
    """Shares of the votes for each class `(N, C)`, float32 on the features' device, for each k of `neighbours`.

    Args:
        train: the voters; an image with several labels votes for each.
        features: `(N, D)`, float32.

    Raises:
        ValueError: the features are of another width, or a k is not in 1..training images.
    """
    if features.dim() != 2 or features.shape[1] != train.features.shape[1]:
        raise ValueError(f"features are {tuple(features.shape)}, expected (N, {train.features.shape[1]})")
    if not neighbours or not 1 <= min(neighbours) <= max(neighbours) <= len(train.features):
        raise ValueError(
            f"k is {list(neighbours)}, it must be between 1 and the {len(train.features)} training images"
        )
    device = device or train.features.device
    bank = F.normalize(train.features.to(device), dim=1)
    labels = train.label_lists.to(device)
    votes = {k: torch.empty(len(features), train.num_classes, device=features.device) for k in neighbours}
    at_once = max(1, SIMILARITIES_AT_ONCE // max(len(bank), train.num_classes))
    for start in range(0, len(features), at_once):
        queries = F.normalize(features[start : start + at_once].to(device), dim=1)
        similarity, nearest = (queries @ bank.T).topk(max(neighbours), dim=1)
        for k in neighbours:
            # exp(similarity / T) as shares of one: the same order within an image, and comparable between images.
            weights = (similarity[:, :k] / temperature).softmax(dim=1)
            votes[k][start : start + len(queries)] = _vote(weights, labels[nearest[:, :k]], train.num_classes)
    return votes


def _vote(weights: Tensor, labels: Tensor, classes: int) -> Tensor:
    """`(B, k)` weights and `(B, k, K)` label lists to `(B, classes)`."""
    weights = torch.where(labels >= 0, weights[:, :, None], 0.0)
    tally = torch.zeros(len(weights), classes, device=weights.device)
    return tally.scatter_add_(1, labels.clamp(min=0).flatten(1), weights.flatten(1))


__all__ = ["knn_classify", "knn_votes"]
