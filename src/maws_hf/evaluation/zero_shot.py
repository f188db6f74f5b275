"""Zero-shot classification: an image belongs to the class whose description its feature is most like.

As the released MAWS evaluation has it (`eval_zeroshot.py`; CLIP, arXiv 2103.00020, section 3.1.4): every template with
every name of a class is embedded, each embedding has length 1, their mean is brought to length 1 again and is the
class. An image feature of length 1 goes to the class with the highest product; no scale is needed for that. Ours: all
in float32, where the release had float16.

Legend: N images, C classes, D width of the shared space. It works with every model that has `get_text_features` and
`get_image_features`; image features are those of `features.extract_features`.
"""

import sys
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompts import Prompts
from .metrics import label_ranks, share_within
from .two_towers import encode_texts

IMAGES_AT_ONCE = 1024  # scored together: with 21,000 classes 88 MB


@dataclass(frozen=True)
class ZeroShotAccuracy:
    """How often the right class came first.

    Attributes:
        top1, top5: share of images whose class is the likeliest, or one of the five likeliest. Of five classes or
            fewer there is no top5, which would always be 1.
        mean_per_class: top-1 of each class, averaged over the classes that occur.
        images_per_class: int64 `(C,)`.
        top1_per_class: float64 `(C,)`, NaN where there is no image.
    """

    top1: float
    top5: float | None
    mean_per_class: float
    images_per_class: Tensor
    top1_per_class: Tensor

    def per_class(self, names: list[str]) -> dict[str, dict[str, float | None]]:
        """`{name: {"images", "top1"}}` of every class, None for the accuracy of no image."""
        counts, shares = self.images_per_class.tolist(), self.top1_per_class.tolist()
        return {
            name: {"images": count, "top1": share if count else None}
            for name, count, share in zip(names, counts, shares, strict=True)
        }


def class_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    *,
    batch_size: int = 256,
    bf16: bool = False,
) -> Tensor:
    """The classes as points of the shared space, float32 `(C, D)` of length 1, on the CPU, under a progress bar.

    Prompts go through the model by falling length and across classes, so that little is padded and the largest batch
    comes first; one embedding a class is kept. The batch size changes results by rounding alone.

    Args:
        model: where it is; in evaluation mode while this runs.
        tokenizer: of the model.
        batch_size: prompts a forward pass.
        bf16: bfloat16 autocast; sums are float64 all the same.

    Raises:
        ValueError: an embedding is not finite.
    """
    owners = np.repeat(np.arange(len(prompts)), [len(prompts.templates) * len(names) for names in prompts.classes])
    starts = np.searchsorted(owners, np.arange(len(prompts)))
    lengths = [
        len(template) + len(name) for names in prompts.classes for template in prompts.templates for name in names
    ]
    order = np.argsort(-np.array(lengths), kind="stable")
    sums: Tensor | None = None
    interval = 0.1 if sys.stderr.isatty() else 10  # seconds; a log file keeps every update
    with tqdm(
        total=len(order),
        desc="prompts",
        unit="",
        dynamic_ncols=True,
        mininterval=interval,
        delay=interval,
        leave=False,
    ) as bar:
        for batch in np.split(order, range(batch_size, len(order), batch_size)):
            texts = [_text(prompts, int(owners[place]), int(place - starts[owners[place]])) for place in batch]
            features = F.normalize(encode_texts(model, tokenizer, texts, bf16=bf16), dim=1).cpu().double()
            if sums is None:
                sums = torch.zeros(len(prompts), features.shape[1], dtype=torch.float64)
            sums.index_add_(0, torch.from_numpy(owners[batch]), features)
            bar.update(len(batch))
    assert sums is not None  # prompts are never empty
    return F.normalize(sums, dim=1).float()


def zero_shot_scores(image_features: Tensor, class_embeddings: Tensor) -> Tensor:
    """Cosine of each image `(N, D)` with each class `(C, D)`: `(N, C)` float32; classes have length 1 already."""
    return F.normalize(image_features.float(), dim=1) @ class_embeddings.float().T


def zero_shot_accuracy(image_features: Tensor, class_embeddings: Tensor, labels: Tensor) -> ZeroShotAccuracy:
    """Scores images, a thousand at a time.

    Args:
        image_features: `(N, D)`.
        class_embeddings: `(C, D)`, of length 1.
        labels: int64 `(N,)`, in 0..C-1.

    Raises:
        ValueError: there is no image, or a label is out of range.
    """
    if not len(labels):
        raise ValueError("no image has a label among the classes: choose a labelled split")
    parts = zip(image_features.split(IMAGES_AT_ONCE), labels.split(IMAGES_AT_ONCE), strict=True)
    ranks = torch.cat([label_ranks(zero_shot_scores(features, class_embeddings), own) for features, own in parts])
    labels, ranks = labels.cpu(), ranks.cpu()
    hits = (ranks == 0).double()
    images = torch.bincount(labels, minlength=len(class_embeddings))
    per_class = torch.bincount(labels, weights=hits, minlength=len(class_embeddings)) / images
    return ZeroShotAccuracy(
        top1=float(hits.mean()),
        top5=share_within(ranks, 5) if len(class_embeddings) > 5 else None,
        mean_per_class=float(per_class[images > 0].mean()),
        images_per_class=images,
        top1_per_class=per_class,
    )


def _text(prompts: Prompts, place: int, number: int) -> str:
    """`prompts.texts(place)[number]`, without the others."""
    names = prompts.classes[place]
    return prompts.templates[number // len(names)].replace("{}", names[number % len(names)])


__all__ = [
    "ZeroShotAccuracy",
    "class_embeddings",
    "zero_shot_accuracy",
    "zero_shot_scores",
]
