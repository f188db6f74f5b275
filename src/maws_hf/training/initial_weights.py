"""New weights, each from a seed of its own name.

What a weight starts as depends on the run's seed and the name of its module, not on how many modules were drawn
before it, and not on how many processes share the model. A process that keeps a part of each matrix draws the same
numbers as one that keeps all of it, one module at a time.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .seeding import seed_for


def new_model(model_class: type[PreTrainedModel], config: object, seed: int, **options: object) -> PreTrainedModel:
    """A model with new weights on the CPU."""
    model = meta_model(model_class, config, **options)
    draw_weights(model, seed)
    return model


def meta_model(model_class: type[PreTrainedModel], config: object, **options: object) -> PreTrainedModel:
    """A model whose tensors have shapes but no memory; `draw_weights` or `shard_model` give it some."""
    with torch.device("meta"):
        return model_class._from_config(config, **options)


@torch.no_grad()
def draw_weights(
    model: PreTrainedModel,
    seed: int,
    keep: Callable[[str, Tensor], None] | None = None,
    only: Collection[str] | None = None,
) -> None:
    """Runs the model's own `_init_weights` module by module, each from `seed_for("weights", seed, its name)`.

    Args:
        model: its tensors may lie on the meta device.
        keep: gets the name and all values of each tensor, float32 on the CPU, while no other module's are in memory;
            by default they become the model's own.
        only: names of the tensors that are new; by default all are.

    Raises:
        RuntimeError: a module has tensors that `_init_weights` leaves undefined.
    """
    for prefix, module in model.named_modules():
        members = {**module._parameters, **module._buffers}
        members = {name: member for name, member in members.items() if member is not None}
        names = {name: f"{prefix}.{name}" if prefix else name for name in members}
        names = {name: full_name for name, full_name in names.items() if only is None or full_name in only}
        if not names:
            continue
        drawn = {
            name: torch.full(member.shape, torch.nan, dtype=torch.float32, device="cpu")
            for name, member in members.items()
        }
        torch.manual_seed(seed_for("weights", seed, prefix))
        _initialize(model, module, drawn)
        for name, full_name in names.items():
            values = drawn[name]
            if values.flatten()[:1].isnan().any():
                raise RuntimeError(f"{type(model).__name__}._init_weights leaves {full_name} undefined")
            if keep is not None:
                keep(full_name, values)
            else:
                _adopt(module, name, values)


def _initialize(model: PreTrainedModel, module: nn.Module, drawn: dict[str, Tensor]) -> None:
    """Lends the module plain tensors in place of its own, which may be parts or have no memory at all."""
    own_parameters, own_buffers = dict(module._parameters), dict(module._buffers)
    try:
        for name, values in drawn.items():
            if name in own_buffers:
                module._buffers[name] = values
            else:
                module._parameters[name] = nn.Parameter(values, requires_grad=False)
        model._init_weights(module)
    finally:
        module._parameters.update(own_parameters)
        module._buffers.update(own_buffers)


def _adopt(module: nn.Module, name: str, values: Tensor) -> None:
    if name in module._buffers:
        module._buffers[name] = values.to(module._buffers[name].dtype)
    else:
        old = module._parameters[name]
        module._parameters[name] = nn.Parameter(values.to(old.dtype), requires_grad=old.requires_grad)


__all__ = ["draw_weights", "meta_model", "new_model"]
