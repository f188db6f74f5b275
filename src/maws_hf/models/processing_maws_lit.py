"""Pictures and captions to the inputs of MAWS-LiT."""

from typing import Any

from transformers import BatchFeature, ProcessorMixin


class MawsLiTProcessor(ProcessorMixin):
    """An image processor and a tokenizer in one: what [`MawsLiTModel`] was trained with.

    Captions are cut to the tokenizer's `model_max_length`, which a trained model's processor has from
    `config.max_text_length` (102: the released models' 100 pieces and two special tokens), and padded to the longest
    in the batch. Padding changes no feature.

    Example:

    ```python
    >>> inputs = processor(text=["a cat", "un chien"], images=image, return_tensors="pt")
    >>> probabilities = model(**inputs).logits_per_image.softmax(dim=1)
    ```
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """
        Args:
            images: a picture or a list of pictures, as the image processor takes them.
            text: a caption or a list of captions.
            kwargs: for either; `padding` and `truncation` are on unless said otherwise.

        Returns:
            `pixel_values` for pictures, `input_ids` and `attention_mask` for captions.
        """
        if text is not None:
            kwargs = {"padding": True, "truncation": True, **kwargs}
        return super().__call__(images=images, text=text, **kwargs)


__all__ = ["MawsLiTProcessor"]
