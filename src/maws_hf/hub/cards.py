"""Model cards: for the released models and for models of one's own, from one template.

What is not known is said to be unknown. Figures are published ones, marked with what gave them; nothing is measured
here.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ..models.configuration_maws_lit import MawsLiTConfig
from ..models.configuration_maws_vit import MawsViTConfig, as_pair
from ..models.modeling_maws_lit import MawsLiTModel
from ..models.modeling_maws_mae import MawsMAEForPreTraining
from ..models.modeling_maws_vit import MawsViTForImageClassification, MawsViTModel
from .card_texts import AT_RELEASE, how_it_was_trained, intended_use, what_it_is, where_it_comes_from
from .released_models import PAPER, RELEASED_MODELS, ReleasedModel

TEMPLATE = Path(__file__).with_name("templates") / "model_card.md.j2"
LICENSE = "cc-by-nc-4.0"

_PIPELINES = {
    "mae": "image-feature-extraction",
    "maws": "image-feature-extraction",
    "classifier": "image-classification",
    "clip": "zero-shot-image-classification",
    "autoencoder": None,
}
_OUR_CLASSES = {
    "mae": MawsViTModel,
    "maws": MawsViTModel,
    "classifier": MawsViTForImageClassification,
    "clip": MawsLiTModel,
    "autoencoder": MawsMAEForPreTraining,
}
_IN_TREE = {
    "mae": "PixioModel",
    "maws": "PixioModel",
    "classifier": "ViTForImageClassification",
    "clip": "VisionTextDualEncoderModel",
    "autoencoder": "ViTMAEForPreTraining",
}
_RELATIONS = {
    "weights": "these weights by themselves",
    "paper": "the paper's model, of which the released one may be another run",
    "head": "a classifier (not released) on frozen features",
    "start": "training that started from these weights (its result is not here)",
}
# Pictures that the Hub's documentation uses for its widgets.
_SAMPLES = "https://huggingface.co/datasets/mishig/sample_images/resolve/main/"
_WIDGET = [
    {"src": f"{_SAMPLES}tiger.jpg", "example_title": "Tiger"},
    {"src": f"{_SAMPLES}teapot.jpg", "example_title": "Teapot"},
    {"src": f"{_SAMPLES}palace.jpg", "example_title": "Palace"},
]
_CANDIDATES = [
    "a tiger, eine Katze, un chien, 茶壶",
    "une théière, ein Palast, a cup, 虎",
    "a palace, una casa, ein Berg, 茶壶",
]


@dataclass(frozen=True)
class _Facts:
    """What the template is told; names as there."""

    metadata: ModelCardData
    repo_id: str
    title: str
    kind: str
    own: bool
    what: str
    architecture: str
    parameters: str
    preprocessing: str
    license_name: str
    scope: str
    training: str
    provenance: str
    licence_text: str
    figures: tuple[Any, ...] = ()


def card_for_release(name: str, repo_id: str | None = None, conversion: dict[str, Any] | None = None) -> str:
    """The card of a released model.

    Args:
        name: one of `RELEASED_MODELS`.
        repo_id: where it will be; `ORG/<name>` until that is known.
        conversion: content of the `conversion.json` that `maws-hf convert` has left; checksums and differences are
            "filled in at release" without it.

    Raises:
        ValueError: no model of that name was released.
    """
    if name not in RELEASED_MODELS:
        raise ValueError(f"{name!r} is no released model; those are {', '.join(RELEASED_MODELS)}")
    model, repo_id = RELEASED_MODELS[name], repo_id or f"ORG/{name}"
    config, parameters = _config_of(model), _parameters_of(model.kind, model.size, model.image_size)
    vision = config.vision_config if model.kind == "clip" else config
    return _render(
        _Facts(
            metadata=_metadata_of(model, repo_id),
            repo_id=repo_id,
            title=name,
            kind=model.kind,
            own=False,
            what=what_it_is(model),
            architecture=_architecture(vision, config if model.kind == "clip" else None),
            parameters=f"{parameters / 1e6:,.1f} M",
            preprocessing=_preprocessing(vision, whole=model.kind == "classifier"),
            license_name="CC-BY-NC-4.0 (not for commercial use)",
            scope=intended_use(model),
            training=how_it_was_trained(model),
            provenance=where_it_comes_from(model, conversion),
            licence_text="The weights are Meta's, under "
            "[CC-BY-NC-4.0](https://creativecommons.org/licenses/by-nc/4.0/): not for commercial use. Their format "
            "was changed, their values were not.",
            figures=model.figures,
        )
    )


def card_for_run(
    model_dir: str | Path,
    repo_id: str,
    *,
    license: str,
    datasets: list[str] | None = None,
    language: list[str] | None = None,
) -> str:
    """The card of a model that somebody has trained with this package.

    Args:
        model_dir: folder of the run: `config.json`, and `training.json` where a script has left it.
        repo_id: where it will be.
        license: the Hub's name of the licence, such as "apache-2.0".
        datasets: ids of the data sets on the Hub, where they are there.
        language: of the captions, for a model with a text tower.

    Raises:
        ValueError: the folder holds no model of ours.
    """
    config = AutoConfig.from_pretrained(model_dir)
    kind = _kind_of(config, model_dir)
    vision = config.vision_config if kind == "clip" else config
    title = repo_id.split("/")[-1]
    metadata = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag=_PIPELINES[kind],
        tags=_tags(kind),
        datasets=datasets,
        language=language,
        model_name=title,
    )
    with torch.device("meta"):
        model = _OUR_CLASSES[kind](config)
    return _render(
        _Facts(
            metadata=metadata,
            repo_id=repo_id,
            title=title,
            kind=kind,
            own=True,
            what=_what_of_run(kind),
            architecture=_architecture(vision, config if kind == "clip" else None),
            parameters=f"{_count(model) / 1e6:,.1f} M",
            preprocessing=_preprocessing(vision, whole=False),
            license_name=license,
            scope="",
            training=_training_of_run(Path(model_dir), datasets),
            provenance="Trained with the recipes of the MAWS paper as maws_hf has them, and exported to a class of "
            "transformers, whose outputs were compared with the trained model's in a process without maws_hf.",
            licence_text=f"Licence of these weights: {license}. The method is that of the paper:",
        )
    )


def _render(facts: _Facts) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        {**vars(facts), "metadata": facts.metadata.to_yaml().strip()},
        in_tree_class=_IN_TREE[facts.kind],
        our_class=_OUR_CLASSES[facts.kind].__name__,
        relations=_RELATIONS,
    )


# ---------------------------------------------------------------- facts of the released models


def _config_of(model: ReleasedModel) -> PreTrainedConfig:
    if model.kind == "clip":
        return MawsLiTConfig.from_size(model.size)
    labels = {"num_labels": model.num_labels} if model.num_labels else {}
    return MawsViTConfig.from_size(model.size, image_size=model.image_size, **labels)


@cache
def _parameters_of(kind: str, size: str, image_size: int) -> int:
    model = next(m for m in RELEASED_MODELS.values() if (m.kind, m.size, m.image_size) == (kind, size, image_size))
    with torch.device("meta"):
        return _count(_OUR_CLASSES[kind](_config_of(model)))


def _metadata_of(model: ReleasedModel, repo_id: str) -> ModelCardData:
    organisation = repo_id.split("/")[0]
    widget = [dict(example) for example in _WIDGET]
    if model.kind == "clip":
        widget = [{**example, "candidate_labels": labels} for example, labels in zip(widget, _CANDIDATES, strict=True)]
    base = _base_of(model)
    results = [
        EvalResult(
            task_type=figure.task,
            dataset_type=figure.dataset[0],
            dataset_name=figure.dataset[1],
            # Entries that differ in nothing else are merged, and all but one lose their source.
            dataset_config=figure.setting,
            metric_type="accuracy",
            metric_name=f"{figure.metric} ({_RELATIONS[figure.relation]})",
            metric_value=figure.value,
            source_name=figure.source[0],
            source_url=figure.source[1],
        )
        for figure in model.figures
    ]
    return ModelCardData(
        license=LICENSE,
        library_name="transformers",
        pipeline_tag=_PIPELINES[model.kind],
        tags=_tags(model.kind),
        datasets=["imagenet-1k"] if model.kind == "classifier" or model.data == "ImageNet-1k" else None,
        language="multilingual" if model.kind == "clip" else None,
        base_model=None if base is None else f"{organisation}/{base}",
        base_model_relation=None if base is None else "finetune",
        widget=widget,
        model_name=model.name,
        eval_results=results,
    )


def _base_of(model: ReleasedModel) -> str | None:
    wanted = {"maws": "mae", "classifier": "maws", "clip": "maws"}.get(model.kind)
    return next(
        (m.name for m in RELEASED_MODELS.values() if (m.kind, m.size, m.data) == (wanted, model.size, model.data)),
        None,
    )


# ---------------------------------------------------------------- facts of any model


def _count(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _tags(kind: str) -> list[str]:
    stages = {"mae": ["mae"], "autoencoder": ["mae"], "clip": ["lit", "clip", "zero-shot"]}
    return ["maws", "vision", "vit", *stages.get(kind, []), f"arxiv:{PAPER.rsplit('/', 1)[-1]}"]


def _architecture(vision: MawsViTConfig, lit: MawsLiTConfig | None) -> str:
    patch = as_pair(vision.patch_size)
    text = (
        f"ViT, {vision.num_hidden_layers} layers of width {vision.hidden_size}, {vision.num_attention_heads} heads, "
        f"patches of {patch[0]} x {patch[1]} pixels, class token"
    )
    if lit is None:
        return text
    tower = lit.text_config
    return (
        f"{text}; text tower {tower.model_type}, {tower.num_hidden_layers} layers of width {tower.hidden_size}; "
        f"common space of {lit.projection_dim} dimensions"
    )


def _preprocessing(vision: MawsViTConfig, *, whole: bool) -> str:
    height, width = as_pair(vision.image_size)
    how = "the whole image resized" if whole else "shortest side resized, centre crop"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (vision.image_mean, vision.image_std))
    return f"{height} x {width} pixels ({how}, bicubic), mean {mean}, deviation {std}"


# ---------------------------------------------------------------- facts of one's own models


def _kind_of(config: PreTrainedConfig, model_dir: str | Path) -> str:
    named = (config.architectures or [None])[0]
    kinds = {cls.__name__: kind for kind, cls in _OUR_CLASSES.items() if kind != "mae"}
    if not isinstance(config, MawsViTConfig | MawsLiTConfig) or named not in kinds:
        raise ValueError(f"{model_dir} holds no model in our own format (architectures={config.architectures})")
    return kinds[named]


def _what_of_run(kind: str) -> str:
    return {
        "maws": "An image encoder, trained with the recipes of MAWS.",
        "classifier": "An image encoder with a classifier, trained with the recipes of MAWS.",
        "clip": "An image tower and a text tower in one space, trained with the recipes of MAWS (LiT): names of "
        "things become a classifier, without training.",
        "autoencoder": "A masked autoencoder (MAE), encoder and decoder, trained with the recipes of MAWS.",
    }[kind]


def _training_of_run(model_dir: Path, datasets: list[str] | None) -> str:
    file = model_dir / "training.json"
    stages = json.loads(file.read_text(encoding="utf-8"))["stages"] if file.is_file() else []
    rows = "\n".join(f"| {stage['name']} | {stage['images']:,} | {stage['flops']:.2e} |" for stage in stages)
    ledger = (
        f"| stage | images | operations |\n|---|---|---|\n{rows}" if stages else "How it was trained is not recorded."
    )
    data = "Data: " + ", ".join(datasets) + "." if datasets else "The data are not named here."
    return f"{ledger}\n\n{data}"


__all__ = ["AT_RELEASE", "card_for_release", "card_for_run"]
