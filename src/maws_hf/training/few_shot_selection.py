"""Adapters for choices of few labelled images, each with the learning rate that its own images ask for.

The rate is chosen as the linear classifier chooses its decay: by cross-validation over the K labelled images of each
class, and no test image is looked at. Of equals the smallest is taken, which stays nearest to the linear classifier;
with one image a class nothing can be held out, and all are equal. All rates, folds and choices of images are trained
in the same batches.

Legend: N images, T tokens, D features, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call

from ..evaluation.few_shot import folds_of, logistic_regression
from .few_shot_adapters import AdapterRecipe, Member, Weights, member_logits, members_at_once, stack, train_members
from .frozen_prefix import AdaptedTail

FOLDS = 3


@dataclass(frozen=True)
class Choice:
    """Labelled images to learn from.

    Attributes:
        rows: of the images.
        decay: that their linear classifier has chosen; the head takes it over.
        adapter: first weights.
        seed: of the order of the images.
    """

    rows: Tensor
    decay: float
    adapter: Weights
    seed: int


@dataclass(frozen=True)
class Adapted:
    """What was trained for a choice.

    Attributes:
        weights: of adapter and head.
        learning_rate: that was chosen.
        validation: cross-validated accuracy of each rate; empty where there was nothing to hold out.
    """

    weights: Weights
    learning_rate: float
    validation: dict[float, float]


def adapt(
    tail: AdaptedTail, tokens: Tensor, labels: Tensor, classes: int, choices: Sequence[Choice], recipe: AdapterRecipe
) -> list[Adapted]:
    """One for each choice.

    Args:
        tokens: `(N, 2, T, D)`, what the tail reads of every image and of its mirror image.
        labels: `(N,)` in `[0, classes)`.
    """
    cases = [_Case(tail, tokens, labels, classes, choice) for choice in choices]
    validation = _cross_validate(tail, tokens, labels, cases, recipe)
    rates = [best_rate(recipe.learning_rates, found) for found in validation]
    members = [
        case.member(torch.ones(len(case.labels), dtype=torch.bool), rate)
        for case, rate in zip(cases, rates, strict=True)
    ]
    trained = train_members(tail, tokens, labels, members, recipe)
    return [Adapted(*parts) for parts in zip(trained, rates, validation, strict=True)]


def choices_at_once(tail: AdaptedTail, tokens: Tensor, recipe: AdapterRecipe) -> int:
    """So many that all their rates and folds fit one batch, and at least one."""
    return max(1, members_at_once(tail, tokens, recipe) // (FOLDS * len(recipe.learning_rates)))


def best_rate(rates: Sequence[float], validation: dict[float, float]) -> float:
    """The smallest of those with the highest accuracy, or of all if nothing is known of them."""
    best = max(validation.values(), default=0.0)
    return min(rate for rate in rates if validation.get(rate, best) == best)


class _Case:
    """A choice, and what the linear classifiers that its heads start as are made of.

    These are features as the adapter shows them at first: LoRA and AdaptFormer leave them as they are, VPT's first
    tokens do not.
    """

    def __init__(self, tail: AdaptedTail, tokens: Tensor, labels: Tensor, classes: int, choice: Choice):
        self.choice, self.labels, self.classes = choice, labels[choice.rows], classes
        read = tokens[choice.rows, 0].to(tail.layernorm.weight.device)
        with torch.no_grad():
            self.features = functional_call(tail, choice.adapter, (read,)).cpu()

    def member(self, used: Tensor, learning_rate: float) -> Member:
        """Of the images that the mask `used` tells."""
        choice = self.choice
        head = logistic_regression(self.features[used], self.labels[used], self.classes, choice.decay)
        return Member(choice.rows[used], learning_rate, choice.decay, head, choice.adapter, choice.seed)


def _cross_validate(
    tail: AdaptedTail, tokens: Tensor, labels: Tensor, cases: Sequence[_Case], recipe: AdapterRecipe
) -> list[dict[float, float]]:
    """Accuracy of each rate on images held out, for each case; none where no class has two images."""
    members: list[Member] = []
    held: list[tuple[int, Tensor]] = []  # of each member: its case, and the rows to score it on
    for place, case in enumerate(cases):
        folds = folds_of(case.labels, FOLDS)
        for fold in range(0 if folds is None else int(folds.max()) + 1):
            first = case.member(folds != fold, recipe.learning_rates[0])
            members += [replace(first, learning_rate=rate) for rate in recipe.learning_rates]
            held += [(place, case.choice.rows[folds == fold])] * len(recipe.learning_rates)
    right: list[dict[float, int]] = [{} for _ in cases]
    trained = train_members(tail, tokens, labels, members, recipe)
    for member, (place, rows), weights in zip(members, held, trained, strict=True):
        hits = int((_predict(tail, weights, tokens[rows, 0]) == labels[rows]).sum())
        right[place][member.learning_rate] = right[place].get(member.learning_rate, 0) + hits
    return [
        {rate: hits / len(case.labels) for rate, hits in counts.items()}
        for case, counts in zip(cases, right, strict=True)
    ]


@torch.no_grad()
def _predict(tail: AdaptedTail, weights: Weights, tokens: Tensor) -> Tensor:
    read = tokens.to(tail.layernorm.weight.device)
    return member_logits(tail, stack([weights]), read)[0].argmax(dim=1).cpu()


__all__ = ["FOLDS", "Adapted", "Choice", "adapt", "best_rate", "choices_at_once"]
