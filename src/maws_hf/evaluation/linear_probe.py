"""Linear probe: how far does one linear layer on frozen features get?

The MAWS paper reports linear probes (section 4) but not how they were trained: neither optimizer, learning rate,
length nor normalisation. So protocols have names and sources here, and their learning rates are swept: the rate is
chosen on a share of the *training* images, and test labels are read once, to score the head that was chosen.

    mae   MAE (He et al. 2021, appendix A.1, and the released `main_linprobe.py`): LARS, no decay
    sgd   the frozen-trunk heads of SWAG that torchvision ships (pytorch/vision#5793): Nesterov momentum

Ours: features are computed once, without augmentation; the sweep; the batch on small data (see `Protocol`). MAE
resizes to 256 before it crops 224 pixels to test: `--resize_size 256`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..losses import binary_weak_label_loss, weak_label_loss
from ..optim.schedules import scaled_learning_rate
from .features import LabelledFeatures
from .linear_heads import LinearHead, Protocol, train_heads
from .metrics import score_classification

PROTOCOLS = {
    "mae": Protocol(
        optimizer="lars",
        base_learning_rates=(0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0),  # MAE: 0.1
        batch_size=16384,
        epochs=90,
        warmup_epochs=10,
    ),
    "sgd": Protocol(
        optimizer="sgd",
        base_learning_rates=(3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),  # SWAG's is not known
        batch_size=1024,
        epochs=28,
        weight_decay=1e-9,
    ),
}


@dataclass(frozen=True)
class LinearProbeResult:
    """What a probe found.

    Attributes:
        test: `{"top1", "top5"}`, or `{"mAP"}` for label lists.
        learning_rate: peak of the head chosen.
        validation: of each head `{"learning_rate", "loss", "top1", ...}`; None where it diverged. Empty where there
            was nothing to choose.
        head: the one that was tested.
        settings: all that decides the result besides the data, JSON values.
    """

    test: dict[str, float]
    learning_rate: float
    validation: list[dict[str, float | None]]
    head: LinearHead
    settings: dict[str, Any]


def linear_probe(
    train: LabelledFeatures,
    test: LabelledFeatures,
    protocol: Protocol,
    *,
    learning_rates: Sequence[float] | None = None,
    validation_share: float = 0.1,
    refit: bool = True,
    standardize: bool = True,
    seed: int = 0,
    device: torch.device | None = None,
) -> LinearProbeResult:
    """Trains a head for each learning rate, chooses one by validation, and scores it on the test images.

    Args:
        train, test: with the same classes.
        protocol: one of `PROTOCOLS`, or your own.
        learning_rates: peaks as they are, not scaled by the batch, instead of the protocol's.
        validation_share: of the training images, held out to choose by; stratified for single labels.
        refit: train the chosen head once more, on all training images; else it is tested as it was chosen.
        standardize: features to mean 0 and variance 1 before the head, as MAE's BatchNorm without parameters. Its
            batch statistics, which run after the features, are here the exact ones of the images trained on.
        seed: of the split, the initial weights and the order of images.
        device: to train on; the features' by default. Features stay where they are.

    Raises:
        ValueError: the data do not fit together, nothing can be held out, or every head diverged.
    """
    if train.features.shape[1] != test.features.shape[1] or train.num_classes != test.num_classes:
        raise ValueError(
            f"training has {train.features.shape[1]} features and {train.num_classes} classes, test "
            f"{test.features.shape[1]} and {test.num_classes}: both must come from one encoder and one list of classes"
        )
    if train.multi_label != test.multi_label:
        raise ValueError("one of training and test has a single label an image and the other a list: use one kind")
    fitting = torch.arange(len(train.features))
    if learning_rates is None:
        batch_size = protocol.batch_size_for(len(fitting))
        learning_rates = [scaled_learning_rate(base, batch_size) for base in protocol.base_learning_rates]
    training = {"standardize": standardize, "seed": seed, "device": device}
    validation: list[dict[str, float | None]] = []
    best = 0
    if len(learning_rates) > 1:
        fitting, held_out = split_off_validation(train, validation_share, seed)
        heads = train_heads(train, fitting, learning_rates, protocol, **training)
        validation = [
            {"learning_rate": rate, **_validate(head, train, held_out, protocol.objective)}
            for rate, head in zip(learning_rates, heads, strict=True)
        ]
        best = _best(validation)
        head = heads[best]
    if refit or not validation:
        fitting = torch.arange(len(train.features))
        (head,) = train_heads(train, fitting, [learning_rates[best]], protocol, **training)
    if not head.weight.isfinite().all():
        raise ValueError(f"the head diverged at learning rate {learning_rates[best]:g}: give lower ones")
    return LinearProbeResult(
        test=_score(head.scores(test.features), test.labels, protocol.objective),
        learning_rate=learning_rates[best],
        validation=validation,
        head=head,
        settings={
            **asdict(protocol),
            "learning_rates": list(learning_rates),
            "batch_size_used": protocol.batch_size_for(len(fitting)),
            "validation_share": validation_share,
            "refit": refit,
            "standardize": standardize,
            "seed": seed,
        },
    )


def split_off_validation(train: LabelledFeatures, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers to fit and to choose by: `share` of the rows held out, by a seeded draw.

    Single labels: one image of each class always stays to fit, and of the others every class gives its part, as even
    as whole images allow. Label lists: any rows.

    Raises:
        ValueError: the share leaves no image for one side.
    """
    rng, rows = np.random.default_rng(seed), len(train.features)
    shuffled = rng.permutation(rows)
    candidates = shuffled
    if not train.multi_label:
        labels = train.labels.numpy(force=True)
        by_class = shuffled[np.argsort(rng.permutation(train.num_classes)[labels[shuffled]], kind="stable")]
        candidates = by_class[1:][labels[by_class[1:]] == labels[by_class[:-1]]]
    wanted = round(share * rows)
    if not 0 < wanted <= len(candidates) or wanted == rows:
        raise ValueError(
            f"validation_share {share} of {rows} images is {wanted}, and {len(candidates)} can be spared: change it"
        )
    # At equal distances in the order of classes, so that each class gives its part.
    places = ((np.arange(wanted) + rng.random()) * len(candidates) / wanted).astype(np.int64)
    held_out = candidates[places.clip(max=len(candidates) - 1)]
    fitting = np.setdiff1d(np.arange(rows), held_out)
    return torch.from_numpy(fitting), torch.from_numpy(np.sort(held_out))


def _validate(head: LinearHead, train: LabelledFeatures, rows: Tensor, objective: str) -> dict[str, float | None]:
    rows = rows.to(train.features.device)
    scores = head.scores(train.features[rows])
    if not scores.isfinite().all():
        return {"loss": None}
    loss = weak_label_loss if objective == "softmax" else binary_weak_label_loss
    return {"loss": float(loss(scores, train.label_lists[rows])), **_score(scores, train.labels[rows], objective)}


def _score(logits: Tensor, labels: Tensor, objective: str) -> dict[str, float]:
    """mAP orders images by class, so what softmax leaves open, a constant for each image, has to be taken out."""
    comparable = logits if labels.dim() == 1 or objective == "binary" else logits.log_softmax(dim=1)
    return score_classification(comparable, labels)


def _best(validation: list[dict[str, float | None]]) -> int:
    """The head of the highest score; of equals, the one of the lowest loss."""
    whole = [index for index, scores in enumerate(validation) if scores["loss"] is not None]
    if not whole:
        raise ValueError(f"every head diverged: give learning rates below {validation[0]['learning_rate']:g}")
    score = "mAP" if "mAP" in validation[whole[0]] else "top1"
    return max(whole, key=lambda index: (validation[index][score], -validation[index]["loss"]))


__all__ = ["PROTOCOLS", "LinearProbeResult", "linear_probe", "split_off_validation"]
