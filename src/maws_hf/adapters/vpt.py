"""Visual prompt tuning (VPT; Jia et al. 2022, arXiv 2203.12119): learned tokens beside the image's.

Shallow: `num_prompts` tokens go in after the class token, before the first layer, and are transformed like any other.
Deep: every layer gets tokens of its own in their place, and what became of the last layer's is dropped. The final norm
takes them out, so that the encoder's output has the shape it always had.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftType
from torch import Tensor, nn
from transformers.backbone_utils import BackboneMixin

from .tuner import EncoderTuner, EncoderTunerConfig, EncoderTunerLayer

# Encoder layers and the norm after them. A decoder's or text tower's layers do not match.
_LAYERS = r"((.*\.)?(vit|pixio|vision_model)\.)?(layers\.\d+|layernorm)"
_DINOV2 = r"((.*\.)?dinov2\.)?(encoder\.layer\.\d+|layernorm)"
_DUAL_ENCODER = r"(.*\.)?vision_model\.((encoder\.layer|layers)\.\d+|layernorm)"


@dataclass
class VPTConfig(EncoderTunerConfig):
    """
    Args:
        num_prompts: tokens a layer. The reference implementation's default.
        deep: new tokens in every layer (VPT-deep), or only before the first.
        prompt_dropout: on the tokens in training; 0.1 in the reference implementation's published configurations.
        target_modules, exclude_modules, modules_to_save: see [`EncoderTunerConfig`].
    """

    num_prompts: int = field(default=5, metadata={"help": "Tokens a layer."})
    deep: bool = field(default=True, metadata={"help": "Tokens of its own for every layer (VPT-deep)."})
    prompt_dropout: float = field(default=0.1, metadata={"help": "Dropout on the tokens."})

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.VPT
        if self.num_prompts < 1:
            raise ValueError(f"num_prompts={self.num_prompts} is not possible: it must be at least 1")
        if not 0 <= self.prompt_dropout < 1:
            raise ValueError(f"prompt_dropout={self.prompt_dropout} is not possible: it must be in [0, 1)")


class VPTLayer(EncoderTunerLayer):
    """An encoder layer with learned tokens after the class token: more of them, or in place of an earlier layer's."""

    method = "VPT"
    adapter_layer_names = ("vpt_prompts",)
    other_param_names = ("prompt_dropout", "replaces")

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.vpt_prompts = nn.ParameterDict()
        self.prompt_dropout: dict[str, float] = {}
        self.replaces: dict[str, bool] = {}

    def add(
        self, adapter_name: str, config: VPTConfig, hidden_size: int, patch_pixels: int, *, replaces: bool
    ) -> None:
        """Uniform in +-sqrt(6 / (3 patch pixels + width)): the reference's Xavier-like bound."""
        device, dtype = self.placement()
        bound = math.sqrt(6 / (3 * patch_pixels + hidden_size))
        prompts = torch.empty(config.num_prompts, hidden_size, device=device, dtype=dtype)
        if device.type != "meta":
            prompts.uniform_(-bound, bound)
        self.vpt_prompts[adapter_name] = nn.Parameter(prompts)
        self.prompt_dropout[adapter_name] = config.prompt_dropout
        self.replaces[adapter_name] = replaces
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """`(B, 1 + L, D)`, or `(B, 1 + prompts + L, D)` after a prompted layer."""
        if (adapter := self.adapter) is not None:
            prompts = self.vpt_prompts[adapter].to(hidden_states.dtype)
            dropped = F.dropout(
                prompts.expand(len(hidden_states), -1, -1), self.prompt_dropout[adapter], self.training
            )
            rest = hidden_states[:, 1 + (len(prompts) if self.replaces[adapter] else 0) :]
            hidden_states = torch.cat([hidden_states[:, :1], dropped, rest], dim=1)
        return self.base_layer(hidden_states, *args, **kwargs)


class VPTNorm(EncoderTunerLayer):
    """The norm after the last layer, which takes the learned tokens out."""

    method = "VPT"
    adapter_layer_names = ()
    other_param_names = ("num_prompts",)

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.num_prompts: dict[str, int] = {}

    def forward(self, hidden_states: Tensor) -> Tensor:
        if (adapter := self.adapter) is not None:
            rest = hidden_states[:, 1 + self.num_prompts[adapter] :]  # empty where only the class token was computed
            hidden_states = torch.cat([hidden_states[:, :1], rest], dim=1)
        return self.base_layer(hidden_states)


class VPTModel(EncoderTuner):
    """An encoder with learned tokens; [`get_peft_model`] makes it of a [`VPTConfig`].

    `hidden_states`, where asked for, include the learned tokens; `last_hidden_state` does not.
    """

    prefix = "vpt_"
    method = "VPT"
    tuner_layer_cls = (VPTLayer, VPTNorm)
    target_module_mapping = {
        "maws_vit": _LAYERS,
        "maws_lit": _LAYERS,
        "vit": _LAYERS,
        "pixio": _LAYERS,
        "dinov2": _DINOV2,
        "vision-text-dual-encoder": _DUAL_ENCODER,
    }

    def _prepare_model(self, config: VPTConfig, model: nn.Module) -> None:
        """Refuses, while the model is as it was, what would leave the learned tokens in its outputs."""
        if isinstance(model, BackboneMixin) and not getattr(model.config, "apply_layernorm", True):
            raise ValueError(
                "apply_layernorm=False leaves VPT's tokens in the feature maps, as the final norm takes them out: "
                "build the backbone with apply_layernorm=True, or take LoRA or AdaptFormer"
            )
        targets = [name for name, _ in model.named_modules() if self._check_target_module_exists(config, name)]
        if targets and all(name.rpartition(".")[2].isdigit() for name in targets):
            raise ValueError(
                f"target_modules={config.target_modules!r} with exclude_modules={config.exclude_modules!r} leaves out "
                "the encoder's final norm, which takes VPT's tokens out: name it too"
            )

    def _create_and_replace(
        self,
        config: VPTConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if target_name.isdigit():
            earlier = any(adapter_name in getattr(layer, "vpt_prompts", ()) for layer in parent[: int(target_name)])
            if earlier and not config.deep:
                return
            wrapped = target if isinstance(target, VPTLayer) else VPTLayer(target)
            vision = _vision_config(self.model.config)
            sides = (vision.patch_size,) * 2 if isinstance(vision.patch_size, int) else vision.patch_size
            wrapped.add(adapter_name, config, vision.hidden_size, math.prod(sides), replaces=earlier)
        else:
            wrapped = target if isinstance(target, VPTNorm) else VPTNorm(target)
            wrapped.num_prompts[adapter_name] = config.num_prompts
        if wrapped is not target:
            wrapped.set_adapter(self.active_adapters)
            self._replace_module(parent, target_name, wrapped, target)
        if adapter_name not in self.active_adapters:
            for prompts in getattr(wrapped, "vpt_prompts", {}).values():
                prompts.requires_grad_(False)


def _vision_config(config: Any) -> Any:
    return getattr(config, "vision_config", config)
