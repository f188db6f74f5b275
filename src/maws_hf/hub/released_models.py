"""The models that were released with the paper: names, files, architectures and published figures, in one table.

Sources: `maws/model_builder.py` and `README.md` of <https://github.com/facebookresearch/maws> at commit `cce939c`. No
model was released as ViT-6.5B with a text tower. Checksums were not published; one is filled in when a file was read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..models.configuration_maws_vit import SIZES

Kind = Literal["mae", "maws", "classifier", "clip"]

_URL = "https://dl.fbaipublicfiles.com/maws/"
_SHORT = {"vit_b16": "b", "vit_l16": "l", "vit_h14": "h", "vit_2b14": "2b", "vit_6.5b14": "6.5b"}

# Top-1 on ImageNet-1k in %, from the tables of the README.
_LINEAR = {"vit_b16": 83.3, "vit_l16": 86.1, "vit_h14": 87.5, "vit_2b14": 88.1, "vit_6.5b14": 88.6}
_FINETUNED = {"vit_b16": 86.8, "vit_l16": 88.8, "vit_h14": 89.5, "vit_2b14": 89.8, "vit_6.5b14": 90.1}
_ZERO_SHOT = {"vit_b16": 74.9, "vit_l16": 79.7, "vit_h14": 81.1, "vit_2b14": 82.1}
_MAE_FINETUNED = {"vit_b16": 83.5, "vit_l16": 86.1, "vit_h14": 87.4, "vit_2b14": 87.8, "vit_6.5b14": 88.3}


@dataclass(frozen=True)
class Figure:
    """One published number.

    Args:
        setting: how it was measured, e.g. "fine-tuned, 512 px".
        value: top-1 on ImageNet-1k in %.
        of_this_model: whether the released weights give it by themselves; otherwise they were the start of a training
            whose result is not in the file.
    """

    setting: str
    value: float
    of_this_model: bool


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
        data: what the weights have seen: "IG-3B", "ImageNet-1k" or "ImageNet-21k".
        image_size: pixels a side for which the position table is stored.
        num_labels: outputs of its classifier, 0 without one.
        figure: what was published about it.
        sha256: of the original file, if known.
    """

    name: str
    original_name: tuple[str, str]
    kind: Kind
    size: str
    url: str
    data: str
    figure: Figure
    image_size: int = 224
    num_labels: int = 0
    sha256: str | None = None


def _released() -> Iterator[ReleasedModel]:
    finetuned = "fine-tuned, 224 px"
    for size, short in _SHORT.items():
        figure = Figure(finetuned, _MAE_FINETUNED[size], of_this_model=False)
        url = f"{_URL}pretrain/mae/{size}.pt"
        yield ReleasedModel(f"maws-vit-{short}-mae", (size, "mae"), "mae", size, url, "IG-3B", figure)
    figure = Figure(finetuned, 87.4, of_this_model=False)
    url = f"{_URL}pretrain/mae_in1k/vit_2b14.pt"
    original = ("vit_2b14", "mae_in1k")
    yield ReleasedModel("maws-vit-2b-mae-in1k", original, "mae", "vit_2b14", url, "ImageNet-1k", figure)
    figure = Figure("fine-tuned, 512 px", 86.9, of_this_model=False)
    url = f"{_URL}pretrain/mae_in21k/vit_l16.pt"
    original = ("vit_l16", "mae_in21k")
    yield ReleasedModel("maws-vit-l-mae-in21k", original, "mae", "vit_l16", url, "ImageNet-21k", figure)
    for size, short in _SHORT.items():
        figure = Figure("linear probe, 224 px", _LINEAR[size], of_this_model=False)
        url = f"{_URL}pretrain/maws/{size}.pt"
        yield ReleasedModel(f"maws-vit-{short}", (size, "maws"), "maws", size, url, "IG-3B", figure)
    for size, short in _SHORT.items():
        pixels = 512 if SIZES[size]["patch_size"] == 16 else 518
        yield ReleasedModel(
            name=f"maws-vit-{short}-ft-in1k",
            original_name=(f"{size}_ft_in1k", "maws"),
            kind="classifier",
            size=size,
            url=f"{_URL}finetune/in1k/maws/{size}_{pixels}.pt",
            data="IG-3B",
            figure=Figure(f"fine-tuned, {pixels} px", _FINETUNED[size], of_this_model=True),
            image_size=pixels,
            num_labels=1000,
        )
    for size, value in _ZERO_SHOT.items():
        original = f"{size}_xlmr_{'b' if size == 'vit_b16' else 'l'}"
        url = f"{_URL}pretrain/clip/{original}.pt"
        figure = Figure("zero-shot, 224 px", value, of_this_model=True)
        yield ReleasedModel(
            f"maws-vit-{_SHORT[size]}-clip", (original, "maws_clip"), "clip", size, url, "IG-3B", figure
        )


RELEASED_MODELS: dict[str, ReleasedModel] = {model.name: model for model in _released()}


__all__ = ["RELEASED_MODELS", "Figure", "ReleasedModel"]
