"""AdaptFormer (Chen et al. 2022, arXiv 2205.13535): a narrow branch beside the MLP of every layer.

With x the residual stream after attention, a layer gives x + MLP(norm(x)) + s up(ReLU(down(x))): the branch reads x
itself, before the norm (`models/custom_modules.py` of the reference implementation, option "parallel", no LayerNorm).
Down starts Kaiming-uniform, up at zero, so that the model is at first the one it was.
"""

import math
from dataclasses import dataclass, field

import torch.nn.functional as F
from peft import PeftType
from torch import Tensor, nn

from .tuner import EncoderTuner, EncoderTunerConfig, EncoderTunerLayer

_MLPS = r"((.*\.)?(vit|pixio|vision_model)\.)?layers\.\d+\.mlp"
_DINOV2 = r"((.*\.)?dinov2\.)?encoder\.layer\.\d+\.mlp"
_DUAL_ENCODER = r"(.*\.)?vision_model\.(encoder\.layer|layers)\.\d+\.mlp"
# The norm before the MLP, as the models call it.
_NORMS = ("layernorm_after", "norm2")


@dataclass
class AdaptFormerConfig(EncoderTunerConfig):
    """
    Args:
        bottleneck: width of the branch.
        scale: s.
        dropout: after the ReLU, in training. These three are the reference implementation's for images.
        target_modules, exclude_modules, modules_to_save: see [`EncoderTunerConfig`].
    """

    bottleneck: int = field(default=64, metadata={"help": "Width of the branch."})
    scale: float = field(default=0.1, metadata={"help": "Factor of the branch."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout after the ReLU."})

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.ADAPTFORMER
        if self.bottleneck < 1:
            raise ValueError(f"bottleneck={self.bottleneck} is not possible: it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is not possible: it must be in [0, 1)")


class AdaptFormerNorm(EncoderTunerLayer):
    """The norm before the MLP, put off: [`AdaptFormerMLP`] applies it, so that the branch can read its input."""

    method = "AdaptFormer"
    adapter_layer_names = ()
    other_param_names = ("adapters",)

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.adapters: dict[str, None] = {}  # whose branches are beside the MLP: PEFT asks every layer what it has

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


class AdaptFormerMLP(EncoderTunerLayer):
    """MLP(norm(x)) and the branch beside it."""

    method = "AdaptFormer"
    adapter_layer_names = ("adaptformer_down", "adaptformer_up")
    other_param_names = ("scale", "dropout")

    def __init__(self, base_layer: nn.Module, norm: AdaptFormerNorm):
        super().__init__(base_layer)
        self._norm = (norm,)  # a tuple: it is the layer's module, not ours
        self.adaptformer_down = nn.ModuleDict()
        self.adaptformer_up = nn.ModuleDict()
        self.scale: dict[str, float] = {}
        self.dropout: dict[str, float] = {}

    def add(self, adapter_name: str, config: AdaptFormerConfig, hidden_size: int) -> None:
        device, dtype = self.placement()
        down = nn.Linear(hidden_size, config.bottleneck, device=device, dtype=dtype)
        up = nn.Linear(config.bottleneck, hidden_size, device=device, dtype=dtype)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        self.adaptformer_down[adapter_name], self.adaptformer_up[adapter_name] = down, up
        self._norm[0].adapters[adapter_name] = None
        self.scale[adapter_name], self.dropout[adapter_name] = config.scale, config.dropout
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(B, T, D)`, the residual stream -> what the layer adds to it."""
        added = self.base_layer(self._norm[0].base_layer(hidden_states))
        if (adapter := self.adapter) is not None:
            down, up = self.adaptformer_down[adapter], self.adaptformer_up[adapter]
            narrow = F.relu(down(hidden_states.to(down.weight.dtype)))
            narrow = F.dropout(narrow, self.dropout[adapter], self.training)
            added = added + (self.scale[adapter] * up(narrow)).to(added.dtype)
        return added


class AdaptFormerModel(EncoderTuner):
    """An encoder with branches; [`get_peft_model`] makes it of an [`AdaptFormerConfig`].

    The layer's own dropout and stochastic depth, where it has any, also drop the branch.
    """

    prefix = "adaptformer_"
    method = "AdaptFormer"
    tuner_layer_cls = (AdaptFormerMLP, AdaptFormerNorm)
    target_module_mapping = {
        "maws_vit": _MLPS,
        "maws_lit": _MLPS,
        "vit": _MLPS,
        "pixio": _MLPS,
        "dinov2": _DINOV2,
        "vision-text-dual-encoder": _DUAL_ENCODER,
    }

    def _create_and_replace(
        self,
        config: AdaptFormerConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        wrapped = target
        if not isinstance(target, AdaptFormerMLP):
            name = next((name for name in _NORMS if hasattr(parent, name)), None)
            if name is None:
                raise ValueError(f"{current_key} has no norm before it that AdaptFormer knows: {', '.join(_NORMS)}")
            norm = AdaptFormerNorm(getattr(parent, name))
            self._replace_module(parent, name, norm, norm.base_layer)
            wrapped = AdaptFormerMLP(target, norm)
            wrapped.set_adapter(self.active_adapters)
            self._replace_module(parent, target_name, wrapped, target)
        config_of_tower = getattr(self.model.config, "vision_config", self.model.config)
        wrapped.add(adapter_name, config, config_of_tower.hidden_size)
        if adapter_name not in self.active_adapters:
            wrapped.adaptformer_down[adapter_name].requires_grad_(False)
            wrapped.adaptformer_up[adapter_name].requires_grad_(False)
