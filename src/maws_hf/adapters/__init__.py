"""Adapters for few labels (paper, Table 5): VPT and AdaptFormer as PEFT methods, beside LoRA and PEFT's others.

Importing this makes them known to PEFT; `import maws_hf` does so where PEFT is installed. Whoever loads such an
adapter needs the import too: without it PEFT knows no method of that name (`KeyError: 'VPT'`).

A saved VPT or AdaptFormer adapter knows its base, and on another it is an error. The encoder's weights are compared,
but for the position table, which may be resampled; of a head that comes along, the shape. PEFT's own methods cannot
know it: after their `save_pretrained(folder)`, `write_base_record(model, folder)` puts a file beside them that the
MAWS classes compare (`MawsViTForImageClassification.from_pretrained(folder)`, `model.load_adapter(folder)`). Without
that file, and in `PeftModel.from_pretrained`, LoRA on other weights of the same shape goes unnoticed.
"""

from ..models.adapter_base import AdapterBaseError, write_base_record
from .adaptformer import AdaptFormerConfig, AdaptFormerModel
from .registration import register_adapters
from .vpt import VPTConfig, VPTModel

register_adapters()

__all__ = [
    "AdaptFormerConfig",
    "AdaptFormerModel",
    "AdapterBaseError",
    "VPTConfig",
    "VPTModel",
    "write_base_record",
]
