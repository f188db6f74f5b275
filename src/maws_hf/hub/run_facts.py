"""What the folder of one's own model says about it, for its card."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ..models.configuration_maws_lit import MawsLiTConfig
from ..models.configuration_maws_vit import MawsViTConfig

_KINDS = {
    "MawsViTModel": "maws",
    "MawsViTForImageClassification": "classifier",
    "MawsLiTModel": "clip",
    "MawsMAEForPreTraining": "autoencoder",
}


def config_and_kind(folder: Path) -> tuple[PreTrainedConfig, str]:
    """The config, and which of the cards the model is described by.

    Raises:
        ValueError: the folder holds no model of ours.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model: config.json is missing")
    config = AutoConfig.from_pretrained(folder)
    named = (config.architectures or [None])[0]
    if not isinstance(config, MawsViTConfig | MawsLiTConfig) or named not in _KINDS:
        raise ValueError(f"{folder} holds no model in our own format (architectures={config.architectures})")
    return config, _KINDS[named]


def what_a_run_is(kind: str) -> str:
    """In a sentence; how it was trained is another matter."""
    return {
        "maws": "An image encoder: a vision transformer as in MAWS.",
        "classifier": "An image classifier: a vision transformer as in MAWS, with a linear layer on its class token.",
        "clip": "An image tower and a text tower in one space, as in MAWS (LiT): names of things become a classifier, "
        "without training.",
        "autoencoder": "A masked autoencoder (MAE) as in MAWS, encoder and decoder.",
    }[kind]


def training_of(folder: Path, datasets: list[str] | None, config: MawsViTConfig) -> str:
    """The stages in `training.json`, which the training scripts leave, and the data as far as they are named.

    Args:
        config: of the image tower; says whether a MAE stage had the paper's objective.

    Raises:
        ValueError: the file is no ledger of stages.
    """
    stages = _stages(folder)
    rows = "\n".join(f"| {name} | {images:,} | {flops:.2e} |" for name, images, flops in stages)
    ledger = (
        f"| stage | images | operations |\n|---|---|---|\n{rows}" if rows else "How it was trained is not recorded."
    )
    data = "Data: " + ", ".join(datasets) + "." if datasets else "The data are not named here."
    if any(name == "mae" for name, _, _ in stages):
        ledger += _other_objective(config)
    return f"{ledger}\n\n{data}"


def _other_objective(config: MawsViTConfig) -> str:
    """Which fields make the MAE stage another than the paper's; nothing where none does."""
    paper = {"prediction_ratio": 1.0, "decoder_attention": "self", "decoder_inter_block_attention": False}
    found = [f"`{name}={getattr(config, name)}`" for name, value in paper.items() if getattr(config, name) != value]
    return f"\n\nThe MAE stage's objective is not the paper's: {', '.join(found)}." if found else ""


def takes_whole_images(folder: Path) -> bool | None:
    """Whether its image processor resizes the whole picture; otherwise it crops the centre. None: there is none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found = _object_in(folder / name)
            found = found.get("image_processor", found)
            return not found.get("do_center_crop", "crop_size" in found)
    return None


def _stages(folder: Path) -> list[tuple[str, int, float]]:
    file = folder / "training.json"
    if not file.is_file():
        return []
    try:
        return [(str(s["name"]), int(s["images"]), float(s["flops"])) for s in _object_in(file)["stages"]]
    except (KeyError, TypeError, ValueError) as error:
        message = f"{file} is not a ledger of training stages ({error!r}): delete it or restore it"
        raise ValueError(message) from error


def _object_in(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object")
    return content
