"""A linear layer that takes oneDNN's own product on CPUs.

In float32 torch calls MKL there, which is slow on AMD's processors; oneDNN is as fast as the machine. In bfloat16
torch calls oneDNN itself, but writes the bias into the result first, to have the product added.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .eligibility import has_onednn, is_plain


class Linear(nn.Linear):
    """`nn.Linear`, with the same parameters and, up to rounding, results.

    As always in float32, and here under autocast too, weights must not change between forward and backward pass.
    Gradients of gradients, and forward-mode differentiation outside of `torch.func`, do not pass oneDNN's product:
    `torch.backends.mkldnn.flags(enabled=False)` brings torch's back.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not suits_onednn(input, self.weight):
            return F.linear(input, self.weight, self.bias)
        rows = cast_for_autocast(input).reshape(-1, self.in_features)
        # Viewed out here: what a custom function returns as a view must not be changed in place.
        return _OneDnnLinear.apply(rows, self.weight, self.bias).view(*input.shape[:-1], self.out_features)


def suits_onednn(input: Tensor, weight: Tensor) -> bool:
    """Whether this is a product on a CPU, of float32 or bfloat16 matrices, for which torch has oneDNN."""
    if not is_plain(input, weight) or input.device.type != "cpu" or input.numel() == 0:
        return False
    if input.shape[-1] != weight.shape[1]:  # torch says what is wrong with it
        return False
    if not torch.is_autocast_enabled("cpu"):
        return input.dtype == weight.dtype and has_onednn(weight.dtype)
    # Without gradients autocast keeps its copies of weights for the next call, and we keep none.
    trained = weight.requires_grad and torch.is_grad_enabled()
    known = {input.dtype, weight.dtype} <= {torch.float32, torch.bfloat16}
    return trained and known and has_onednn(torch.get_autocast_dtype("cpu"))


def product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`input @ weight.T + bias` by oneDNN: `(..., in)`, `(out, in)` of any strides, `(out,)` -> `(..., out)`."""
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


def cast_for_autocast(input: Tensor) -> Tensor:
    """What autocast makes of a product's input; done once for several products, it is not copied for each."""
    device = input.device.type
    # "meta" has no autocast. Asking torch.amp.is_autocast_available instead breaks graphs of torch 2.11's compiler.
    if input.dtype == torch.float32 and device != "meta" and torch.is_autocast_enabled(device):
        return input.to(torch.get_autocast_dtype(device))
    return input


class _OneDnnLinear(torch.autograd.Function):
    """Under autocast a copy of the weights is made twice, where it is used, and never kept: that is no slower, and of
    all that a step of MAE keeps for its backward pass (ViT-B, 8 images) the copies would be a third."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_input, wants_weight, _ = ctx.needs_input_grad
        # Nothing is kept for gradients that nobody wants: a frozen layer's input is as large as its activations.
        ctx.save_for_backward(rows if wants_weight else None, weight if wants_input else None)
        return product(rows, weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        # Autograd itself casts the gradients of weights and bias to the type of these.
        return (
            _of_input(gradient, weight.to(gradient.dtype)) if wants_input else None,
            _of_weight(gradient, rows) if wants_weight else None,
            gradient.sum(0) if wants_bias else None,
        )


def _of_input(gradient: Tensor, weight: Tensor) -> Tensor:
    """`(rows, out)`, `(out, in)` -> `(rows, in)`. In bfloat16 torch calls oneDNN itself, and there is no bias."""
    return product(gradient, weight.T) if gradient.dtype == torch.float32 else gradient @ weight


def _of_weight(gradients: Tensor, inputs: Tensor) -> Tensor:
    """`(rows, out)`, `(rows, in)` -> `(out, in)`. MKL is as fast here, unless few rows make a large matrix."""
    if gradients.dtype == torch.float32 and len(gradients) < min(gradients.shape[1], inputs.shape[1]):
        return product(gradients.T, inputs.T)
    return gradients.T @ inputs
