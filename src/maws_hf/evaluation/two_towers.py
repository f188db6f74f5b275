"""Opening two-tower models: CLIP, SigLIP, VisionTextDualEncoder, or any with `get_image_features` and its twin."""

import torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..models.modeling_maws_vit import MawsViTModel
from ..processing.transforms import IMAGENET_MEAN, IMAGENET_STD


def load_two_towers(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in float32, complete, on the GPU if there is one; and its tokenizer.

    Raises:
        ValueError: it has no text or no image tower, takes images in a form of its own, lacks weights or a tokenizer.
    """
    model, report = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    kind = type(model).__name__
    if absent := [method for method in ("get_image_features", "get_text_features") if not hasattr(model, method)]:
        raise ValueError(f"{name} is a {kind}, which has no {absent[0]}: zero-shot needs an image and a text tower")
    if model.config.model_type == "siglip2":
        raise ValueError(f"{name} is a {kind} for patches of any shape: give a SigLIP 2 of fixed resolution")
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{name} lacks {len(missing)} weights of {kind}, among them {missing[0]}")
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), load_tokenizer(name)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    advice = "save it there with tokenizer.save_pretrained"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} comes without a tokenizer that can be loaded: {advice}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes an empty one if there are no files
        raise ValueError(f"{name} comes without a tokenizer: {advice}")
    return tokenizer


def pixel_statistics(name: str, model: PreTrainedModel) -> dict[str, tuple[float, ...]]:
    """Mean and deviation that the image tower was trained with; a MAWS encoder normalises by itself."""
    if any(isinstance(module, MawsViTModel) for module in model.modules()):
        return {}
    try:
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        print(f"{name} comes without an image processor: its images are normalised with ImageNet's mean and deviation")
        return {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    return {"image_mean": tuple(processor.image_mean), "image_std": tuple(processor.image_std)}


__all__ = ["load_tokenizer", "load_two_towers", "pixel_statistics"]
