"""From untrusted bytes to model input: `decode_image`, then `TrainTransform` or `EvalTransform`."""

from maws_hf.processing.decode import DecodeLimits, ImageDecodeError, decode_crop, decode_image
from maws_hf.processing.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalTransform,
    TrainTransform,
    denormalize,
    normalize,
    random_resized_crop_box,
    resize_crop,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "DecodeLimits",
    "EvalTransform",
    "ImageDecodeError",
    "TrainTransform",
    "decode_crop",
    "decode_image",
    "denormalize",
    "normalize",
    "random_resized_crop_box",
    "resize_crop",
]
