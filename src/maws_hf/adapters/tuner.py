"""What VPT and AdaptFormer share: they wrap whole modules of the encoder, and nothing of them can be merged."""

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from ..models.adapter_base import check_base, describe_base
from ..models.prepared import refuse_if_prepared

_OFF_SWITCH = "set base_record to null in adapter_config.json"


class _Base:
    """The model that a config belongs to, not kept alive by it; a copy of the model gets a config of its own."""

    def __init__(self, model: nn.Module | None):
        self.get = (lambda: None) if model is None else weakref.ref(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Base":
        model = self.get()
        return _Base(memo.get(id(model), model))

    def __reduce__(self) -> tuple[type, tuple[None]]:
        return _Base, (None,)


@dataclass
class EncoderTunerConfig(PeftConfig):
    """What the configs of both methods have in common.

    Args:
        target_modules: regular expression of the modules to wrap; known for our models, ViT, Pixio, DINOv2 and
            VisionTextDualEncoder.
        exclude_modules: regular expression of modules to leave out.
        modules_to_save: trained along with it, such as `["classifier"]`.
        base_record: what the adapter was made on, written when it is saved; put on another base, it is an error. None
            compares nothing.
    """

    target_modules: str | None = field(default=None, metadata={"help": "Regular expression of the modules to wrap."})
    exclude_modules: str | None = field(default=None, metadata={"help": "Regular expression of what to leave out."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained along, e.g. the head."})
    base_record: dict[str, Any] | None = field(default=None, metadata={"help": "What the adapter was made on."})

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """With the record of the base, which is read only now: most adapters are never saved."""
        told = copy.copy(self)
        base = self._base.get() if hasattr(self, "_base") else None
        if self.base_record is None and base is not None:
            told.base_record = describe_base(base, self.modules_to_save)
        super(EncoderTunerConfig, told).save_pretrained(save_directory, **kwargs)


class EncoderTunerLayer(nn.Module, BaseTunerLayer):
    """A module of the encoder, wrapped; its adapters' weights lie in dictionaries by adapter name."""

    method = ""

    def __init__(self, base_layer: nn.Module):
        nn.Module.__init__(self)
        self.base_layer = base_layer
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    @property
    def adapter(self) -> str | None:
        """The active adapter of this module; None if there is none or it is disabled.

        Raises:
            ValueError: several are active.
        """
        here = (
            []
            if self.disable_adapters
            else [n for n in self.active_adapters if n in self._all_available_adapter_names()]
        )
        if len(here) > 1:
            raise ValueError(f"{self.method} adapters do not add up: set_adapter() one of {', '.join(here)}")
        return here[0] if here else None

    def placement(self) -> tuple[torch.device, torch.dtype]:
        """Where the wrapped module's weights are, and their type."""
        weight = next(self.get_base_layer().parameters())
        return weight.device, weight.dtype if weight.is_floating_point() else torch.float32

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(cannot_be_merged(self.method))

    def unmerge(self) -> None:
        raise ValueError(cannot_be_merged(self.method))


class EncoderTuner(BaseTuner):
    """Base of both methods' models."""

    method = ""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As every tuner's, after a look at what the adapter was made on.

        Raises:
            AdapterBaseError: on another base.
            PackedModelError: its weights are packed for inference.
        """
        refuse_if_prepared(model, "a new adapter")
        config = copy.copy(self.peft_config.pop(adapter_name))  # a copy: one config may serve several models
        if config.base_record is not None:
            check_base(model, config.base_record, config.base_model_name_or_path, _OFF_SWITCH)
        config._base = _Base(model)
        self.peft_config[adapter_name] = config
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        if peft_config.target_modules is None:
            model_type = model_config.get("model_type")
            if model_type not in self.target_module_mapping:
                raise ValueError(
                    f"{self.method} does not know the modules of model_type={model_type!r}; it knows "
                    f"{', '.join(self.target_module_mapping)}"
                )
            peft_config.target_modules = self.target_module_mapping[model_type]
        return peft_config

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own copies weights between the two, as if they were matrices.
        new_module.training = child.training
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                f"{self.method} cannot mix adapters in a batch (adapter_names): set_adapter() one of them"
            )
        yield

    def _check_merge_allowed(self) -> None:
        raise ValueError(cannot_be_merged(self.method))


def cannot_be_merged(method: str) -> str:
    return (
        f"{method} cannot be merged: it is no change of the encoder's own weights. Keep the adapter, or use unload() "
        "to get the encoder back as it was"
    )
