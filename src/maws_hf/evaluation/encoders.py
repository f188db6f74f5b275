"""Vision models of any kind as frozen encoders."""

import torch
from transformers import AutoModel, PreTrainedModel

from ..models.loading import refuse_missing_folder
from ..models.modeling_maws_vit import MawsViTModel


def load_encoder(name: str) -> PreTrainedModel:
    """Float32, complete, in evaluation mode, on the GPU if there is one.

    Of two towers the image tower, whose feature is that before the projection into the space shared with texts, as
    CLIP's own linear probes take it (Radford et al. 2021, appendix A.3).

    Raises:
        ValueError: the checkpoint lacks weights: a partly random encoder would be ranked under its name.
    """
    refuse_missing_folder(name)
    model, report = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        model.pooler = None  # saved without one: the first token is the feature
    elif missing:
        raise ValueError(f"{name} lacks {len(missing)} weights of {type(model).__name__}, among them {missing[0]}")
    if not isinstance(model, MawsViTModel) and getattr(model.config, "mask_ratio", 0):
        model.config.mask_ratio = 0.0  # transformers' own MAE encoder hides patches also in evaluation
    if isinstance(tower := getattr(model, "vision_model", None), PreTrainedModel):
        model = tower
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


__all__ = ["load_encoder"]
