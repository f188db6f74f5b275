"""What is shown here: the models by name, size and licence."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCard
from transformers import PreTrainedModel

PAPER = "https://arxiv.org/abs/2303.13496"


@dataclass(frozen=True)
class ShownModel:
    """
    Attributes:
        role: what it does on this page.
        name: folder or Hub id, as given.
        kind: its class.
        parameters: number of them.
        licence: of the weights as the model's card says it; None if it says nothing.
    """

    role: str
    name: str
    kind: str
    parameters: int
    licence: str | None


def describe(role: str, name: str, model: PreTrainedModel) -> ShownModel:
    return ShownModel(role, short_name(name), type(model).__name__, model.num_parameters(), licence_of(name))


def short_name(name: str) -> str:
    """A Hub id as it is; of a folder the last two parts, for where it lies is nobody's business."""
    return "/".join(Path(name).resolve().parts[-2:]) if Path(name).exists() else name


def licence_of(name: str) -> str | None:
    """What the card of a folder or Hub model says under `license`."""
    try:
        card = ModelCard.load(Path(name, "README.md") if Path(name).is_dir() else name, ignore_metadata_errors=True)
    except (OSError, ValueError, yaml.YAMLError):  # no sound card; or no network, and the weights come from the cache
        return None
    licence = card.data.get("license_name") if card.data.get("license") == "other" else card.data.get("license")
    return None if licence is None else str(licence)


def as_header(models: Sequence[ShownModel]) -> str:
    lines = "".join(
        f"<li><span>{html.escape(model.role)}</span> <b>{html.escape(model.name)}</b> <span>{model.kind}, "
        f"{count(model.parameters)} parameters"
        + (f", weights: {html.escape(model.licence)}" if model.licence else "")
        + "</span></li>"
        for model in models
    )
    return (
        '<h1>MAWS</h1><p class="lead">Vision transformers that were first shown hidden patches, then hashtags, then '
        f'captions. <a href="{PAPER}" target="_blank" rel="noopener">The paper (arXiv 2303.13496)</a></p>'
        f'<ul class="models">{lines}</ul>'
    )


def count(number: int) -> str:
    """1,234,567 as 1.2 M."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return str(number)
