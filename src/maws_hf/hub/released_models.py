"""The models that were released with the paper: names, files, architectures and published figures, in one table.

Sources: `maws/model_builder.py` and `README.md` of <https://github.com/facebookresearch/maws> at commit `cce939c`. No
model was released as ViT-6.5B with a text tower. Further figures are the paper's; where both give one, the README's
stands here, which was measured with the released files (the paper's differ for ViT-B and ViT-H). Checksums were not
published; one is filled in when a file was read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..models.configuration_maws_vit import SIZES

Kind = Literal["mae", "maws", "classifier", "clip"]

_URL = "https://dl.fbaipublicfiles.com/maws/"
_SHORT = {"vit_b16": "b", "vit_l16": "l", "vit_h14": "h", "vit_2b14": "2b", "vit_6.5b14": "6.5b"}

# Sources of the figures.
README = ("README of facebookresearch/maws", "https://github.com/facebookresearch/maws#available-models")
PAPER = "https://arxiv.org/abs/2303.13496"

# Data sets by what the Hub calls them, where that is a fact.
IMAGENET = ("imagenet-1k", "ImageNet-1k")
IMAGENET_V2 = ("imagenet-v2", "ImageNetV2")
IMAGENET_REAL = ("imagenet-real", "ImageNet ReaL")
OBJECTNET = ("objectnet", "ObjectNet")
INATURALIST = ("inat2018", "iNaturalist 2018")
FOOD = ("food101", "Food-101")

Relation = Literal["weights", "paper", "head", "start"]


@dataclass(frozen=True)
class Figure:
    """One published number, in %.

    Args:
        dataset: id and name.
        setting: how it was measured, e.g. "fine-tuned, 512 px".
        value: the number.
        source: name and address of where it stands.
        relation: "weights" if the released file gives it by itself, "paper" if the paper's model of this kind did,
            which may be another training run, "head" if the file's frozen features gave it with a classifier that was
            not released, "start" if training went on from the file.
        metric: what it is.
        task: the Hub's name of the task.
    """

    dataset: tuple[str, str]
    setting: str
    value: float
    source: tuple[str, str]
    relation: Relation
    metric: str = "top-1 accuracy"
    task: str = "image-classification"


@dataclass(frozen=True)
class ReleasedModel:
    """
    Args:
        name: of its repository here, e.g. "maws-vit-h-clip".
        original_name: in the original's `build_model`, e.g. ("vit_h14_xlmr_l", "maws_clip").
        kind: "mae" (encoder of an autoencoder; no decoder was released), "maws" (MAE, then WSP; no head was released),
            "classifier" (that, fine-tuned on ImageNet-1k) or "clip" (that, with an aligned text tower).
        size: one of `SIZES`.
        url: of the original file.
        data: what the images of its pretraining are.
        figures: what was published about it.
        image_size: pixels a side for which the position table is stored.
        num_labels: outputs of its classifier, 0 without one.
        sha256: of the original file, if known.
    """

    name: str
    original_name: tuple[str, str]
    kind: Kind
    size: str
    url: str
    data: str
    figures: tuple[Figure, ...]
    image_size: int = 224
    num_labels: int = 0
    sha256: str | None = None


def _paper(table: str) -> tuple[str, str]:
    return (f"MAWS paper, {table}", PAPER)


def _mae() -> Iterator[ReleasedModel]:
    finetuned = {"vit_b16": 83.5, "vit_l16": 86.1, "vit_h14": 87.4, "vit_2b14": 87.8, "vit_6.5b14": 88.3}
    linear = {"vit_b16": 56.5, "vit_l16": 65.1, "vit_h14": 69.6, "vit_2b14": 76.1, "vit_6.5b14": 78.2}
    inaturalist = {"vit_2b14": 85.6, "vit_6.5b14": 86.6}
    for size, short in _SHORT.items():
        figures = [
            Figure(IMAGENET, "fine-tuned, 224 px", finetuned[size], README, "start"),
            Figure(IMAGENET, "linear probe, 224 px", linear[size], _paper("Table 9"), "head"),
        ]
        if size in inaturalist:
            source = _paper("section 4.2")
            figures.append(Figure(INATURALIST, "fine-tuned, 224 px", inaturalist[size], source, "start"))
        url = f"{_URL}pretrain/mae/{size}.pt"
        yield ReleasedModel(f"maws-vit-{short}-mae", (size, "mae"), "mae", size, url, "IG-3B", tuple(figures))
    for size, data, setting, value in (
        ("vit_2b14", "ImageNet-1k", "fine-tuned, 224 px", 87.4),
        ("vit_l16", "ImageNet-21k", "fine-tuned, 512 px", 86.9),
    ):
        kind = f"mae_{data.replace('ImageNet-', 'in')}"
        figure = Figure(IMAGENET, setting, value, README, "start")
        name = f"maws-vit-{_SHORT[size]}-{kind.replace('_', '-')}"
        yield ReleasedModel(name, (size, kind), "mae", size, f"{_URL}pretrain/{kind}/{size}.pt", data, (figure,))


def _maws() -> Iterator[ReleasedModel]:
    linear = {"vit_b16": 83.3, "vit_l16": 86.1, "vit_h14": 87.5, "vit_2b14": 88.1, "vit_6.5b14": 88.6}
    few_shot = {  # 1, 5 and 10 images a class: ImageNet-1k, iNaturalist 2018
        "vit_h14": ((57.1, 79.8, 82.5), (31.7, 67.8, 76.1)),
        "vit_2b14": ((62.1, 81.5, 83.7), (35.5, 72.8, 80.3)),
        "vit_6.5b14": ((63.6, 82.6, 84.6), (36.4, 73.7, 80.9)),
    }
    inaturalist = {"vit_h14": 90.5, "vit_2b14": 91.3, "vit_6.5b14": 91.7}
    for size, short in _SHORT.items():
        figures = [Figure(IMAGENET, "linear probe, 224 px", linear[size], README, "head")]
        for dataset, values in zip((IMAGENET, INATURALIST), few_shot.get(size, ()), strict=False):
            for shots, value in zip((1, 5, 10), values, strict=True):
                setting = f"{shots} labelled image{'s' * (shots > 1)} a class"
                figures.append(Figure(dataset, setting, value, _paper("Table 5"), "head"))
        if size in inaturalist:
            figures.append(Figure(INATURALIST, "fine-tuned, 518 px", inaturalist[size], _paper("Table 3"), "start"))
        url = f"{_URL}pretrain/maws/{size}.pt"
        yield ReleasedModel(f"maws-vit-{short}", (size, "maws"), "maws", size, url, "IG-3B", tuple(figures))


def _classifiers() -> Iterator[ReleasedModel]:
    finetuned = {"vit_b16": 86.8, "vit_l16": 88.8, "vit_h14": 89.5, "vit_2b14": 89.8, "vit_6.5b14": 90.1}
    robust = {  # ImageNetV2, ReaL, ObjectNet
        "vit_h14": (82.3, 90.8, 72.6),
        "vit_2b14": (83.0, 90.9, 75.8),
        "vit_6.5b14": (84.0, 91.1, 77.9),
    }
    for size, short in _SHORT.items():
        pixels = 512 if SIZES[size]["patch_size"] == 16 else 518
        figures = [Figure(IMAGENET, f"{pixels} px", finetuned[size], README, "weights")]
        for dataset, value in zip((IMAGENET_V2, IMAGENET_REAL, OBJECTNET), robust.get(size, ()), strict=False):
            figures.append(Figure(dataset, f"{pixels} px", value, _paper("Table 3"), "paper"))
        yield ReleasedModel(
            name=f"maws-vit-{short}-ft-in1k",
            original_name=(f"{size}_ft_in1k", "maws"),
            kind="classifier",
            size=size,
            url=f"{_URL}finetune/in1k/maws/{size}_{pixels}.pt",
            data="IG-3B",
            figures=tuple(figures),
            image_size=pixels,
            num_labels=1000,
        )


def _clip() -> Iterator[ReleasedModel]:
    zero_shot = {"vit_b16": 74.9, "vit_l16": 79.7, "vit_h14": 81.1, "vit_2b14": 82.1}
    food = {"vit_h14": 95.8, "vit_2b14": 96.2}
    task = "zero-shot-image-classification"
    for size, value in zero_shot.items():
        figures = [Figure(IMAGENET, "zero-shot, 224 px", value, README, "weights", task=task)]
        if size in food:
            source = _paper("Table 6")
            figures.append(Figure(FOOD, "zero-shot, 224 px", food[size], source, "paper", task=task))
        original = f"{size}_xlmr_{'b' if size == 'vit_b16' else 'l'}"
        url = f"{_URL}pretrain/clip/{original}.pt"
        name = f"maws-vit-{_SHORT[size]}-clip"
        yield ReleasedModel(name, (original, "maws_clip"), "clip", size, url, "IG-3B", tuple(figures))


RELEASED_MODELS: dict[str, ReleasedModel] = {
    model.name: model for models in (_mae(), _maws(), _classifiers(), _clip()) for model in models
}


__all__ = ["RELEASED_MODELS", "Figure", "ReleasedModel"]
