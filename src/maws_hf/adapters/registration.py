"""Makes PEFT know our methods, and where the other methods go in our models.

PEFT's table of methods is an enum without a way to add to it (`register_peft_method` only takes names that are in it).
The members are added as `enum` itself does it, so that they pickle, compare and look up like the built-in ones.
"""

from peft import LNTuningModel, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method

from .adaptformer import AdaptFormerConfig, AdaptFormerModel
from .vpt import VPTConfig, VPTModel

# What PEFT's other methods adapt if nobody says otherwise: queries and values, LoRA's own choice; in LiT those of the
# image tower only.
_QUERIES_AND_VALUES = ["q_proj", "v_proj"]
_DEFAULT_TARGETS = {
    "maws_vit": _QUERIES_AND_VALUES,
    "pixio": _QUERIES_AND_VALUES,
    "maws_lit": r"vision_model\..*\.(q_proj|v_proj)",
}
# Its name says what LN tuning adapts.
_NORMS = {
    "maws_vit": r"(.*\.)?layernorm(_before|_after)?",
    "maws_lit": r"vision_model\.(.*\.)?layernorm(_before|_after)?",
}


def register_adapters() -> None:
    """Once or again: the same."""
    for config_class, model_class in ((VPTConfig, VPTModel), (AdaptFormerConfig, AdaptFormerModel)):
        name = model_class.prefix.removesuffix("_")
        if name.upper() not in PeftType.__members__:
            _add_member(name.upper())
            register_peft_method(name=name, config_cls=config_class, model_cls=model_class)
    for tuner in PEFT_TYPE_TO_TUNER_MAPPING.values():
        targets = getattr(tuner, "target_module_mapping", None)
        if isinstance(targets, dict) and tuner not in (VPTModel, AdaptFormerModel):
            defaults = _NORMS if tuner is LNTuningModel else _DEFAULT_TARGETS
            for model_type, modules in defaults.items():
                targets.setdefault(model_type, modules)


def _add_member(name: str) -> None:
    member = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
