"""Configuration of MAWS-LiT: a locked image tower and a text tower that learns to describe what it sees."""

import math
from types import SimpleNamespace
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .configuration_fields import refuse_unknown_fields
from .configuration_limits import refuse_odd_labels, refuse_vast_sizes
from .configuration_maws_vit import MawsViTConfig
from .foreign import lit_fields
from .loading import CheckedConfig

# Size and special tokens of XLM-RoBERTa, as the released models build it (maws/model_builder.py: vocabulary 250,002,
# padding 1). `XLMRobertaConfig`'s own defaults are BERT's.
_XLM_ROBERTA = {
    "model_type": "xlm-roberta",
    "vocab_size": 250002,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
XLM_ROBERTA_BASE = {
    **_XLM_ROBERTA,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
XLM_ROBERTA_LARGE = {
    **_XLM_ROBERTA,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}

# Text tower and width of the common space for each image tower (maws/model_builder.py). There is no ViT-6.5B one.
LIT_SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "vit_b16": (XLM_ROBERTA_BASE, 768),
    "vit_l16": (XLM_ROBERTA_LARGE, 1024),
    "vit_h14": (XLM_ROBERTA_LARGE, 1024),
    "vit_2b14": (XLM_ROBERTA_LARGE, 2048),
}

MAX_LOGIT_SCALE = math.log(100.0)


@strict
class MawsLiTConfig(CheckedConfig, PreTrainedConfig):
    r"""
    Configuration of [`MawsLiTModel`]. The defaults are the released ViT-B model: ViT-B/16 and XLM-RoBERTa base.

    Args:
        vision_config (`MawsViTConfig` or `dict`): the image tower.
        text_config (`PreTrainedConfig` or `dict`): the text tower, any encoder that `AutoModel` builds; a `dict` names
            its `model_type`. Default: XLM-RoBERTa base with its vocabulary of 250,002 pieces.
        projection_dim (`int`, defaults to 768): width of the common space.
        logit_scale_init_value (`float`, defaults to ln(1 / 0.07)): logarithm of the inverse temperature at the start.
        lock_vision_tower (`bool`, defaults to `True`): the image tower's weights have no gradients, are no business of
            the optimizer, and the tower stays in evaluation mode. LiT (paper section 4.1).
        max_text_length (`int`, defaults to 102): tokens of a caption: 100 pieces and the two around them.

    Raises:
        ValueError: for a configuration that no model can have; names the field, its value and what would do.

    Example:

    ```python
    >>> from maws_hf import MawsLiTConfig, MawsLiTModel

    >>> model = MawsLiTModel(MawsLiTConfig.from_size("vit_b16"))
    ```
    """

    model_type = "maws_lit"
    sub_configs = {"vision_config": MawsViTConfig, "text_config": AutoConfig}

    vision_config: MawsViTConfig | dict | None = None
    text_config: PreTrainedConfig | dict | None = None
    projection_dim: int = 768
    logit_scale_init_value: float | int = math.log(1 / 0.07)
    lock_vision_tower: bool = True
    max_text_length: int = 102

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_unknown_fields(self, kwargs)
        refuse_odd_labels(self, kwargs)
        if self.vision_config is None:
            self.vision_config = MawsViTConfig()
        elif isinstance(self.vision_config, dict):
            self.vision_config = MawsViTConfig(**_without_model_type(self.vision_config, MawsViTConfig.model_type))
        if self.text_config is None:
            self.text_config = dict(XLM_ROBERTA_BASE)
        if isinstance(self.text_config, dict):
            self.text_config = _text_config_from(self.text_config)
        self.validate_architecture()
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> "MawsLiTConfig":
        """The configuration of a released model, by its image tower.

        Args:
            size: one of `vit_b16`, `vit_l16`, `vit_h14`, `vit_2b14`.
            overrides: any other field of this class.

        Raises:
            ValueError: for an unknown size.
        """
        if size not in LIT_SIZES:
            raise ValueError(f"size {size!r} is unknown; LiT models were released for {', '.join(LIT_SIZES)}")
        text_config, projection_dim = LIT_SIZES[size]
        fields = {
            "vision_config": MawsViTConfig.from_size(size),
            "text_config": dict(text_config),
            "projection_dim": projection_dim,
        }
        return cls(**{**fields, **overrides})

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As everywhere in transformers; that of an exported dual encoder comes back as ours would be."""
        found, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        ours = found.get("model_type", cls.model_type) == cls.model_type
        return (found if ours else lit_fields(found)), kwargs

    def validate_architecture(self) -> None:
        """Refuses what no model can have."""
        refuse_vast_sizes(self)
        if self.projection_dim < 1:
            raise ValueError(f"projection_dim={self.projection_dim!r} is not possible: it must be at least 1")
        if self.max_text_length < 3:
            raise ValueError(
                f"max_text_length={self.max_text_length!r} is not possible: a caption has its two special tokens and "
                "at least one more"
            )
        if not self.logit_scale_init_value <= MAX_LOGIT_SCALE:
            raise ValueError(
                f"logit_scale_init_value={self.logit_scale_init_value!r} is not possible: it is a logarithm, and the "
                f"scale is clamped at ln 100 = {MAX_LOGIT_SCALE:.4f}"
            )


def _without_model_type(fields: dict[str, Any], expected: str) -> dict[str, Any]:
    found = fields.get("model_type", expected)
    if found != expected:
        raise ValueError(f"vision_config has model_type={found!r}; the image tower must be a {expected!r}")
    return {name: value for name, value in fields.items() if name != "model_type"}


def _text_config_from(fields: dict[str, Any]) -> PreTrainedConfig:
    model_type = fields.get("model_type", "xlm-roberta")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"text_config has model_type={model_type!r}, which transformers does not know")
    text_fields = {name: value for name, value in fields.items() if name != "model_type"}
    given = SimpleNamespace(**{"id2label": None, **text_fields})
    refuse_vast_sizes(given)
    refuse_odd_labels(given, text_fields)
    try:
        return CONFIG_MAPPING[model_type](**text_fields)
    except (TypeError, AttributeError, LookupError, OverflowError) as error:  # of whichever field it stumbled over
        raise ValueError(f"text_config is no {model_type} config ({type(error).__name__}: {error})") from error


__all__ = ["LIT_SIZES", "MAX_LOGIT_SCALE", "MawsLiTConfig"]
