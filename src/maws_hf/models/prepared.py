"""What a model refuses once its weights are packed for inference (see `inference.py`), before anything has changed.

The packed layers refuse as well. But they are asked one after the other, when the class token is on another device
already or half of the modules are in training mode.
"""

from typing import Any

from torch import nn

from ..kernels.packed import PackedLinear, refusal


def is_prepared(model: nn.Module) -> bool:
    """Whether any of its layers is packed."""
    return any(isinstance(module, PackedLinear) for module in model.modules())


def refuse_if_prepared(model: nn.Module, what: str) -> None:
    """
    Raises:
        PackedModelError: any layer is packed.
    """
    if is_prepared(model):
        raise refusal(what)


class RefusesWhenPrepared:
    """Mixin of our models, before `PreTrainedModel`."""

    def train(self, mode: bool = True) -> Any:
        if mode:
            refuse_if_prepared(self, "train()")
        return super().train(mode)

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        if requires_grad:
            refuse_if_prepared(self, "requires_grad_()")
        return super().requires_grad_(requires_grad)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        refuse_if_prepared(self, "state_dict()")
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        refuse_if_prepared(self, "load_state_dict()")
        return super().load_state_dict(*args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        refuse_if_prepared(self, "save_pretrained()")
        super().save_pretrained(*args, **kwargs)

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        refuse_if_prepared(self, "add_adapter()")
        super().add_adapter(*args, **kwargs)

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        refuse_if_prepared(self, "load_adapter()")
        return super().load_adapter(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        refuse_if_prepared(self, "moving or converting the model")
        return super()._apply(*args, **kwargs)


__all__ = ["RefusesWhenPrepared", "is_prepared", "refuse_if_prepared"]
