"""RandAugment in the form that MAE's fine-tuning uses: timm's `rand-m9-mstd0.5-inc1` (Cubuk et al. 2020).

Two of fifteen operations, drawn with replacement, each carried out with probability one half at a strength from 0 to
10 that is drawn around 9; "inc1" means that every operation gets stronger with it. Pixels are computed by Pillow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from .transforms import IMAGENET_MEAN

STRONGEST = 10.0
Colour = tuple[int, int, int]
Operation = Callable[[Image.Image, float, Colour], Image.Image]


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Colour) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


def _solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """Brightens the darker half of the range; the brighter one stays."""
    return image.point([min(255, value + amount) if value < 128 else value for value in range(256)] * 3)


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    """ImageOps.posterize, which since Pillow 13 refuses to leave no bit: black, at the greatest strength."""
    lost = 1 << (8 - bits)
    return image.point([value // lost * lost for value in range(256)] * 3)


def _enhance(kind: type) -> Operation:
    return lambda image, strength, fill: kind(image).enhance(max(0.1, 1 + 0.9 * strength))


# Strength comes as a share, -1 to 1: operations with a direction get either sign, the others see its size only.
OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda image, strength, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, fill: ImageOps.equalize(image),
    "invert": lambda image, strength, fill: ImageOps.invert(image),
    "rotate": lambda image, strength, fill: image.rotate(30 * strength, Image.Resampling.BICUBIC, fillcolor=fill),
    "posterize": lambda image, strength, fill: _posterize(image, 4 - int(4 * abs(strength))),
    "solarize": lambda image, strength, fill: ImageOps.solarize(image, 256 - min(256, int(256 * abs(strength)))),
    "solarize_add": lambda image, strength, fill: _solarize_add(image, int(110 * abs(strength))),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": lambda image, strength, fill: _affine(image, (1, 0.3 * strength, 0, 0, 1, 0), fill),
    "shear_y": lambda image, strength, fill: _affine(image, (1, 0, 0, 0.3 * strength, 1, 0), fill),
    "translate_x": lambda image, strength, fill: _affine(image, (1, 0, 0.45 * strength * image.width, 0, 1, 0), fill),
    "translate_y": lambda image, strength, fill: _affine(image, (1, 0, 0, 0, 1, 0.45 * strength * image.height), fill),
}


@dataclass(frozen=True)
class RandAugment:
    """`augment(image, rng)` maps uint8 (H, W, 3) to uint8 (H, W, 3); the same generator state gives the same result.

    Attributes:
        magnitude: mean strength, 0 to 10.
        magnitude_std: its standard deviation; strengths are clipped to 0..10.
        operations: drawn for each image, with replacement.
        probability: of carrying out each.
        fill: colour of what comes in from outside, 0 to 255.

    Raises:
        ValueError: an impossible setting.
    """

    magnitude: float = 9.0
    magnitude_std: float = 0.5
    operations: int = 2
    probability: float = 0.5
    fill: Colour = tuple(round(255 * value) for value in IMAGENET_MEAN)

    def __post_init__(self) -> None:
        if not (0 <= self.magnitude <= STRONGEST and self.magnitude_std >= 0):
            raise ValueError(
                f"magnitude is {self.magnitude} +- {self.magnitude_std}, expected 0 to {STRONGEST:g} and 0 or more"
            )
        if self.operations < 0 or not 0 <= self.probability <= 1:
            raise ValueError(
                f"operations is {self.operations} and probability {self.probability}, expected 0 or more, and 0 to 1"
            )

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        picture = None
        for _ in range(self.operations):
            operation = _ALL[int(rng.integers(len(_ALL)))]
            skipped = rng.random() >= self.probability
            strength = min(max(rng.normal(self.magnitude, self.magnitude_std), 0.0), STRONGEST) / STRONGEST
            signed = strength if rng.random() < 0.5 else -strength
            if not skipped:
                picture = Image.fromarray(np.ascontiguousarray(image)) if picture is None else picture
                picture = operation(picture, signed, self.fill)
        return image if picture is None else np.asarray(picture)


_ALL = tuple(OPERATIONS.values())

__all__ = ["OPERATIONS", "RandAugment"]
