"""Which parameters AdamW decays, and by what names they are known in a checkpoint."""

from typing import Any

import torch
from torch import nn


def is_matrix(parameter: torch.Tensor) -> bool:
    """True for weights with at least two axes longer than 1: not for biases, norms, class and mask tokens.

    The parent recipe (timm's `add_weight_decay`) spares biases and norms but decays the two tokens, because they are
    stored as `(1, 1, width)`; sparing these single vectors too is our choice.
    """
    return sum(side > 1 for side in parameter.shape) > 1


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters: matrices with `weight_decay`, the rest without.

    Returns:
        Groups for a torch optimizer. `name` and `param_names` let a resumed run check that each state meets its own
        parameter; torch itself matches them by position.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = []
    for group_name, decay, wanted in (("decay", weight_decay, True), ("no_decay", 0.0, False)):
        members = [(name, parameter) for name, parameter in trainable if is_matrix(parameter) is wanted]
        if members:
            names, parameters = zip(*members, strict=True)
            groups.append(
                {
                    "name": group_name,
                    "weight_decay": decay,
                    "params": list(parameters),
                    "param_names": list(names),
                }
            )
    return groups
