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
from transformers import BitImageProcessorPil, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from ..models.configuration_maws_vit import SIZES, MawsViTConfig, as_pair
from ..models.loading import refuse_adapter
from ..models.patch_grid import sincos_position_table
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

_WITH_DECODER = {"MawsMAEForPreTraining", "ViTMAEForPreTraining"}  # of a config's architectures
# What a start's weights are made for.
_OF_ENCODER = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "qkv_bias",
    "patch_size",
    "num_channels",
)
_OF_DECODER = (
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
    "decoder_attention",
    "decoder_inter_block_attention",
)


@dataclass(kw_only=True)
class ModelOptions(Options):
    """Options of scripts that train a MAWS vision model."""

    model_name_or_path: str | None = option(None, "Start from these weights (a run, a Hub id) instead of new ones.")
    model_size: str = option("vit_b16", f"Size of a new model: {', '.join(SIZES)}.")
    config_overrides: str = option(
        "",
        "Config fields that differ, as image_size=96,patch_size=[8,8] (JSON values). With --model_name_or_path: "
        "image_size, to which positions are fitted, and what no weight depends on, as drop_path_rate.",
    )

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
        ModelLoadingError: the start is damaged, or of another shape than `config_overrides`; names those.
    """
    config = build_config(recipe, **fields)
    options = {"attn_implementation": recipe.attn_implementation, "dtype": torch.float32}
    if recipe.model_name_or_path is not None:
        model = _started(model_class, config, recipe, options)
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
    where, image_size = recipe.model_name_or_path, config.image_size
    config.image_size = MawsViTConfig.from_pretrained(where).image_size
    resized = as_pair(config.image_size) != as_pair(image_size)
    start = NativeStart.of(where, model_class) if sharding_wanted() else None
    if start is not None:
        model = meta_model(model_class, config, **options)
        new = _lay_out(start, model, where, with_positions=resized)
    else:
        model, new = _read_whole(model_class, config, recipe, options)
    if any(name.startswith("decoder.") for name in new):
        parameters = sum(parameter.numel() for parameter in model.decoder.parameters())
        _say(f"{where} has no decoder: it gets a new one of {parameters / 1e6:.1f} M parameters")
    if resized:
        _say(f"{where} is of {config.image_size} px: its positions are made to fit {image_size} px")
        model.set_image_size(image_size)
        if "decoder.position_embeddings" in new:  # has met no images of the old size
            table = model.decoder.position_embeddings
            table.copy_(sincos_position_table(table.shape[2], model.config.grid_size))
    return model


def _lay_out(start: NativeStart, model: PreTrainedModel, where: str, *, with_positions: bool) -> set[str]:
    """Has each process read its rows later, but position tables now, if they are to be resampled; returns what the
    start lacks."""
    start.refuse_another_model(model, where)
    start_from(model, start)
    model.name_or_path = where
    names = model.state_dict().keys()
    if with_positions:
        tables = [name for name in names & start.names if name.endswith("position_embeddings")]
        model.load_state_dict({name: start.read(name).float() for name in tables}, strict=False, assign=True)
    return names - start.names


def _read_whole(
    model_class: type[Model], config: MawsViTConfig, recipe: ModelRecipe, options: dict[str, Any]
) -> tuple[Model, set[str]]:
    """The model, and the names of what the start lacks."""
    where = recipe.model_name_or_path
    if sharding_wanted():
        _say(
            f"{where} is no folder in our own format, nor one that `hf download` has fetched: each process reads it "
            "whole, once, and keeps its part"
        )
    torch.manual_seed(seed_for("weights", recipe.seed))
    model, report = model_class.from_pretrained(where, config=config, output_loading_info=True, **options)
    model.refuse_half_a_model(where, report)  # who asks for the report is to do that
    start = NativeStart.of(where, model_class)
    if start is not None:
        draw_weights(model, recipe.seed, only=model.state_dict().keys() - start.names)
    return model, set(report["missing_keys"])


def build_config(recipe: ModelOptions, **fields: Any) -> MawsViTConfig:
    """The config of `model_name_or_path` or of `model_size`, under `fields`, under `config_overrides`."""
    overrides = parse_overrides(recipe.config_overrides)
    if recipe.model_name_or_path is not None:
        refuse_adapter(recipe.model_name_or_path)
        start = MawsViTConfig.from_pretrained(recipe.model_name_or_path).to_dict()
        overrides = _overrides_of_start(recipe, start, overrides)
    else:
        start = SIZES[recipe.model_size]
    try:
        return MawsViTConfig(**{**start, **fields, **overrides})
    except (StrictDataclassError, ValueError) as error:
        raise ValueError(f"--config_overrides {recipe.config_overrides}: {error}") from error


def _overrides_of_start(
    recipe: ModelOptions, start: dict[str, Any], overrides: dict[str, object]
) -> dict[str, object]:
    """Without those of a recipe file that was written for models of another shape or size.

    What was typed, or stands in a file that names the start, holds.

    Raises:
        ModelLoadingError: it contradicts the start.
    """
    where = recipe.model_name_or_path
    architectures = PreTrainedConfig.get_config_dict(where)[0].get("architectures") or ()
    shape = _OF_ENCODER + (_OF_DECODER if _WITH_DECODER & {*architectures} else ())
    typed, file_names_it = overrides, False
    if recipe.typed is not None:
        typed = parse_overrides(",".join(recipe.typed.get("config_overrides", ())))
        file_names_it = "model_name_or_path" not in recipe.typed
    differing = {
        name: value
        for name, value in overrides.items()
        if name in (*shape, "image_size") and _comparable(name, value) != _comparable(name, start[name])
    }
    giving_way = set() if file_names_it else differing.keys() - typed.keys()
    contradicting = [
        f"{name}={value} of {'--config_overrides' if name in typed else 'the recipe file'} (it has {start[name]})"
        for name, value in differing.items()
        if name in shape and name not in giving_way
    ]
    if contradicting:
        raise ModelLoadingError(
            f"{where} is contradicted by {', '.join(contradicting)}; leave out what a start brings along"
        )
    if giving_way:
        told = [f"{name}={value} (it has {start[name]})" for name, value in differing.items() if name in giving_way]
        _say(f"config_overrides of the recipe file give way to {where}: {', '.join(told)}")
    return {name: value for name, value in overrides.items() if name not in giving_way}


def _comparable(name: str, value: object) -> object:
    value = list(value) if isinstance(value, tuple) else value
    return [value, value] if name in ("image_size", "patch_size") and isinstance(value, int) else value


def _say(line: str) -> None:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0:
        print(line)


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
