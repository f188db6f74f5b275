"""A linear layer for inference on x86 CPUs: its matrix in oneDNN's own order, and what follows it in the same pass.

`nn.Linear` hands a CPU's matrix to the BLAS library as it lies in memory. oneDNN, which PyTorch brings along, reads
its own order faster, and applies a GELU or adds a residual to a tile of the result while that is still in cache. The
order depends on nothing but the matrix: any number of rows goes with it, and it can be taken back without a rounding.
"""

import torch
from torch import Tensor, nn

from .eligibility import has_onednn, is_listened_to
from .linear import Linear, cast_for_autocast


class PackedModelError(RuntimeError):
    """Something was asked of packed weights that only ordinary ones can do; the message says what to do instead."""


def refusal(what: str) -> PackedModelError:
    return PackedModelError(
        f"{what} is not possible after prepare_for_inference, which has repacked the weights for this CPU: do it "
        "before, or with the model loaded anew"
    )


def can_pack(linear: nn.Module, dtype: torch.dtype | None = None) -> bool:
    """Whether this is a plain linear layer whose matrix oneDNN takes here, as it is or rounded to `dtype`.

    Wrapped, quantised, sharded or parametrised layers are other classes, and hooks would be lost: those stay as they
    are, and so does everything on builds of PyTorch without these operators.
    """
    if type(linear) not in (nn.Linear, Linear) or is_listened_to(linear):
        return False
    weight = linear.weight
    return (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and all(map(has_onednn, {weight.dtype, dtype or weight.dtype}))
    )


class PackedLinear(nn.Module):
    """Stands in for an `nn.Linear` whose weights it takes over, or rounds a copy of for autocast. No gradients."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype | None = None):
        """
        Args:
            linear: one that `can_pack`. It is empty from here on, until `unpack` fills it again.
            dtype: another than the weights', in which autocast will compute: a rounded copy is packed, and `linear`
                keeps its own.
        """
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._source = (linear,)  # a tuple: no child, whose weight would be listed, moved or saved
        weight, bias = linear.weight.detach(), linear.bias
        dtype = dtype or weight.dtype
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._is_copy = dtype != weight.dtype
        if not self._is_copy:
            linear.weight.data = weight.new_empty(0)
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        return self._weight.dtype

    @torch.compiler.disable  # Inductor takes these operators for its own, with weights that it has packed itself.
    def forward(self, hidden_states: Tensor, residual: Tensor | None = None, gelu: str | None = None) -> Tensor:
        """
        Args:
            hidden_states: `(..., in_features)`.
            residual: `(..., out_features)`, added to the result; under autocast it may be more precise than that.
            gelu: "none" for the exact GELU of the result, "tanh" for its approximation.

        Raises:
            PackedModelError: the input or autocast has another dtype than the packed weights, or there shall be
                gradients.
        """
        if hidden_states.requires_grad and torch.is_grad_enabled():
            raise refusal("a backward pass")
        # Autocast does not know this operator: left alone, it would compute in the precision of the weights.
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.dtype
        hidden_states = cast_for_autocast(hidden_states)
        if self._is_copy and not (torch.is_autocast_enabled("cpu") and autocast == self.dtype):
            raise PackedModelError(f"these weights are packed for autocast in {self.dtype}, which is not on")
        if autocast != self.dtype or hidden_states.dtype != self.dtype:
            other = autocast if autocast != self.dtype else hidden_states.dtype
            raise refusal(f"computing in {other} with weights in {self.dtype} (model.to(dtype) converts them)")
        if residual is not None and residual.dtype == self.dtype:
            return torch.ops.mkldnn._linear_pointwise.binary(hidden_states, residual, self._weight, self._bias, "add")
        after = "none" if gelu is None else "gelu"
        result = torch.ops.mkldnn._linear_pointwise(hidden_states, self._weight, self._bias, after, [], gelu or "")
        return result if residual is None else residual + result

    def unpack(self) -> nn.Linear:
        """The layer it was made of, with the very parameters it had, bit for bit; this one is void afterwards."""
        (linear,) = self._source
        if not self._is_copy:
            with torch.inference_mode(False):
                linear.weight.data = self._weight.to_dense()
        del self._weight, self._bias
        return linear

    def train(self, mode: bool = True) -> "PackedLinear":
        if mode:
            raise refusal("train()")
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):
        raise refusal("moving or converting the model")

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        raise refusal("state_dict() or saving")

    def _load_from_state_dict(self, *args, **kwargs):
        raise refusal("load_state_dict()")

    def __reduce_ex__(self, protocol):
        raise refusal("copying or pickling the model")

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, packed by prepare_for_inference: "
            "adapters go in before it"
        )


__all__ = ["PackedLinear", "PackedModelError", "can_pack", "refusal"]
