"""Model cards: for the released models and for models of one's own, from one template.

What is not known is said to be unknown. Figures are published ones, marked with what gave them; nothing is measured
here.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedConfig, PreTrainedModel

from ..models.configuration_maws_lit import MawsLiTConfig
from ..models.configuration_maws_vit import MawsViTConfig, as_pair
from ..models.modeling_maws_lit import MawsLiTModel
from ..models.modeling_maws_mae import MawsMAEForPreTraining
from ..models.modeling_maws_vit import MawsViTForImageClassification, MawsViTModel
from .card_texts import (
    AT_RELEASE,
    how_it_was_trained,
    intended_use,
    licence_of_release,
    what_it_is,
    where_it_comes_from,
)
from .released_models import BOX_AP, MASK_AP, PAPER, RELEASED_MODELS, Figure, ReleasedModel
from .run_facts import config_and_kind, takes_whole_images, training_of, what_a_run_is

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
_ENCODER_EXPORTS = ("PixioModel", "ViTModel", "Dinov2Model")
_IN_TREE = {
    "mae": "PixioModel",
    "maws": "PixioModel",
    "classifier": "ViTForImageClassification",
    "clip": "VisionTextDualEncoderModel",
    "autoencoder": "ViTMAEForPreTraining",
}
_NEEDS = "transformers 5.18 or later (`pip install transformers torch pillow`)"
_RELATIONS = {
    "weights": "these weights by themselves",
    "paper": "the paper's model, of which the released one may be another run",
    "head": "a classifier (not released) on frozen features",
    "adapter": "an adapter and a classifier (not released) in these frozen weights",
    "start": "training that started from these weights (its result is not here)",
}
# Pictures that widgets of many models on the Hub show.
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
    exported_as: str | None = None


def card_for_release(
    name: str,
    repo_id: str | None = None,
    conversion: dict[str, Any] | None = None,
    *,
    exported_as: str | None = None,
) -> str:
    """The card of a released model.

    Args:
        name: one of `RELEASED_MODELS`.
        repo_id: where it will be; `ORG/<name>` until that is known.
        conversion: content of the `conversion.json` that `maws-hf convert` has left, of which `released_model`,
            `source`, `differences` and `versions` are read; without it they are "filled in at release".
        exported_as: class of transformers that it was exported to; the usual one if None.

    Raises:
        ValueError: no model of that name was released, or the conversion is of another one.
    """
    if name not in RELEASED_MODELS:
        raise ValueError(f"{name!r} is no released model; those are {', '.join(RELEASED_MODELS)}")
    if conversion is not None:
        if missing := {"released_model", "source", "differences", "versions"} - conversion.keys():
            raise ValueError(f"conversion.json lacks {', '.join(sorted(missing))}: convert the file again")
        if conversion["released_model"] != name:
            raise ValueError(f"conversion.json is of {conversion['released_model']}, not of {name}")
    model, repo_id = RELEASED_MODELS[name], repo_id or f"ORG/{name}"
    config = _config_of(model)
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
            parameters=parameters_of(model),
            preprocessing=_preprocessing(vision, model.kind == "classifier"),
            license_name="CC-BY-NC-4.0 (not for commercial use)",
            scope=intended_use(model),
            training=how_it_was_trained(model),
            provenance=where_it_comes_from(model, conversion),
            licence_text=licence_of_release(model),
            figures=model.figures,
            exported_as=exported_as,
        )
    )


def card_for_run(
    model_dir: str | Path,
    repo_id: str,
    *,
    license: str,
    datasets: list[str] | None = None,
    language: list[str] | None = None,
    exported_as: str | None = None,
) -> str:
    """The card of a model that somebody has trained with this package.

    Args:
        model_dir: folder of the run: `config.json`, and where they are there its image processor and `training.json`.
        repo_id: where it will be.
        license: the Hub's name of the licence, such as "apache-2.0".
        datasets: ids of the data sets on the Hub, where they are there.
        language: of the captions, for a model with a text tower.
        exported_as: class of transformers that it was exported to; the usual one if None.

    Raises:
        ValueError: the folder holds no model of ours, or one of its files is damaged; the message names it.
    """
    folder = Path(model_dir)
    config, kind = config_and_kind(folder)
    if exported_as in _ENCODER_EXPORTS and kind in ("classifier", "autoencoder"):
        kind = "maws"  # without its head or decoder
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
    return _render(
        _Facts(
            metadata=metadata,
            repo_id=repo_id,
            title=title,
            kind=kind,
            own=True,
            what=what_a_run_is(kind),
            architecture=_architecture(vision, config if kind == "clip" else None),
            parameters=_count(kind, config),
            preprocessing=_preprocessing(vision, takes_whole_images(folder)),
            license_name=license,
            scope="",
            training=training_of(folder, datasets, vision),
            provenance=f"A `{_OUR_CLASSES[kind].__name__}` of maws_hf, which `maws-hf export` turns into the class of "
            "transformers above.",
            licence_text=f"Licence of these weights: {license}. The method is that of the paper:",
            exported_as=exported_as,
        )
    )


def _render(facts: _Facts) -> str:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError("model cards need jinja2: pip install jinja2") from error
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        {**vars(facts), "metadata": facts.metadata.to_yaml().strip()},
        in_tree_class=facts.exported_as or _IN_TREE[facts.kind],
        our_class=_OUR_CLASSES[facts.kind].__name__,
        relations=_RELATIONS,
        needs=_NEEDS,
    )


# ---------------------------------------------------------------- facts of the released models


def _config_of(model: ReleasedModel) -> PreTrainedConfig:
    if model.kind == "clip":
        return MawsLiTConfig.from_size(model.size)
    labels = {"num_labels": model.num_labels} if model.num_labels else {}
    return MawsViTConfig.from_size(model.size, image_size=model.image_size, **labels)


@cache
def parameters_of(model: ReleasedModel) -> str:
    """How many it has, such as "85.8 M"; no weights are made for that."""
    return _count(model.kind, _config_of(model))


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
            dataset_split=figure.dataset[2],
            metric_type=_metric_type(figure),
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


def _metric_type(figure: Figure) -> str:
    return "mean_average_precision" if figure.metric in (BOX_AP, MASK_AP) else "accuracy"


def _base_of(model: ReleasedModel) -> str | None:
    wanted = {"maws": "mae", "classifier": "maws", "clip": "maws"}.get(model.kind)
    return next(
        (m.name for m in RELEASED_MODELS.values() if (m.kind, m.size, m.data) == (wanted, model.size, model.data)),
        None,
    )


# ---------------------------------------------------------------- facts of any model


def _count(kind: str, config: PreTrainedConfig) -> str:
    with torch.device("meta"):
        model: PreTrainedModel = _OUR_CLASSES[kind](config)
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:,.1f} M"


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


def _preprocessing(vision: MawsViTConfig, whole: bool | None) -> str:
    height, width = as_pair(vision.image_size)
    how = {
        True: "the whole image resized, bicubic",
        False: "shortest side resized, centre crop, bicubic",
        None: "how they are resized is not recorded",
    }[whole]
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (vision.image_mean, vision.image_std))
    return f"{height} x {width} pixels ({how}), mean {mean}, deviation {std}"


__all__ = ["AT_RELEASE", "card_for_release", "card_for_run", "parameters_of"]
