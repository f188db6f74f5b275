"""The models that were released with the paper: names, files, architectures and published figures, in one table.

Sources: `maws/model_builder.py` and `README.md` of <https://github.com/facebookresearch/maws> at commit `cce939c`. No
model was released as ViT-6.5B with a text tower. Further figures are the paper's; where both give one, the README's
stands here, which was measured with the released files (the paper's differ for four of the five sizes). Some of Table
5 was read in the ICCV version, where it is Table 4. Checksums were not published; one is filled in when a file was
read.
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

# Data sets: a short name (of these, imagenet-1k and food101 are ids on the Hub), the name, and the split (Table 2).
IMAGENET = ("imagenet-1k", "ImageNet-1k", "validation")
IMAGENET_V2 = ("imagenet-v2", "ImageNetV2", "test")
IMAGENET_REAL = ("imagenet-real", "ImageNet ReaL", "test")
OBJECTNET = ("objectnet", "ObjectNet", "test")
INATURALIST = ("inat2018", "iNaturalist 2018", "validation")
FOOD = ("food101", "Food-101", "validation")
LVIS = ("lvis", "LVIS v1", "validation")
COCO = ("coco", "COCO 2017", "validation")
KINETICS = ("kinetics-400", "Kinetics-400", "validation")
SOMETHING = ("something-something-v2", "Something-Something v2", "validation")

DETECTION, SEGMENTATION, VIDEO = "object-detection", "image-segmentation", "video-classification"
BOX_AP, MASK_AP = "box AP", "mask AP"

Relation = Literal["weights", "paper", "head", "adapter", "start"]


@dataclass(frozen=True)
class Figure:
    """One published number, in % (AP: in points).

    Args:
        dataset: short name, name and split.
        setting: how it was measured, e.g. "fine-tuned, 512 px".
        value: the number.
        source: name and address of where it stands.
        relation: "weights" if the released file gives it by itself, "paper" if the paper's model of this kind did,
            which may be another training run, "head" if the file's frozen features gave it with a classifier that was
            not released, "adapter" if its frozen weights did with an adapter among them (VPT, section 4.4), "start" if
            training went on from the file.
        metric: what it is.
        task: the Hub's name of the task.
    """

    dataset: tuple[str, str, str]
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


def _detection(
    values: tuple[tuple[float, ...], tuple[float, ...]], *tables: str, setting: str = "ViTDet, Cascade Mask R-CNN"
) -> Iterator[Figure]:
    """LVIS and COCO: box AP, and mask AP where it was published."""
    for dataset, found, table in zip((LVIS, COCO), values, tables, strict=True):
        for task, metric, value in zip((DETECTION, SEGMENTATION), (BOX_AP, MASK_AP), found, strict=False):
            yield Figure(dataset, setting, value, _paper(table), "start", metric, task)


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
        if size == "vit_2b14":
            figures += _detection(((53.6,), (59.8,)), "section 4.2", "section 4.2", setting="fine-tuned detector")
        url = f"{_URL}pretrain/mae/{size}.pt"
        yield ReleasedModel(f"maws-vit-{short}-mae", "mae", size, url, "IG-3B", tuple(figures))
    for size, data, setting, value in (
        ("vit_2b14", "ImageNet-1k", "fine-tuned, 224 px", 87.4),
        ("vit_l16", "ImageNet-21k", "fine-tuned, 512 px", 86.9),
    ):
        kind = f"mae_{data.replace('ImageNet-', 'in')}"
        figure = Figure(IMAGENET, setting, value, README, "start")
        name = f"maws-vit-{_SHORT[size]}-{kind.replace('_', '-')}"
        yield ReleasedModel(name, "mae", size, f"{_URL}pretrain/{kind}/{size}.pt", data, (figure,))


def _maws() -> Iterator[ReleasedModel]:
    linear = {"vit_b16": 83.3, "vit_l16": 86.1, "vit_h14": 87.5, "vit_2b14": 88.1, "vit_6.5b14": 88.6}
    few_shot = {  # 1, 5 and 10 images a class: ImageNet-1k, iNaturalist 2018
        "vit_h14": ((57.1, 79.8, 82.5), (31.7, 67.8, 76.1)),
        "vit_2b14": ((62.1, 81.5, 83.7), (35.5, 72.8, 80.3)),
        "vit_6.5b14": ((63.6, 82.6, 84.6), (36.4, 73.7, 80.9)),
    }
    inaturalist = {"vit_h14": 90.5, "vit_2b14": 91.3, "vit_6.5b14": 91.7}
    detection = {"vit_h14": ((50.8, 45.5), (57.7, 49.6)), "vit_2b14": ((51.8, 46.1), (58.0, 50.1))}
    for size, short in _SHORT.items():
        figures = [Figure(IMAGENET, "linear probe, 224 px", linear[size], README, "head")]
        for dataset, values in zip((IMAGENET, INATURALIST), few_shot.get(size, ()), strict=False):
            for shots, value in zip((1, 5, 10), values, strict=True):
                setting = f"{shots} labelled image{'s' * (shots > 1)} a class, mean of 5 draws"
                figures.append(Figure(dataset, setting, value, _paper("Table 5"), "adapter"))
        if size in inaturalist:
            figures.append(Figure(INATURALIST, "fine-tuned, 518 px", inaturalist[size], _paper("Table 3"), "start"))
        if size in detection:
            figures += _detection(detection[size], "Table 7", "Table 8")
        if size == "vit_l16":
            for dataset, value in ((KINETICS, 86.0), (SOMETHING, 74.4)):
                setting = "fine-tuned on video, 224 px, relative positions added"
                figures.append(Figure(dataset, setting, value, _paper("Table 4"), "start", task=VIDEO))
        url = f"{_URL}pretrain/maws/{size}.pt"
        yield ReleasedModel(f"maws-vit-{short}", "maws", size, url, "IG-3B", tuple(figures))


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
        if size == "vit_2b14":
            source = (README[0], README[1].replace("available-models", "zero-shot"))
            figures.append(Figure(IMAGENET, "zero-shot in French, 224 px", 62.6, source, "weights", task=task))
        if size in food:
            source = _paper("Table 6")
            figures.append(Figure(FOOD, "zero-shot, 224 px", food[size], source, "paper", task=task))
        original = f"{size}_xlmr_{'b' if size == 'vit_b16' else 'l'}"
        url = f"{_URL}pretrain/clip/{original}.pt"
        name = f"maws-vit-{_SHORT[size]}-clip"
        yield ReleasedModel(name, "clip", size, url, "IG-3B", tuple(figures))


RELEASED_MODELS: dict[str, ReleasedModel] = {
    model.name: model for models in (_mae(), _maws(), _classifiers(), _clip()) for model in models
}


__all__ = ["RELEASED_MODELS", "Figure", "ReleasedModel"]
