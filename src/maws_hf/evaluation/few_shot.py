"""Few labels a class (paper section 4, Table 5): which images are labelled, and a linear classifier on their features.

The paper takes K = 1, 5 and 10 images a class, at most K where a class has fewer, five splits from five seeds, and
reports the mean. Its split files were not released, the settings of its linear classifier we have not seen. Ours:
logistic regression, solved by L-BFGS to a gradient of 1e-7 or for 200 steps, its weight decay chosen by cross-
validation over the K labelled images of each class; with one image a class there is nothing to hold out, and the decay
is `ONE_SHOT_DECAY`.

Legend: N labelled images, D features, C classes.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .linear_heads import LinearHead

# Of the mean cross-entropy, for features of length 1. The grid spans "as good as none" to "as good as constant".
DECAYS = tuple(10.0**exponent for exponent in range(-6, 1))
ONE_SHOT_DECAY = 1e-3
MOST_FOLDS = 5
MOST_STEPS = 200  # enough but where one direction outweighs all others and the decay is the least
TOLERANCE = 1e-7  # of the gradient, at the end


def few_shot_split(labels: Tensor, shots: int, seed: int, without: Collection[int] = ()) -> Tensor:
    """Rows of the labelled images: `shots` of each class, or all of a class that has fewer.

    Splits of one seed are nested, so that a curve over `shots` adds images and swaps none; a class's choice depends on
    its own images only.

    Args:
        labels: `(N,)`, class of each image.
        shots: K, at least 1.
        seed: of the split.
        without: rows that cannot be had; the next ones that the seed draws stand in for them.

    Returns:
        Rows in ascending order.

    Raises:
        ValueError: `shots` is less than 1, or there are no images.
    """
    if shots < 1:
        raise ValueError(f"shots is {shots}, it must be at least 1")
    if not len(labels):
        raise ValueError("there are no images to choose from")
    chosen = []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten().numpy()
        drawn = np.random.default_rng([seed, label]).permutation(rows)
        chosen.append(drawn[~np.isin(drawn, list(without))][:shots])
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


@dataclass(frozen=True)
class FewShotProbe:
    """
    Attributes:
        head: for features as they are.
        decay: the weight decay that was chosen.
        validation: cross-validated accuracy of each decay; empty where there was nothing to hold out.
    """

    head: LinearHead
    decay: float
    validation: dict[float, float]


def few_shot_probe(features: Tensor, labels: Tensor, classes: int) -> FewShotProbe:
    """Logistic regression on the features' directions, with the decay chosen on the labelled images alone.

    Args:
        features: `(N, D)` of the labelled images.
        labels: `(N,)` in `[0, classes)`.
    """
    folds = folds_of(labels)
    validation: dict[float, float] = {}
    if folds is None:
        decay = ONE_SHOT_DECAY
    else:
        for candidate in DECAYS:
            right = 0
            for fold in range(int(folds.max()) + 1):
                kept, held = folds != fold, folds == fold
                head = logistic_regression(features[kept], labels[kept], classes, candidate)
                right += int((scores(head, features[held]).argmax(dim=1) == labels[held]).sum())
            validation[candidate] = right / len(labels)
        equals = [found for found, accuracy in validation.items() if accuracy == max(validation.values())]
        decay = sorted(equals)[len(equals) // 2]  # few images make many ties; the middle is far from both edges
    return FewShotProbe(logistic_regression(features, labels, classes, decay), decay, validation)


def logistic_regression(features: Tensor, labels: Tensor, classes: int, decay: float) -> LinearHead:
    """The minimum of mean cross-entropy + decay / 2 x squared weights; the bias is free. Convex, so there is just one.

    Features are scaled to length 1. The weights lie in the span of the N features, so the problem is solved in at most
    N dimensions, in float64.

    Returns:
        A head for features of length 1; [`scores`] scales.
    """
    directions = F.normalize(features.double(), dim=1)
    mean = directions.mean(dim=0)
    basis = torch.linalg.svd(directions - mean, full_matrices=False)[2]  # (r, D)
    inputs = (directions - mean) @ basis.T
    weight = torch.zeros(classes, len(basis), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MOST_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weight.T + bias, labels) + decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    in_full = weight.detach() @ basis
    return LinearHead(in_full.float(), (bias.detach() - in_full @ mean).float())


def scores(head: LinearHead, features: Tensor) -> Tensor:
    """`(N, D)` features as they are -> `(N, C)`."""
    return head.scores(F.normalize(features.float(), dim=1))


def folds_of(labels: Tensor, folds: int = MOST_FOLDS) -> Tensor | None:
    """For cross-validation: `(N,)`, in which of at most `folds` parts each image is; None where no class has two.

    The images of a class go round, so that each part has its share of them; one image is in the first part.
    """
    counts = torch.bincount(labels)
    if counts.max() < 2:
        return None
    found = torch.zeros_like(labels)
    for label in counts.nonzero().flatten().tolist():
        rows = (labels == label).nonzero().flatten()
        found[rows] = torch.arange(len(rows)) % folds
    return found


__all__ = [
    "FewShotProbe",
    "few_shot_probe",
    "few_shot_split",
    "folds_of",
    "logistic_regression",
    "scores",
]
