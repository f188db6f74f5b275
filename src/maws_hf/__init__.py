"""MAWS in the Hugging Face stack: MAE, WSP and LiT training of vision transformers (arXiv 2303.13496).

Importing the package makes the `maws_vit` and `maws_lit` model types known to transformers' Auto classes, and VPT and
AdaptFormer to PEFT where that is installed; it does nothing else.
"""

from contextlib import suppress

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)
from transformers.utils import is_peft_available

from .models.configuration_maws_lit import MawsLiTConfig
from .models.configuration_maws_vit import MawsViTConfig
from .models.inference import prepare_for_inference
from .models.modeling_maws_lit import MawsLiTModel
from .models.modeling_maws_mae import MawsMAEForPreTraining
from .models.modeling_maws_vit import MawsViTBackbone, MawsViTForImageClassification, MawsViTModel
from .models.processing_maws_lit import MawsLiTProcessor

__version__ = "0.1.0"

AutoConfig.register(MawsViTConfig.model_type, MawsViTConfig, exist_ok=True)
AutoModel.register(MawsViTConfig, MawsViTModel, exist_ok=True)
AutoModelForImageClassification.register(MawsViTConfig, MawsViTForImageClassification, exist_ok=True)
AutoModelForPreTraining.register(MawsViTConfig, MawsMAEForPreTraining, exist_ok=True)
AutoBackbone.register(MawsViTConfig, MawsViTBackbone, exist_ok=True)
AutoConfig.register(MawsLiTConfig.model_type, MawsLiTConfig, exist_ok=True)
AutoModel.register(MawsLiTConfig, MawsLiTModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(MawsLiTConfig, MawsLiTModel, exist_ok=True)
AutoProcessor.register(MawsLiTConfig, MawsLiTProcessor, exist_ok=True)

if is_peft_available():
    with suppress(ImportError):  # of a PEFT that lacks what it needs itself
        from . import adapters  # noqa: F401

__all__ = [
    "MawsLiTConfig",
    "MawsLiTModel",
    "MawsLiTProcessor",
    "MawsMAEForPreTraining",
    "MawsViTBackbone",
    "MawsViTConfig",
    "MawsViTForImageClassification",
    "MawsViTModel",
    "prepare_for_inference",
]
