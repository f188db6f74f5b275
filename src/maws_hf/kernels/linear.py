"""A linear layer that takes oneDNN's float32 product on CPUs instead of the BLAS that torch was built with.

torch calls MKL there, which is slow on AMD's processors; oneDNN is as fast as the machine on both. The gradient of the
weights stays with torch, where the two are equal. bfloat16 goes through oneDNN in torch already.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .eligibility import has_onednn, is_plain


class Linear(nn.Linear):
    """`nn.Linear`, with the same parameters and, up to rounding, results."""

    def forward(self, input: Tensor) -> Tensor:
        if suits_onednn(input, self.weight):
            return _OneDnnLinear.apply(input, self.weight, self.bias)
        return F.linear(input, self.weight, self.bias)


def suits_onednn(input: Tensor, weight: Tensor) -> bool:
    """Whether this product is one of float32 matrices on a CPU for which torch has oneDNN."""
    return (
        is_plain(input, weight)
        and input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and input.numel() > 0
        and has_onednn()
        and not torch.is_autocast_enabled("cpu")
    )


def product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`input @ weight.T + bias` by oneDNN: `(..., in)`, `(out, in)` of any strides, `(out,)` -> `(..., out)`."""
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


def cast_for_autocast(input: Tensor) -> Tensor:
    """What autocast makes of a product's input; done once for several products, it is not copied for each."""
    device = input.device.type
    if input.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return input.to(torch.get_autocast_dtype(device))
    return input


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return product(input, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            product(gradient, weight.T) if wants_input else None,
            rows.T @ input.flatten(0, -2) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )
