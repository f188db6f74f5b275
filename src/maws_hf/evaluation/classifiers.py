"""Image classifiers of any kind, and what a picture goes through before one sees it."""

import inspect
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel
from transformers.utils import cached_file

from ..models.loading import explained_for_hub, refuse_missing_folder
from ..processing.decode import ImageDecodeError
from ..processing.transforms import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, normalize
from .normalisation import statistics_of

RESIZES = ("square", "crop")


def load_classifier(name: str) -> PreTrainedModel:
    """Ours or one of transformers: float32, complete, in evaluation mode, on the GPU if there is one.

    Raises:
        ValueError: the checkpoint lacks weights: an untrained head would be scored under its name.
    """
    refuse_missing_folder(name)
    with explained_for_hub(name):
        model, report = AutoModelForImageClassification.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__}, among them {missing[0]}: a trained "
            "classifier is wanted"
        )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Preprocessing:
    """`preprocessing(picture)` maps uint8 (H, W, 3) to float32 (3, h, w), normalised.

    Attributes:
        processor: of transformers, which then does all; None does as follows.
        resize: "square", the whole picture, whatever its aspect, as the released MAWS classifiers are evaluated; or
            "crop", the shortest side, then the centre. Bicubic with antialiasing, by Pillow.
        size: (height, width) of the result.
        mean, std: of the pixels, from 0 to 1.
        border: pixels to cut from each side of the picture beforehand.
    """

    processor: BaseImageProcessor | None = None
    resize: str = "square"
    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    border: int = 0

    def __call__(self, picture: np.ndarray) -> Tensor:
        """Raises ImageDecodeError for a picture that is all border."""
        if self.border:
            if min(picture.shape[:2]) <= 2 * self.border:
                raise ImageDecodeError("picture", f"nothing is left of it without its border of {self.border} pixels")
            picture = picture[self.border : -self.border, self.border : -self.border]
        if self.processor is not None:
            pixels = self.processor(picture, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
            return pixels[0].float()
        pixels = EvalTransform(self.size, "square" if self.resize == "square" else None)(picture)
        return normalize(pixels, self.mean, self.std)

    def description(self) -> dict[str, Any]:
        """All that its result depends on, as JSON."""
        if self.processor is not None:
            return {"processor": json.loads(self.processor.to_json_string()), "border": self.border}
        return {name: getattr(self, name) for name in ("resize", "size", "mean", "std", "border")}


def _processor_of(name: str) -> BaseImageProcessor | None:
    """None where there is no `preprocessor_config.json`; one that is broken is an error."""
    found = cached_file(
        name,
        "preprocessor_config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    # The same pixels with torchvision installed and without.
    return None if found is None else AutoImageProcessor.from_pretrained(name, backend="pil")


def preprocessing_of(
    name: str, model: PreTrainedModel, resize: str | None = None, image_size: int | None = None
) -> Preprocessing:
    """What the model's own `preprocessor_config.json` says; or `resize`, with the mean and deviation from there.

    Args:
        name: of the model, as it was loaded.
        resize: "square" or "crop".
        image_size: side in pixels, for `resize`; the model's own if None.

    Raises:
        ValueError: the model comes without a processor and no `resize` is given, or without an image size; or its
            processor does more than resize and normalise.
    """
    processor = _processor_of(name)
    if resize is None:
        if processor is None:
            raise ValueError(
                f"{name} comes without a preprocessor_config.json: say --resize square (as the released MAWS "
                "classifiers are evaluated) or --resize crop"
            )
        return Preprocessing(processor)
    size = image_size or getattr(model.config, "image_size", None)
    if size is None:
        raise ValueError(f"{type(model).__name__} names no image size: give --image_size")
    size = (size, size) if isinstance(size, int) else tuple(size)
    patch = getattr(model.config, "patch_size", None)
    patch = (patch, patch) if isinstance(patch, int) else patch
    if patch is not None and any(side % patch_side for side, patch_side in zip(size, patch, strict=True)):
        raise ValueError(f"--image_size {size[0]} is not possible: {name} has patches of {patch[0]}")
    if processor is None:
        told = ("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)
        return Preprocessing(None, resize, size, *(tuple(getattr(model.config, *field)) for field in told))
    try:
        return Preprocessing(None, resize, size, *statistics_of(processor, name))
    except ValueError as error:
        raise ValueError(f"--resize is not possible: {error}; leave the option out") from error


def logits_of(model: PreTrainedModel, pixels: Tensor, *, bf16: bool = False) -> Tensor:
    """The logits `(B, classes)` of normalised images `(B, 3, H, W)`, float32 on the CPU.

    Raises:
        ValueError: they are not finite.
    """
    pixels = pixels.to(model.device, non_blocking=True)
    options: dict[str, Any] = {}
    native = getattr(model.config, "image_size", None)
    takes_any_size = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    if takes_any_size and native not in (pixels.shape[-1], tuple(pixels.shape[-2:])):
        options["interpolate_pos_encoding"] = True
    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        logits = model(pixel_values=pixels, **options).logits.float().cpu()
    if not logits.isfinite().all():
        raise ValueError("the model gives logits that are not finite: its weights or its precision are broken")
    return logits


__all__ = ["RESIZES", "Preprocessing", "load_classifier", "logits_of", "preprocessing_of"]
