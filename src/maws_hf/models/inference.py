"""Models that only answer: the blocks' matrices packed for the CPU at hand, GELU and residuals added in the same pass.

A block spends nearly all of its time in six matrices. Packed, they run at the rate that oneDNN reaches on this CPU,
and the passes over memory that follow them disappear. Results are those of the ordinary model but for rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation, GELUTanh

from ..kernels.eligibility import is_listened_to
from ..kernels.linear import cast_for_autocast
from ..kernels.packed import PackedLinear, can_pack
from .modeling_maws_vit import MawsViTAttention, MawsViTLayer, MawsViTMLP, Spread
from .prepared import is_prepared

Model = TypeVar("Model", bound=nn.Module)

_LINEARS = {
    MawsViTAttention: ("q_proj", "k_proj", "v_proj", "o_proj"),
    MawsViTMLP: ("fc1", "fc2"),
}


def prepare_for_inference(model: Model) -> Model:
    """The same model, changed in place to answer faster on a CPU: in evaluation mode, without gradients, for good.

    Every linear layer in the blocks of an encoder (in MAE also of its own decoder, in LiT of the image tower) gives
    its weights to a [`PackedLinear`], in float32 or bfloat16, whichever they have; nothing is held twice. Inputs and
    outputs stay what they were, for every image size and batch, and so do hidden states and attentions. Layers that
    PEFT has wrapped stay as they are, so merge what can be merged (`merge_and_unload`) first; and ask under
    `torch.no_grad()`, because PEFT's `disable_adapter` turns the adapter's gradients on when it ends.

    On other devices, in other dtypes, on other processors than x86 and where PyTorch has no oneDNN, it changes nothing
    but evaluation mode and gradients. Autocast is not for packed weights: `model.to(torch.bfloat16)` comes first.

    Afterwards `parameters()` lacks the packed weights, and training, `state_dict`, saving, moving, converting, copying
    and new adapters raise a [`PackedModelError`].

    Args:
        model: any of ours, adapted by PEFT or not.

    Raises:
        TypeError: there is no block of ours in it.

    Example:

        model = maws_hf.prepare_for_inference(MawsViTModel.from_pretrained("runs/mae-wsp", dtype=torch.bfloat16))
        features = model(pixel_values, class_token_only=True).pooler_output
    """
    if not any(isinstance(module, MawsViTLayer) for module in model.modules()):
        raise TypeError(f"{type(model).__name__} is no MAWS model: it has no layer that could be prepared")
    model.requires_grad_(False).eval()
    _pack(model)
    return model


@contextmanager
def prepared_for_inference(model: PreTrainedModel, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Inside, the blocks' matrices are packed; after it the model is as it was, with the very parameters it had.

    Does nothing to a model in training mode, to one that is prepared already, and to other models than ours.

    Args:
        model: any of ours.
        dtype: what autocast computes in; copies rounded to it are packed then, beside the weights, and only under
            autocast can the model be asked.
    """
    if model.training or is_prepared(model):
        yield
        return
    try:
        _pack(model, dtype)
        yield
    finally:
        _unpack(model)


class FusedMLP(MawsViTMLP):
    """With packed layers: the GELU belongs to the first, the residual to the second."""

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None) -> Tensor:
        gelu = _gelu_of(self.activation_fn)
        hidden_states = self.fc1(hidden_states, gelu=gelu)
        return self.fc2(hidden_states if gelu else self.activation_fn(hidden_states), residual)


class FusedAttention(MawsViTAttention):
    """With a packed last projection, which also adds the residual."""

    def forward(
        self,
        hidden_states: Tensor,
        queries: slice = slice(None),
        spread: Spread | None = None,
        residual: Tensor | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        hidden_states = cast_for_autocast(hidden_states)
        attended, probabilities = self.attend(hidden_states[:, queries], hidden_states, spread, **kwargs)
        return self.o_proj(attended, residual), probabilities


class FusedLayer(MawsViTLayer):
    """Dropout and stochastic depth are left out: they do nothing in evaluation."""

    def forward(
        self, hidden_states: Tensor, queries: slice = slice(None), spread: Spread | None = None, **kwargs
    ) -> Tensor:
        """As [`MawsViTLayer`]."""
        stream = hidden_states[:, queries] if spread is None else spread(hidden_states)
        stream, _ = self.attention(self.layernorm_before(hidden_states), queries, spread, residual=stream, **kwargs)
        return self.mlp(self.layernorm_after(stream), residual=stream)


_FUSED = {MawsViTAttention: FusedAttention, MawsViTMLP: FusedMLP, MawsViTLayer: FusedLayer}


@torch.no_grad()
def _pack(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    modules = list(model.modules())
    for module in modules:
        for name in _LINEARS.get(type(module), ()):
            if can_pack(getattr(module, name), dtype):
                setattr(module, name, PackedLinear(getattr(module, name), dtype))
        # The class changes and not the module, which keeps its children, its hooks and its place in the model.
        if type(module) in _LINEARS and _can_fuse(module):
            module.__class__ = _FUSED[type(module)]
    for module in modules:
        # A module that an adapter has wrapped takes no residual.
        if type(module) is MawsViTLayer and (type(module.attention), type(module.mlp)) == (FusedAttention, FusedMLP):
            module.__class__ = FusedLayer


def _unpack(model: nn.Module) -> None:
    for module in list(model.modules()):
        if isinstance(module, tuple(_FUSED.values())):
            module.__class__ = next(plain for plain, fused in _FUSED.items() if fused is type(module))
        for name in _LINEARS.get(type(module), ()):
            if isinstance(packed := getattr(module, name), PackedLinear):
                setattr(module, name, packed.unpack())


def _can_fuse(module: nn.Module) -> bool:
    if isinstance(module, MawsViTAttention):
        return isinstance(module.o_proj, PackedLinear)
    packed = isinstance(module.fc1, PackedLinear) and isinstance(module.fc2, PackedLinear)
    return packed and _gelu_of(module.activation_fn) is not None


def _gelu_of(activation: nn.Module) -> str | None:
    """What [`PackedLinear`] calls this activation; None for one that it does not know, or that somebody listens to."""
    if is_listened_to(activation):
        return None
    if isinstance(activation, nn.GELU):
        return activation.approximate
    if isinstance(activation, GELUActivation):
        return "none"
    return "tanh" if isinstance(activation, GELUTanh) else None


__all__ = ["prepare_for_inference", "prepared_for_inference"]
