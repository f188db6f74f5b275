"""Does a classifier know the weak labels of images? Its loss and hits on a held-out sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses import classification_loss
from ..models.modeling_maws_vit import MawsViTForImageClassification


@dataclass(frozen=True)
class WeakLabelScores:
    """`loss`: the training objective. `hit_at_1`, `hit_at_5`: share of images with one of their labels among the
    first 1 or 5 predictions. `frequent_hit_at_1`: the same of always predicting the label most frequent in this
    sample, the rival that has not looked. `predictions`: `(B, 5 or fewer)` class indices, likeliest first."""

    loss: float
    hit_at_1: float
    hit_at_5: float
    frequent_hit_at_1: float
    predictions: Tensor


@torch.no_grad()
def weak_label_scores(
    model: MawsViTForImageClassification, pixel_values: Tensor, labels: Tensor, batch_size: int = 64
) -> WeakLabelScores:
    """Scores of a model on images that all have a label, dropout off.

    Args:
        pixel_values: `(B, C, H, W)`, uint8 or normalised float.
        labels: `(B, K)` class indices, padded with -100.
    """
    was_training = model.training
    model.eval()
    try:
        logits = torch.cat([model(images).logits.float() for images in pixel_values.split(batch_size)])
    finally:
        model.train(was_training)
    binary = model.config.problem_type == "multi_label_classification"
    classes = logits.shape[1]
    predictions = logits.topk(min(5, classes), dim=1).indices
    hits = (predictions[:, :, None] == labels[:, None, :]).any(dim=2)  # padding equals no class
    frequent = labels[labels >= 0].long().bincount(minlength=classes).argmax()
    return WeakLabelScores(
        loss=float(classification_loss(logits, labels, binary=binary)),
        hit_at_1=float(hits[:, 0].float().mean()),
        hit_at_5=float(hits.any(dim=1).float().mean()),
        frequent_hit_at_1=float((labels == frequent).any(dim=1).float().mean()),
        predictions=predictions,
    )
