"""The image processors that belong to MAWS models: stock classes of transformers, so that a folder needs no code."""

from transformers import BitImageProcessorPil, ViTImageProcessorPil

from ..models.configuration_maws_vit import MawsViTConfig, as_pair


def image_processor_of(config: MawsViTConfig, resize: int | None = None) -> BitImageProcessorPil:
    """The preprocessing of the released encoders' evaluation: shortest side bicubic, centre crop, normalise.

    Args:
        resize: shortest side before the crop; that of the crop if None. MAE has 256 for crops of 224.
    """
    height, width = as_pair(config.image_size)
    return BitImageProcessorPil(
        size={"shortest_edge": resize or max(height, width)},
        crop_size={"height": height, "width": width},
        resample=3,
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    )


def square_image_processor_of(config: MawsViTConfig) -> ViTImageProcessorPil:
    """That of the released classifiers' evaluation (`eval_finetuned.py`): the whole image, bicubic, normalise."""
    height, width = as_pair(config.image_size)
    return ViTImageProcessorPil(
        size={"height": height, "width": width},
        resample=3,
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    )


__all__ = ["image_processor_of", "square_image_processor_of"]
