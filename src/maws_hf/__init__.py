"""MAWS in the Hugging Face stack: MAE pre-pretraining of vision transformers (arXiv 2303.13496).

Importing the package makes the `maws_vit` model type known to transformers' Auto classes; it does nothing else.
"""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from .models.configuration_maws_vit import MawsViTConfig
from .models.modeling_maws_mae import MawsMAEForPreTraining
from .models.modeling_maws_vit import MawsViTBackbone, MawsViTForImageClassification, MawsViTModel

__version__ = "0.1.0"

AutoConfig.register(MawsViTConfig.model_type, MawsViTConfig, exist_ok=True)
AutoModel.register(MawsViTConfig, MawsViTModel, exist_ok=True)
AutoModelForImageClassification.register(MawsViTConfig, MawsViTForImageClassification, exist_ok=True)
AutoModelForPreTraining.register(MawsViTConfig, MawsMAEForPreTraining, exist_ok=True)
AutoBackbone.register(MawsViTConfig, MawsViTBackbone, exist_ok=True)

__all__ = [
    "MawsMAEForPreTraining",
    "MawsViTBackbone",
    "MawsViTConfig",
    "MawsViTForImageClassification",
    "MawsViTModel",
]
