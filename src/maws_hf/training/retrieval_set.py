"""What a run is asked at its end: images to find captions for, and captions to find images for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.captions import clean_caption
from ..data.sources import DataSourceError
from .images import read_eval_samples
from .pairs import PairRecipe, open_pairs

RETRIEVAL_IMAGES = 2048


@dataclass(frozen=True)
class RetrievalSet:
    """Images to find captions for, and captions to find images for.

    Attributes:
        split: where they are from.
        pixels: uint8 `(N, 3, H, W)`.
        captions: of each language (or column), by the number of the image.
    """

    split: str
    pixels: Tensor
    captions: dict[str, dict[int, str]]


def read_retrieval_set(
    recipe: PairRecipe, split: str, languages: Sequence[str] | None, image_size: int | tuple[int, int]
) -> RetrievalSet:
    """A fixed random sample of a split: at most `RETRIEVAL_IMAGES` images with captions.

    Args:
        languages: those of the caption weights if None; without weights English, or what occurs first.

    Raises:
        DataSourceError: no image has a caption in one of `languages`.
    """
    _, _, captions = open_pairs(recipe, split)
    if languages:
        captions = replace(captions, weights=None)  # others than those that are trained on may be wanted
    samples = read_eval_samples(
        recipe,
        image_size,
        count=RETRIEVAL_IMAGES,
        columns=captions.columns,
        extra=lambda row, rng: {"row": {column: row[column] for column in captions.columns}},
        keep=lambda row: bool(captions(row)),
        split=split,
    )
    by_language: dict[str, dict[int, str]] = {}
    for number, sample in enumerate(samples):
        for language, text in captions.texts(sample["row"]):
            if number not in by_language.setdefault(language, {}) and (caption := clean_caption(text)):
                by_language[language][number] = caption
    found = [language for language, texts in by_language.items() if texts]
    if absent := [language for language in languages or () if language not in found]:
        raise DataSourceError(
            f"--retrieval_languages {absent[0]}: no image of the split {split} of {recipe.dataset_name} has a caption "
            f"in it, there are {', '.join(sorted(found))}"
        )
    if captions.weights is not None:
        chosen = [language for language in captions.weights if language in found]
    else:
        chosen = languages or (["en"] if "en" in found else found[:1])
    pixels = torch.stack([sample["pixel_values"] for sample in samples])
    return RetrievalSet(split, pixels, {language: by_language[language] for language in chosen})


__all__ = ["RetrievalSet", "read_retrieval_set"]
