"""The vision model of a run: its size and start, what training changes about it, and what is saved beside it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import BitImageProcessorPil, PreTrainedModel, ProcessorMixin

from ..models.configuration_maws_vit import SIZES, MawsViTConfig
from ..models.loading import refuse_adapter
from ..models.weight_files import ModelLoadingError
from .arguments import Options, TrainingArguments, option
from .initial_weights import draw_weights, meta_model, new_model
from .ledger import Stage, write_ledger
from .native_start import NativeStart
from .seeding import seed_for
from .sharded_export import assemble_model, last_checkpoint
from .sharding import is_sharded, sharding_wanted, start_from
from .weight_sums import remove_weight_sums, write_weight_sums

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(kw_only=True)
class ModelOptions(Options):
    """Options of scripts that train a MAWS vision model."""

    model_name_or_path: str | None = option(None, "Start from these weights (a run, a Hub id) instead of new ones.")
    model_size: str = option("vit_b16", f"Size of a new model: {', '.join(SIZES)}.")
    config_overrides: str = option("", "Config fields that differ, as image_size=96,patch_size=[8,8] (JSON values).")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.model_size in SIZES, "model_size", f"one of {', '.join(SIZES)}")


@dataclass(kw_only=True)
class ModelRecipe(ModelOptions, TrainingArguments):
    """What a script needs to be told to train a vision model at all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        other = (
            self.model_name_or_path is None
            or Path(self.model_name_or_path).resolve() != Path(self.output_dir).resolve()
        )
        self._require(other, "model_name_or_path", "another folder than --output_dir, which is continued by itself")


def build_model(model_class: type[Model], recipe: ModelRecipe, **fields: Any) -> Model:
    """New weights that depend on the seed alone, or those of `model_name_or_path`; float32 either way.

    What a start lacks, as a new head, is drawn as for a new model. Where parameters are to be sharded the model has no
    memory yet; the training loop gives each process its rows.

    Args:
        fields: of the config, which the data decide (the number of labels); `config_overrides` wins over them.

    Raises:
        ValueError: `config_overrides` describes a model that cannot be.
        ModelLoadingError: the start is damaged, or of another shape; names the overrides that contradict it.
    """
    config = build_config(recipe, **fields)
    options = {"attn_implementation": recipe.attn_implementation, "dtype": torch.float32}
    if recipe.model_name_or_path is not None:
        try:
            model = _started(model_class, config, recipe, options)
        except ModelLoadingError as error:
            if "another shape" not in str(error):
                raise
            raise ModelLoadingError(f"{_contradictions(recipe)}{error}") from error
    elif sharding_wanted():
        model = meta_model(model_class, config, **options)
    else:
        model = new_model(model_class, config, recipe.seed, **options)
    if recipe.gradient_checkpointing:
        # transformers 5.23 renames the method and warns at the old name.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if recipe.torch_compile:
        model.compile()
    return model


def _started(model_class: type[Model], config: MawsViTConfig, recipe: ModelRecipe, options: dict[str, Any]) -> Model:
    where = recipe.model_name_or_path
    if sharding_wanted():
        start = NativeStart.of(where, model_class)
        if start is not None:
            model = meta_model(model_class, config, **options)
            start.refuse_another_model(model, where)
            start_from(model, start)
            model.name_or_path = where
            return model
        if dist.get_rank() == 0:
            print(
                f"{where} is no folder in our own format, nor one that `hf download` has fetched: each process reads "
                "it whole, once, and keeps its part"
            )
    torch.manual_seed(seed_for("weights", recipe.seed))
    model = model_class.from_pretrained(where, config=config, **options)
    start = NativeStart.of(where, model_class)
    if start is not None:
        draw_weights(model, recipe.seed, only=model.state_dict().keys() - start.names)
    return model


def _contradictions(recipe: ModelOptions) -> str:
    """Overrides that are not what the start has, to begin an error with; empty if there are none."""
    start = MawsViTConfig.from_pretrained(recipe.model_name_or_path).to_dict()
    wanted = parse_overrides(recipe.config_overrides)
    listed = [
        f"{name}={value} (it has {start.get(name)})" for name, value in wanted.items() if value != start.get(name)
    ]
    if not listed:
        return ""
    return (
        f"--config_overrides, or those of the recipe file, contradict {recipe.model_name_or_path}: "
        f"{', '.join(listed)}; leave out what a start brings along: "
    )


def build_config(recipe: ModelOptions, **fields: Any) -> MawsViTConfig:
    """The config of `model_name_or_path` or of `model_size`, under `fields`, under `config_overrides`."""
    if recipe.model_name_or_path is not None:
        refuse_adapter(recipe.model_name_or_path)
        start = MawsViTConfig.from_pretrained(recipe.model_name_or_path).to_dict()
    else:
        start = SIZES[recipe.model_size]
    overrides = parse_overrides(recipe.config_overrides)
    try:
        return MawsViTConfig(**{**start, **fields, **overrides})
    except (StrictDataclassError, ValueError) as error:
        given = "" if recipe.model_name_or_path is None else _contradictions(recipe)
        raise ValueError(f"{given or f'--config_overrides {recipe.config_overrides}: '}{error}") from error


def parse_overrides(text: str) -> dict[str, object]:
    """`image_size=96,patch_size=[8,8]` -> fields; values are JSON, or text where they are none."""
    overrides = {}
    for item in filter(None, re.split(r",(?![^\[]*\])", text)):
        name, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"--config_overrides {item!r} must be field=value, several separated by commas")
        try:
            overrides[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            overrides[name.strip()] = value
    return overrides


def describe_model(model: PreTrainedModel) -> str:
    """One line: width, depth, resolution, parameters."""
    config = model.config
    return (
        f"{type(model).__name__}: {config.hidden_size} wide, {config.num_hidden_layers} deep; {config.image_size} px "
        f"in patches of {config.patch_size}; {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"
    )


def save_trained_model(
    model: PreTrainedModel, processor: BitImageProcessorPil | ProcessorMixin, output_dir: Path, stages: Sequence[Stage]
) -> None:
    """Saves the model with what prepares its inputs and the stages that have led to it.

    A sharded model is put together file by file from the run's last checkpoint. `SHA256SUMS` vouches for the weights.

    Raises:
        OSError: if the disk refuses; the run's checkpoints are intact.
        CheckpointError: of a sharded model, the last checkpoint is damaged.
    """
    remove_weight_sums(output_dir)
    try:
        if is_sharded(model):
            assemble_model(last_checkpoint(output_dir / "checkpoints"), output_dir)
        else:
            model.save_pretrained(output_dir)
        write_weight_sums(output_dir)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"the model cannot be written to {output_dir} ({error}); checkpoints are intact: make room, and the same "
            "command continues"
        ) from error
    processor.save_pretrained(output_dir)
    write_ledger(output_dir, stages)


__all__ = [
    "ModelOptions",
    "ModelRecipe",
    "build_config",
    "build_model",
    "describe_model",
    "parse_overrides",
    "save_trained_model",
]
