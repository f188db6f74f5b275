"""A vision model that turns pictures into features."""

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from maws_hf.evaluation.features import encode_images, encoder_of
from maws_hf.evaluation.two_towers import pixel_statistics

from .pictures import transform_of


class Encoder:
    """Calling it maps a picture, uint8 `(H, W, 3)`, to its feature, float32 `(D,)` on the CPU.

    Args:
        name: folder or Hub id of the model, which may know mean and deviation of its pixels.
        model: of two towers, whose shared space is taken; or with a head or decoder, which is not.
    """

    def __init__(self, name: str, model: PreTrainedModel):
        self.model = encoder_of(model)
        self.transform = transform_of(self.model)
        self.statistics = pixel_statistics(name, self.model)

    def __call__(self, picture: np.ndarray) -> Tensor:
        return encode_images(self.model, self.transform(picture)[None], **self.statistics)[0].cpu()
