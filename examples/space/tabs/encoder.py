"""A vision model that turns pictures into features."""

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from maws_hf import MawsViTModel
from maws_hf.evaluation.features import encode_images
from maws_hf.evaluation.two_towers import pixel_statistics

from .pictures import transform_of


class Encoder:
    """Calling it maps a picture, uint8 `(H, W, 3)`, to its feature, float32 `(D,)` on the CPU.

    Args:
        name: folder or Hub id of the model, which may know mean and deviation of its pixels.
        model: of two towers, whose shared space is taken; or with a head or decoder, which is not.
    """

    def __init__(self, name: str, model: PreTrainedModel):
        self.model = model if hasattr(model, "get_image_features") else model.base_model
        self.transform = transform_of(self.model)
        self.statistics = pixel_statistics(name, self.model)

    def __call__(self, picture: np.ndarray) -> Tensor:
        return encode_images(self.model, self.transform(picture)[None], **self.statistics)[0].cpu()


def load_encoder(name: str) -> PreTrainedModel:
    """A vision model for an index, complete, on the GPU if there is one.

    Raises:
        ValueError: it lacks weights.
    """
    model, report = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        model.pooler = None  # saved without one: the first token is the feature
    elif missing:
        raise ValueError(f"{name} lacks {len(missing)} weights of {type(model).__name__}, among them {missing[0]}")
    if not isinstance(model, MawsViTModel) and getattr(model.config, "mask_ratio", 0):
        model.config.mask_ratio = 0.0  # transformers' own MAE encoder hides patches also in evaluation
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
