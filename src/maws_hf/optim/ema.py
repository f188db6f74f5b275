"""An exponential moving average of the weights, in float32 whatever the model's precision.

In bfloat16 an average with a decay of 0.9999 could not move: the update is smaller than the last bit.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """average <- d * average + (1 - d) * weight after every update, of the trainable parameters (Polyak averaging).

    d is the smaller of `decay` and (1 + t) / (10 + t) after t updates, so that a short run does not end in an average
    of its initial weights. The paper cites Polyak averaging without a setting; decay and ramp are our choice.

    Args:
        model: whose weights are the start of the average.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._average = {name: weight.detach().float().clone() for name, weight in _trainable(model)}

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Takes in the weights after so many updates, counted from 1."""
        step = 1 - min(self.decay, (1 + updates) / (10 + updates))
        weights = [weight.detach().float() for _, weight in _trainable(model)]
        torch._foreach_lerp_(list(self._average.values()), weights, step)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrites the model's weights by their average."""
        for name, weight in _trainable(model):
            weight.copy_(self._average[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name, float32."""
        return dict(self._average)


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
