"""What fine-tuning does to a batch: random erasing, then mixup or CutMix, and the soft targets that belong to it.

The forms are timm's, which MAE's fine-tuning uses (`main_finetune.py`): erasing with normal noise in normalised
pixels, one share for a whole batch, each image mixed with the one in its mirror place of the batch.

Legend: B images, C classes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_ERASE_TRIES = 10
_ERASED_AREA = (0.02, 1 / 3)  # share of the image
_ERASED_ASPECT = (0.3, 1 / 0.3)  # height over width


def erase(pixel_values: Tensor, probability: float, rng: np.random.Generator) -> Tensor:
    """Overwrites a random rectangle of some images with standard normal noise (Zhong et al. 2020; in place).

    Args:
        pixel_values: `(B, 3, H, W)`, normalised.
        probability: of each image.
        rng: of places; the noise comes from torch's generator of the device.
    """
    height, width = pixel_values.shape[2:]
    for image in pixel_values:
        if rng.random() >= probability:
            continue
        for _ in range(_ERASE_TRIES):
            area = rng.uniform(*_ERASED_AREA) * height * width
            aspect = math.exp(rng.uniform(*(math.log(bound) for bound in _ERASED_ASPECT)))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if rows < height and columns < width:
                top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
                image[:, top : top + rows, left : left + columns].normal_()
                break
    return pixel_values


@dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019), one of them for a batch, and label smoothing.

    Attributes:
        mixup, cutmix: alpha of the Beta distribution that the share comes from; 0 is never. With both, each batch gets
            either by an even chance.
        smoothing: share of every target that is spread over all classes.

    Raises:
        ValueError: a setting is out of range.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if min(self.mixup, self.cutmix) < 0 or not 0 <= self.smoothing < 1:
            raise ValueError(
                f"mixup is {self.mixup}, cutmix {self.cutmix} and smoothing {self.smoothing}; expected 0 or more, "
                "0 or more, and 0 to below 1"
            )

    def __call__(self, pixel_values: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """
        Args:
            pixel_values: `(B, 3, H, W)`, floating point.
            targets: `(B, C)` floating point, one- or multi-hot; rows of zeros stay without a target if they are mixed
                with such rows only.

        Returns:
            Both mixed.
        """
        labelled = targets.sum(dim=1, keepdim=True) > 0
        targets = torch.where(labelled, targets * (1 - self.smoothing) + self.smoothing / targets.shape[1], targets)
        if not self.mixup and not self.cutmix:
            return pixel_values, targets
        cut = bool(self.cutmix) and (not self.mixup or rng.random() < 0.5)
        share = rng.beta(self.cutmix, self.cutmix) if cut else rng.beta(self.mixup, self.mixup)
        if cut:
            pixel_values, share = _paste(pixel_values, share, rng)
        else:
            pixel_values = pixel_values * share + pixel_values.flip(0) * (1 - share)
        return pixel_values, targets * share + targets.flip(0) * (1 - share)


def _paste(pixel_values: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """A rectangle of area 1 - `share` from the other image, cut off at the border; the share that is really kept."""
    height, width = pixel_values.shape[2:]
    rows, columns = (int(side * math.sqrt(1 - share)) for side in (height, width))
    centre_row, centre_column = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = (min(max(centre_row + end, 0), height) for end in (-(rows // 2), rows // 2))
    left, right = (min(max(centre_column + end, 0), width) for end in (-(columns // 2), columns // 2))
    mixed = pixel_values.clone()
    mixed[:, :, top:bottom, left:right] = pixel_values.flip(0)[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


__all__ = ["Mixing", "erase"]
