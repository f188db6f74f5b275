"""Adapters for few labels (paper, Table 5): VPT and AdaptFormer as PEFT methods, beside LoRA and PEFT's others.

Importing this makes them known to PEFT; `import maws_hf` does so where PEFT is installed. Whoever loads such an
adapter needs the import too: without it PEFT knows no method of that name (`KeyError: 'VPT'`).
"""

from .adaptformer import AdaptFormerConfig, AdaptFormerModel
from .registration import register_adapters
from .vpt import VPTConfig, VPTModel

register_adapters()

__all__ = ["AdaptFormerConfig", "AdaptFormerModel", "VPTConfig", "VPTModel"]
