"""Linear classifiers on fixed features, a whole sweep of learning rates in one pass.

All heads see the same batches, as rows of one matrix: a product for all of them costs little more than for one.
Nothing else is shared, and each ends up as if trained alone.

Legend: N images, D features, C classes, H heads, B images of a batch, K places for the labels of an image.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..optim.lars import LARS
from ..optim.schedules import warmup_cosine
from .features import LabelledFeatures

VARIANCE_EPSILON = 1e-6  # as MAE's BatchNorm before the head
LOGITS_AT_ONCE = {"cpu": 2**22, "cuda": 2**26}  # larger batches are taken in parts: 16 MiB stay in a CPU's cache
_INITIAL_WEIGHTS, _ORDER = range(2)  # what a generator is for: first word of its seed


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How heads are trained. `dataclasses.replace(PROTOCOLS["mae"], epochs=50)` makes another.

    Attributes:
        base_learning_rates: the sweep, for 256 images an update and scaled linearly.
        batch_size: images an update. On small data at most one in `min_steps_per_epoch` of the images (but 32): else
            a schedule made for a million images is over in a handful of updates, and a head on 2,000 images of
            Fashion-MNIST ends up a point lower.
        warmup_epochs: rise from 0; then half a cosine.
        objective: "softmax" cross-entropy, for label lists against the labels in equal shares, or "binary", sigmoid
            cross-entropy of each class, summed over classes.
    """

    optimizer: Literal["lars", "sgd"]
    base_learning_rates: tuple[float, ...]
    batch_size: int
    epochs: int
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    objective: Literal["softmax", "binary"] = "softmax"
    min_steps_per_epoch: int = 16

    def __post_init__(self) -> None:
        if self.optimizer not in ("lars", "sgd") or self.objective not in ("softmax", "binary"):
            raise ValueError(f"optimizer {self.optimizer!r} or objective {self.objective!r} is unknown")
        if not self.base_learning_rates or not all(0 < rate < math.inf for rate in self.base_learning_rates):
            raise ValueError(f"learning rates are {self.base_learning_rates}, expected positive numbers, at least one")
        counts = {name: getattr(self, name) for name in ("batch_size", "epochs", "min_steps_per_epoch")}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, it must be at least 1")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, it must be less than epochs, {self.epochs}")

    def batch_size_for(self, images: int) -> int:
        """The batch for a training set of so many images."""
        return min(self.batch_size, images, max(32, images // self.min_steps_per_epoch))


@dataclass(frozen=True)
class LinearHead:
    """`features @ weight.T + bias`, on features as they are: standardisation is folded in.

    Attributes:
        weight: `(C, D)` float32.
        bias: `(C,)` float32.
    """

    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """`(N, D)` -> `(N, C)`, on the features' device."""
        weight, bias = self.weight.to(features.device), self.bias.to(features.device)
        return torch.addmm(bias, features, weight.T)


def train_heads(
    train: LabelledFeatures,
    rows: Tensor,
    learning_rates: Sequence[float],
    protocol: Protocol,
    *,
    standardize: bool = True,
    seed: int = 0,
    device: torch.device | None = None,
) -> list[LinearHead]:
    """One head for each peak learning rate, all on the same batches of the rows numbered `rows`.

    The weights begin alike, normal with deviation 0.01 (MAE); a last, smaller batch of an epoch is left out, other
    images each time.
    """
    features, labels = train.features, train.label_lists
    device = device or features.device
    heads, classes, width = len(learning_rates), train.num_classes, features.shape[1]
    mean, deviation = torch.zeros(width, dtype=torch.float64), torch.ones(width, dtype=torch.float64)
    if standardize:
        mean, deviation = _statistics(features, rows)
    shift, scale = mean.float().to(device), deviation.reciprocal().float().to(device)
    if device.type == "cuda" and features.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        features = features.to(device)  # once, instead of the rows of every batch
    labels = labels.to(features.device)

    initial_seed = int(np.random.default_rng([_INITIAL_WEIGHTS, seed]).integers(2**63))
    generator = torch.Generator().manual_seed(initial_seed)
    first = torch.nn.init.trunc_normal_(torch.empty(classes, width), std=0.01, generator=generator)
    weight = first.to(device).repeat(heads, 1, 1)
    bias = torch.zeros(heads, classes, device=device)
    weight_gradient, bias_gradient = torch.zeros_like(weight), torch.zeros_like(bias)
    optimizer = _build_optimizer(weight, bias, weight_gradient, bias_gradient, protocol)

    batch_size = protocol.batch_size_for(len(rows))
    steps_per_epoch = len(rows) // batch_size
    schedule = {
        "warmup_steps": round(protocol.warmup_epochs * steps_per_epoch),
        "max_steps": protocol.epochs * steps_per_epoch,
    }
    interval = 1 if sys.stderr.isatty() else 10  # seconds; a log file keeps every update
    part = max(1, LOGITS_AT_ONCE["cpu" if device.type == "cpu" else "cuda"] // (heads * classes))
    with (
        torch.no_grad(),
        tqdm(total=schedule["max_steps"], unit="step", leave=False, mininterval=interval, delay=interval) as bar,
    ):
        for step in range(schedule["max_steps"]):
            epoch, number = divmod(step, steps_per_epoch)
            if number == 0:
                permutation = np.random.default_rng([_ORDER, seed, epoch]).permutation(len(rows))
                order = rows[permutation].to(features.device)  # once: each copy waits for all before it
            chosen = order[number * batch_size : (number + 1) * batch_size]
            batch = (features[chosen].to(device) - shift) * scale
            targets = labels[chosen].to(device)
            labelled = (targets >= 0).any(dim=1)
            shares = labelled / labelled.sum().clamp(min=1)  # of each image in the mean over those with labels
            for group, peak in zip(optimizer.param_groups, learning_rates, strict=True):
                group["lr"] = warmup_cosine(step, peak=peak, **schedule)
            weight_gradient.zero_()
            bias_gradient.zero_()
            for images, lists, share in zip(batch.split(part), targets.split(part), shares.split(part), strict=True):
                # Images last: a softmax along neighbouring values, ten classes say, is several times as slow.
                logits = torch.addmm(bias.view(-1, 1), weight.view(-1, width), images.T).view(heads, classes, -1)
                slope = logit_gradient(logits, lists, share, protocol.objective).view(heads * classes, -1)
                weight_gradient.view(-1, width).addmm_(slope, images)
                bias_gradient.view(-1).add_(slope.sum(dim=1))
            optimizer.step()
            bar.update()
    return [_fold(weight[head], bias[head], mean, deviation) for head in range(heads)]


def _build_optimizer(
    weight: Tensor, bias: Tensor, weight_gradient: Tensor, bias_gradient: Tensor, protocol: Protocol
) -> torch.optim.Optimizer:
    """A group for each head, of slices that share the memory of all."""
    groups = []
    for head in range(len(weight)):
        parameters = [weight[head], bias[head]]
        parameters[0].grad, parameters[1].grad = weight_gradient[head], bias_gradient[head]
        groups.append({"params": parameters})
    settings = {"lr": 0.0, "momentum": protocol.momentum, "weight_decay": protocol.weight_decay}
    if protocol.optimizer == "lars":
        return LARS(groups, **settings)
    return torch.optim.SGD(groups, **settings, nesterov=protocol.momentum > 0)


def logit_gradient(logits: Tensor, labels: Tensor, shares: Tensor, objective: str) -> Tensor:
    """Gradient of the objective with respect to the logits, in closed form; the logits are lost.

    Args:
        logits: `(H, C, B)`.
        labels: `(B, K)`, padded with negatives.
        shares: `(B,)`, weight of each image's loss.
        objective: of `Protocol`.
    """
    present = (labels >= 0).to(logits.dtype)
    if objective == "softmax":
        predicted, wanted = logits.softmax(dim=1), present / present.sum(dim=1, keepdim=True).clamp(min=1)
    else:
        predicted, wanted = logits.sigmoid_(), present
    places = labels.clamp(min=0).T.expand(len(logits), -1, -1)
    predicted.scatter_add_(1, places, -wanted.T.expand_as(places))
    return predicted.mul_(shares)


def _statistics(features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature over `rows`, `(D,)` float64."""
    mean, square = (torch.zeros(features.shape[1], dtype=torch.float64) for _ in range(2))
    parts = rows.split(2**14)
    for part in parts:
        mean += features[part.to(features.device)].cpu().double().sum(dim=0) / len(rows)
    for part in parts:
        square += (features[part.to(features.device)].cpu().double() - mean).square().sum(dim=0) / len(rows)
    return mean, (square + VARIANCE_EPSILON).sqrt()


def _fold(weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor) -> LinearHead:
    """Weights for features as they are, of weights for standardised ones."""
    folded = weight.cpu().double() / deviation  # in this order: not all devices have float64
    return LinearHead(folded.float(), (bias.cpu().double() - folded @ mean).float())


__all__ = ["LinearHead", "Protocol", "logit_gradient", "train_heads"]
