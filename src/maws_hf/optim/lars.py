"""LARS: a matrix moves in proportion to its own norm (You et al., arXiv 1708.03888), as MAE's linear probe has it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """Momentum SGD whose gradient is first scaled, for each matrix, by a trust ratio.

        ratio    = trust_coefficient * |weight| / |gradient + weight_decay * weight|, or 1 if one of the norms is 0
        velocity = momentum * velocity + ratio * (gradient + weight_decay * weight)
        weight   = weight - lr * velocity

    Parameters with fewer than two axes (biases, norms) are neither decayed nor scaled. That is MAE's `util/lars.py`;
    the paper's own version multiplies the learning rate into the velocity instead.

    A stack of heads `(heads, classes, width)` is trained by handing over its slices, a group for each head. Slices
    share the stack's memory, and every head has its own ratio and its own learning rate:

        LARS([{"params": [weight[head]], "lr": rate} for head, rate in enumerate(rates)])

    Args:
        params: tensors or groups, as for every torch optimizer; the gradient is what `.grad` holds.
        lr: of groups that do not bring their own.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ):
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, it must lie in [0, 1)")
        for name, value in {"lr": lr, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient}.items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}, it must be 0 or more")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what `closure` returns, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if parameter.dim() > 1:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
            gradient = gradient * trust_ratio(parameter, gradient, group["trust_coefficient"])
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        velocity = state["velocity"].mul_(group["momentum"]).add_(gradient)
        parameter.sub_(velocity, alpha=group["lr"])


def trust_ratio(parameter: Tensor, gradient: Tensor, trust_coefficient: float) -> Tensor:
    """`trust_coefficient * |parameter| / |gradient|`, a scalar tensor; 1 if either is all zero."""
    parameter_norm, gradient_norm = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(gradient)
    ratio = trust_coefficient * parameter_norm / gradient_norm
    return torch.where((parameter_norm > 0) & (gradient_norm > 0), ratio, 1.0)


__all__ = ["LARS", "trust_ratio"]
