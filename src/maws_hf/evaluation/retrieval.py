"""Does the right caption come first for an image, and the right image for a caption? Recall, both ways.

Legend: N images, M different captions, P width of the common space.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.modeling_maws_lit import MawsLiTModel
from .metrics import share_within

CAPTIONS_AT_ONCE = 256


def retrieval_scores(
    image_embeds: Tensor, text_embeds: Tensor, text_of_image: Tensor, ks: Sequence[int] = (1, 5)
) -> dict[str, Any]:
    """Recall@k: the share of queries that find what belongs to them among the k most similar.

    Captions are counted once however many images they belong to. An image looks for its caption among all captions; a
    caption looks for any of its images among all images. Equal similarities rank in the order of the candidates.

    Args:
        image_embeds: `(N, P)`, normalised.
        text_embeds: `(M, P)`, normalised, of different captions.
        text_of_image: int64 `(N,)`, each image's caption; every caption has an image.

    Returns:
        `{"pairs": N, "captions": M, "image_to_text": {"recall@1": ...}, "text_to_image": {...}, "chance@1": ...}`;
        chance is that of an image for its caption.
    """
    similarity = image_embeds.float() @ text_embeds.float().T
    images, captions = similarity.shape
    own = text_of_image.to(similarity.device)
    of_images = _ranks(similarity, torch.arange(captions, device=own.device) == own[:, None])
    of_captions = _ranks(similarity.T, (own[:, None] == torch.arange(captions, device=own.device)).T)
    return {
        "pairs": images,
        "captions": captions,
        "image_to_text": {f"recall@{k}": share_within(of_images, k) for k in ks},
        "text_to_image": {f"recall@{k}": share_within(of_captions, k) for k in ks},
        "chance@1": 1 / captions,
    }


@torch.no_grad()
def caption_retrieval(
    model: MawsLiTModel, vision_features: Tensor, captions: Sequence[Sequence[int]], ks: Sequence[int] = (1, 5)
) -> dict[str, Any]:
    """[`retrieval_scores`] of images and one caption each; captions of the same tokens are one.

    Args:
        model: in evaluation mode.
        vision_features: `(N, D)` of its image tower.
        captions: N token ids, special tokens included.
    """
    places: dict[tuple[int, ...], int] = {}
    text_of_image = [places.setdefault(tuple(caption), len(places)) for caption in captions]
    different = list(places)
    parts = [different[start : start + CAPTIONS_AT_ONCE] for start in range(0, len(different), CAPTIONS_AT_ONCE)]
    text_embeds = torch.cat([model.embed_captions(part) for part in parts])
    return retrieval_scores(model.embed_images(vision_features), text_embeds, torch.tensor(text_of_image), ks)


def _ranks(similarity: Tensor, right: Tensor) -> Tensor:
    """Place of the best right candidate of each query, 0 for the first; `right` is a mask of the same shape."""
    order = similarity.argsort(dim=1, descending=True, stable=True)
    return right.gather(1, order).int().argmax(dim=1)


__all__ = ["caption_retrieval", "retrieval_scores"]
