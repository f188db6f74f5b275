"""Mean and deviation of the pixels that a model was trained with, as its image processor tells them."""

from transformers import BaseImageProcessor

UNTOUCHED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def statistics_of(processor: BaseImageProcessor, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels from 0 to 1; those that change nothing where the processor does not normalise.

    Args:
        name: of the model, for the message.

    Raises:
        ValueError: the processor does to pixels what no mean and deviation can.
    """
    # Processors that know nothing of either lack the attribute.
    if getattr(processor, "do_flip_channel_order", False):
        raise ValueError(f"{name} wants its pictures in blue, green, red, by its image processor; here they are RGB")
    if not getattr(processor, "do_rescale", True):
        raise ValueError(f"{name} wants pixels from 0 to 255, by its image processor; here they are from 0 to 1")
    if not getattr(processor, "do_normalize", False):
        return UNTOUCHED
    return tuple(processor.image_mean), tuple(processor.image_std)


__all__ = ["statistics_of"]
