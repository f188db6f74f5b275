"""Mean and deviation of the pixels that a model was trained with, as its image processor tells them."""

from transformers import BaseImageProcessor

UNTOUCHED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def statistics_of(processor: BaseImageProcessor, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels from 0 to 1; those that change nothing where the processor does not normalise.

    timm's, in transformers, keep both in their `data_config`.

    Args:
        name: of the model, for the message.

    Raises:
        ValueError: the processor does to pixels what no mean and deviation can.
    """
    data_config = getattr(processor, "data_config", None)
    if data_config is not None:
        return tuple(data_config["mean"]), tuple(data_config["std"])
    # Processors that know nothing of these lack the attribute.
    if getattr(processor, "do_flip_channel_order", False):
        raise ValueError(f"{name} wants its pictures in blue, green, red, by its image processor; here they are RGB")
    scale = getattr(processor, "rescale_factor", None) or 1 / 255
    if not getattr(processor, "do_rescale", True) or abs(scale * 255 - 1) > 1e-3:
        raise ValueError(f"{name} wants pixels of another range, by its image processor; here they are from 0 to 1")
    if getattr(processor, "rescale_offset", False) or getattr(processor, "include_top", False):
        raise ValueError(f"{name} also shifts its pixels, or scales them twice, by its image processor; not so here")
    if not hasattr(processor, "do_normalize"):
        raise ValueError(f"the image processor of {name} does not say whether it normalises pictures")
    if not processor.do_normalize:
        return UNTOUCHED
    return tuple(processor.image_mean), tuple(processor.image_std)


__all__ = ["statistics_of"]
