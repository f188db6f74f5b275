"""Which names a configuration knows: others are refused where it is made, and left out where it is written."""

import copy
import difflib
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Keys that are no fields but that transformers itself reads or writes in a `config.json`.
_FOREIGN_KEYS = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "out_features",
    "out_indices",
    "output_attentions",
    "quantization_config",
    "stage_names",
    "tie_word_embeddings",
    "torch_dtype",
    "use_cache",
}


def refuse_unknown_fields(config: PreTrainedConfig, kwargs: dict[str, Any]) -> None:
    """Raises ValueError for a name that is no field of the config: a kept typo would train another model.

    transformers keeps unknown names silently (`hiden_size=1024`); its own are let through.
    """
    for name in kwargs:
        if _is_known(config, name):
            continue
        guess = difflib.get_close_matches(name, [field.name for field in fields(config)], n=1)
        kind = type(config).__name__
        hint = f"did you mean {guess[0]!r}?" if guess else f"see {kind}'s documentation for the fields"
        raise ValueError(f"{kind} has no field {name!r} (got {kwargs[name]!r}); {hint}")


def without_unknown_fields(config: PreTrainedConfig) -> PreTrainedConfig:
    """What is written of a config of ours: a copy without attributes that somebody has set on it beside its fields.

    They would be refused when they are read, which is no time to say so: a warning does now. A class derived from ours
    is left as it is, as it may have fields of its own.
    """
    copied = copy.deepcopy(config)
    for part in (copied, *(getattr(copied, name) for name in copied.sub_configs)):
        if type(part).__module__.startswith(__package__):
            for name in [name for name in vars(part) if not _is_known(part, name)]:
                logger.warning_once(f"config.{name} is no field of {type(part).__name__} and is not saved")
                delattr(part, name)
    return copied


def _is_known(config: PreTrainedConfig, name: str) -> bool:
    return name in _FOREIGN_KEYS or name.startswith("_") or name in {field.name for field in fields(config)}
