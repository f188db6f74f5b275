"""From decoded pictures to model input: the random crop of training, the centre crop of evaluation.

Pictures come in as uint8 arrays (height, width, 3) from `decode_image` and leave as uint8 tensors (3, h, w). They
stay uint8 until the model normalises them on its own device: a quarter of the bytes to move, and the workers
save the arithmetic. `normalize` is the same arithmetic for users and tests.

Two resizers do the antialiased bicubic, both on integers: Pillow's, which the original evaluation used and which
therefore is the default there, and torch's, which on x86 with AVX2 is 3 to 4 times as fast and differs by less
than 0.02 grey levels on average (never more than 2). Both crop first and then resize: pixels outside of the crop
do not bleed into its border.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from maws_hf.processing.decode import DecodeBackend, decode_crop

ResizeBackend = Literal["auto", "pillow", "torch"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_CROP_TRIES = 10


def random_resized_crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Draw the crop of MAE's augmentation, by the rules of torchvision's RandomResizedCrop.

    Args:
        height, width: size of the picture, pixels.
        rng: the only source of randomness; how many numbers are drawn depends on the draws.
        scale: bounds of the crop's share of the picture's area, drawn uniformly.
        ratio: bounds of the crop's width over height, drawn uniformly in the logarithm.

    Returns:
        (top, left, height, width) in pixels, inside the picture. Ten draws that do not fit give the largest
        central crop whose aspect lies within `ratio`.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_CROP_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(0, height - crop_height + 1))
            left = int(rng.integers(0, width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_height, crop_width = height, width
    if width / height < ratio[0]:
        crop_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        crop_width = round(height * ratio[1])
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def resize_crop(
    image: np.ndarray,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    backend: ResizeBackend = "auto",
) -> np.ndarray:
    """Cut `box` out of the picture and resize it, antialiased bicubic.

    Args:
        image: uint8 (H, W, 3).
        box: (top, left, height, width), inside the picture.
        size: (height, width) of the result.
        backend: "pillow", "torch", or "auto": torch where it has its fast integer kernels, else Pillow. Rows are
            resized before columns in each, as all versions of Pillow before 13 did.

    Returns:
        uint8 (height, width, 3); possibly a view of `image` when there is nothing to resize.

    Raises:
        ValueError: the picture is not uint8 (H, W, 3), the box does not lie inside, or the backend is unknown.
    """
    _check_image(image)
    _check_backend(backend)
    top, left, height, width = box
    if min(top, left) < 0 or min(*box[2:], *size) < 1:
        raise ValueError(f"crop {box} to size {size}: corners start at 0 and sides at 1 pixel")
    if top + height > image.shape[0] or left + width > image.shape[1]:
        raise ValueError(f"crop {box} reaches outside of the picture of {image.shape[0]} x {image.shape[1]}")
    crop = image[top : top + height, left : left + width]
    if (height, width) == tuple(size):
        return crop
    if backend == "torch" or (backend == "auto" and torch.backends.cpu.get_cpu_capability() != "DEFAULT"):
        return _resize_with_torch(crop, size)
    return _resize_with_pillow(crop, size)


def _resize_with_pillow(crop: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # Rounding between the two passes makes their order visible. Pillow up to 12, and torch, resize along the rows
    # first; Pillow 13 takes the cheaper order, which changes tall pictures by up to 3 grey levels (noise by 15).
    # One call a pass fixes the order, so that an evaluation does not depend on the version.
    image = Image.fromarray(np.ascontiguousarray(crop))
    for step in ((size[1], image.height), (size[1], size[0])):
        if step != image.size:
            image = image.resize(step, Image.Resampling.BICUBIC)
    return np.asarray(image)


def _resize_with_torch(crop: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # Channels last is what the array already is, and what the fast kernel wants: nothing is copied on the way in.
    crop = np.ascontiguousarray(crop)
    if not crop.flags.writeable:  # torch warns about read-only memory, though it only reads here
        crop = crop.copy()
    batch = torch.from_numpy(crop).permute(2, 0, 1)[None]
    resized = F.interpolate(batch, size=tuple(size), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop and horizontal flip, MAE's whole augmentation (He et al. 2021, appendix A.1).

    `transform(image, rng)` maps uint8 (H, W, 3) to a contiguous uint8 tensor (3, h, w), and `decode(data, rng)`
    the bytes of an image file. The same generator state gives the same tensor.

    Attributes:
        size: side of the result in pixels, or (height, width).
        scale: bounds of the crop's share of the area.
        ratio: bounds of the crop's width over height.
        hflip: probability of the mirror image.
        backend: see `resize_crop`.
        augment: what else fine-tuning does to the resized crop, uint8 (h, w, 3) to the same; `RandAugment`.

    Raises:
        ValueError: an impossible setting at construction; anything but a uint8 (H, W, 3) picture when called.
    """

    size: int | tuple[int, int] = 224
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    backend: ResizeBackend = "auto"
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None

    def __post_init__(self) -> None:
        if min(_pair(self.size)) < 1:
            raise ValueError(f"size is {self.size}, expected at least 1 pixel")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}, expected 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is {self.ratio}, expected 0 < low <= high")
        if not 0 <= self.hflip <= 1:
            raise ValueError(f"hflip is {self.hflip}, expected a probability")
        _check_backend(self.backend)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        _check_image(image)
        top, left, height, width = self._draw(*image.shape[:2], rng)
        return self._finish(image[top : top + height, left : left + width], rng)

    def decode(
        self, data: bytes, rng: np.random.Generator, *, key: str = "<bytes>", decoder: DecodeBackend = "auto"
    ) -> torch.Tensor:
        """`self(decode_image(data), rng)`, to the bit; rows below the crop need not be decoded.

        Args:
            data, key, decoder: see `decode_image`, where the last is called `backend`.

        Raises:
            ImageDecodeError: the bytes are no image that we accept.
        """
        return self._finish(decode_crop(data, partial(self._draw, rng=rng), key=key, backend=decoder), rng)

    def _draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        return random_resized_crop_box(height, width, rng, self.scale, self.ratio)

    def _finish(self, crop: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        pixels = resize_crop(crop, (0, 0, *crop.shape[:2]), _pair(self.size), self.backend)
        if self.augment is not None:
            pixels = self.augment(pixels, rng)
        tensor = _channels_first(pixels)
        return tensor.flip(-1) if rng.random() < self.hflip else tensor


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shortest edge, then crop the centre: torchvision's Resize and CenterCrop, to the pixel.

    `transform(image)` maps uint8 (H, W, 3) to a contiguous uint8 tensor (3, h, w). Rounding is
    torchvision's: the longer edge becomes int(resize * long / short), the crop starts at round((side - size) / 2)
    with halves to even, and a picture smaller than the crop is padded with black. (The centre crop in
    transformers' processors starts at (side - size) // 2, one pixel earlier when side - size is 3 modulo 4.)

    Attributes:
        size: side of the result in pixels, or (height, width).
        resize: shortest edge before the crop; None means `size` (the longer side of it), the MAWS evaluation of
            encoders. MAE evaluates with 256. "square" squeezes the whole picture into `size` and crops nothing, the
            evaluation of the released classifiers (`eval_finetuned.py`).
        backend: "pillow" repeats the original evaluation bit for bit, of pictures without EXIF orientation or
            transparency (so do transformers' PIL processors, except on tall ones with Pillow 13: see `resize_crop`);
            "torch" and "auto" are faster and within 2 levels.

    Raises:
        ValueError: an impossible setting at construction; anything but a uint8 (H, W, 3) picture when called.
    """

    size: int | tuple[int, int] = 224
    resize: int | Literal["square"] | None = None
    backend: ResizeBackend = "pillow"

    def __post_init__(self) -> None:
        if isinstance(self.resize, str) and self.resize != "square":
            raise ValueError(f"resize is {self.resize!r}, expected pixels, None or 'square'")
        if min(_pair(self.size)) < 1 or (isinstance(self.resize, int) and self.resize < 1):
            raise ValueError(f"size is {self.size} and resize {self.resize}, expected at least 1 pixel")
        _check_backend(self.backend)

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        _check_image(image)
        height, width = image.shape[:2]
        if self.resize == "square":
            return _channels_first(resize_crop(image, (0, 0, height, width), _pair(self.size), self.backend))
        short = max(_pair(self.size)) if self.resize is None else self.resize
        if height <= width:
            target = short, int(short * width / height)
        else:
            target = int(short * height / width), short
        pixels = resize_crop(image, (0, 0, height, width), target, self.backend)
        return _channels_first(_center_crop(pixels, _pair(self.size)))


def normalize(
    pixels: torch.Tensor,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> torch.Tensor:
    """(pixels / 255 - mean) / std: uint8 (..., 3, H, W) to float32 of the same shape.

    Raises:
        ValueError: not uint8 (floats are already scaled in some unknown way), or no three channels.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim < 3 or pixels.shape[-3] != 3:
        raise ValueError(f"pixels are {pixels.dtype} {tuple(pixels.shape)}, expected uint8 (..., 3, H, W)")
    mean_column, std_column = _columns(mean, std, pixels.device)
    return (pixels.float() / 255 - mean_column) / std_column


def denormalize(
    pixels: torch.Tensor,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> torch.Tensor:
    """Undo `normalize`: float (..., 3, H, W) to uint8, rounded and clipped to 0..255.

    Raises:
        ValueError: not a floating dtype, or no three channels.
    """
    if not pixels.dtype.is_floating_point or pixels.ndim < 3 or pixels.shape[-3] != 3:
        raise ValueError(f"pixels are {pixels.dtype} {tuple(pixels.shape)}, expected float (..., 3, H, W)")
    mean_column, std_column = _columns(mean, std, pixels.device)
    return ((pixels.float() * std_column + mean_column) * 255).round().clamp(0, 255).to(torch.uint8)


def _columns(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """The constants as (3, 1, 1), to broadcast over rows and columns."""
    return tuple(torch.tensor(v, dtype=torch.float32, device=device).view(3, 1, 1) for v in (mean, std))


def _center_crop(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    missing = [max(0, wanted - side) for wanted, side in zip(size, pixels.shape[:2], strict=True)]
    if any(missing):
        before_and_after = [(lack // 2, (lack + 1) // 2) for lack in missing]
        pixels = np.pad(pixels, (*before_and_after, (0, 0)))
    top, left = (round((side - wanted) / 2) for wanted, side in zip(size, pixels.shape[:2], strict=True))
    return pixels[top : top + size[0], left : left + size[1]]


def _channels_first(pixels: np.ndarray) -> torch.Tensor:
    """A tensor that owns its memory: the copy also detaches it from the picture that it was cut from."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy(order="C"))


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _check_backend(backend: str) -> None:
    if backend not in get_args(ResizeBackend):
        raise ValueError(f"backend is {backend!r}, expected one of {', '.join(get_args(ResizeBackend))}")


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image is {type(image).__name__}, expected a uint8 array (height, width, 3)")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"image is {image.dtype} {image.shape}, expected uint8 (height, width, 3) with at least one pixel: "
            "decode files with maws_hf.processing.decode_image"
        )
