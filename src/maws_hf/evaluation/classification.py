"""A classifier's scores of all labelled images of a split, and what they are worth.

Legend: N images, C classes.
"""

from dataclasses import dataclass

import torch
from datasets import IterableDataset
from torch import Tensor

from ..data.samples import KEY
from ..data.sources import find_image_column
from ..data.targets import LabelReader
from ..models.modeling_maws_vit import MawsViTForImageClassification
from ..processing.transforms import EvalTransform
from .metrics import average_precision, score_classification
from .rows import read_rows


@dataclass(frozen=True)
class Classified:
    """
    Attributes:
        scores: float32 `(N, C)` on the CPU.
        targets: bool `(N, C)`, the classes of each image.
        skipped: images that could not be decoded.
    """

    scores: Tensor
    targets: Tensor
    skipped: int


@torch.inference_mode()
def classify(
    model: MawsViTForImageClassification,
    dataset: IterableDataset,
    transform: EvalTransform,
    labels: LabelReader,
    *,
    image_column: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    bf16: bool = False,
) -> Classified:
    """Scores of the images that have a label, dropout off; shows a progress bar.

    A damaged shard is read up to its damage, as in training, with a warning.

    Args:
        model: on any device.
        labels: of the training split; classes of this one are told by their names.
        bf16: autocast of the encoder; the classifier computes in float32.

    Raises:
        ValueError: a label is no class of the training split.
    """
    image_column = find_image_column(dataset, image_column)
    batches = read_rows(
        dataset,
        image_column=image_column,
        label_column=labels.column,
        transform=transform,
        batch_size=batch_size,
        num_workers=num_workers,
        may_lack_labels=True,
        may_be_damaged=True,
    )
    labels = labels.of_split(dataset.features)
    classes, device = len(labels.names), next(model.parameters()).device
    scores, targets, skipped = [torch.empty(0, classes)], [torch.empty(0, classes, dtype=torch.bool)], 0
    was_training = model.training
    model.eval()
    try:
        for rows, pixels in batches:
            skipped += sum(row.reason is not None for row in rows)
            if pixels is None:
                continue
            readable = [
                labels.multi_hot({labels.column: row.label, KEY: row.key or f"row {row.place[1]}"})
                for row in rows
                if row.reason is None
            ]
            rows_of_targets = torch.stack([torch.from_numpy(row) for row in readable])
            labelled = rows_of_targets.any(dim=1)
            if not labelled.any():
                continue
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                features = model.vit(pixels[labelled].to(device), class_token_only=True).pooler_output
            # In bfloat16, scores of many classes are equal, and the first of equals would win.
            with torch.autocast(device.type, enabled=False):
                scores.append(model.classifier(features.float()).cpu())
            targets.append(rows_of_targets[labelled])
    finally:
        model.train(was_training)
    return Classified(torch.cat(scores), torch.cat(targets), skipped)


def score_targets(scores: Tensor, targets: Tensor, multi_label: bool) -> dict[str, float]:
    """`{"mAP"}` where an image has many labels, else `{"top1", "top5"}`; the first is what models are compared by.

    Args:
        scores: `(N, C)`.
        targets: bool `(N, C)`.
    """
    if not multi_label:
        return score_classification(scores, targets.int().argmax(dim=1))
    precisions = average_precision(scores, targets)
    return {"mAP": float(precisions[~precisions.isnan()].mean())}


__all__ = ["Classified", "classify", "score_targets"]
