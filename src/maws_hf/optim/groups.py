"""Which parameters AdamW decays and how fast each learns, and by what names they are known in a checkpoint."""

import re
from collections import defaultdict
from typing import Any

import torch
from torch import nn


def is_matrix(parameter: torch.Tensor) -> bool:
    """True for weights with at least two axes longer than 1: not for biases, norms, class and mask tokens.

    The parent recipe (timm's `add_weight_decay`) spares biases and norms but decays the two tokens, because they are
    stored as `(1, 1, width)`; sparing these single vectors too is our choice.
    """
    return sum(side > 1 for side in parameter.shape) > 1


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Matrices, but for the position table (timm's and MAE's `no_weight_decay`)."""
    return is_matrix(parameter) and not name.endswith("embeddings.position_embeddings")


def layer_of(name: str, depth: int) -> int:
    """Place of a vision model's parameter: 0 for the embeddings, k + 1 for block k, `depth` + 1 for norm, head and
    decoder.

    Source: MAE `util/lr_decay.py`.
    """
    block = re.search(r"(?:^|(?<!decoder)\.)layers\.(\d+)\.", name)
    if block is not None:
        return int(block.group(1)) + 1
    return 0 if re.search(r"(?:^|\.)embeddings\.", name) else depth + 1


def parameter_groups(
    model: nn.Module, weight_decay: float, *, layer_decay: float = 1.0, depth: int = 0
) -> list[dict[str, Any]]:
    """The trainable parameters, matrices with `weight_decay` and the rest without.

    Args:
        layer_decay: d; a parameter of layer i learns with d^(depth + 1 - i) of the learning rate, written into its
            group as `lr_scale`. With 1, the default, there are two groups, otherwise two a layer.
        depth: blocks of the encoder, which `layer_decay` wants to know.

    Returns:
        Groups for a torch optimizer. `name` and `param_names` let a resumed run check that each state meets its own
        parameter; torch itself matches them by position.

    Raises:
        ValueError: `layer_decay` without `depth`.
    """
    if layer_decay != 1 and depth < 1:
        raise ValueError(f"layer_decay={layer_decay} wants depth, the number of the encoder's blocks; got {depth}")
    members: dict[tuple[int, bool], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = depth + 1 if layer_decay == 1 else layer_of(name, depth)
            members[layer, not is_decayed(name, parameter)].append((name, parameter))
    groups = []
    for (layer, spared), found in sorted(members.items()):
        names, parameters = zip(*found, strict=True)
        kind = "no_decay" if spared else "decay"
        group = {"name": kind, "weight_decay": 0.0 if spared else weight_decay}
        if layer_decay != 1:
            group |= {"name": f"layer {layer}, {kind}", "lr_scale": layer_decay ** (depth + 1 - layer)}
        groups.append({**group, "params": list(parameters), "param_names": list(names)})
    return groups
