"""Opening and asking two-tower models: ours, CLIP, SigLIP, VisionTextDualEncoder, any with `get_image_features`."""

import inspect

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..models.loading import refuse_missing_folder
from ..models.modeling_maws_vit import MawsViTModel
from ..processing.transforms import IMAGENET_MEAN, IMAGENET_STD
from .normalisation import statistics_of

_NO_LIMIT = 10**6  # a tokenizer that was told no length says 10^30


def load_two_towers(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in float32, complete, on the GPU if there is one; and its tokenizer.

    Raises:
        ValueError: it has no text or no image tower, takes images in a form of its own, lacks weights or a tokenizer.
    """
    refuse_missing_folder(name)
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
    """Mean and deviation that the image tower was trained with; a MAWS encoder normalises by itself.

    Raises:
        ValueError: see `statistics_of`.
    """
    if any(isinstance(module, MawsViTModel) for module in model.modules()):
        return {}
    try:
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        print(f"{name} comes without an image processor: its images are normalised with ImageNet's mean and deviation")
        return {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    mean, std = statistics_of(processor, name)
    return {"image_mean": mean, "image_std": std}


def encode_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], *, bf16: bool = False
) -> Tensor:
    """The features `(B, D)` of texts, float32 on the model's device, as `get_text_features` has them.

    Texts that are longer than the tower takes are cut. SigLIP has learnt from texts padded to its full length, so it
    gets them so; others are padded to the longest.

    Raises:
        ValueError: they are not finite.
    """
    inputs = tokenizer(
        texts,
        padding="max_length" if "siglip" in _text_config(model).model_type else "longest",
        truncation=True,
        max_length=text_limit(model, tokenizer),
        return_tensors="pt",
    )
    known = inspect.signature(model.get_text_features).parameters
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items() if name in known}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            output = model.get_text_features(**inputs)
    finally:
        model.train(was_training)
    features = (output if isinstance(output, Tensor) else output.pooler_output).float()
    if not features.isfinite().all():
        raise ValueError("the text tower gives features that are not finite: its weights or its precision are broken")
    return features


def text_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens a text may have: what the tokenizer says, and no more than the tower has positions for.

    Raises:
        ValueError: neither says anything.
    """
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < _NO_LIMIT else []
    if positions := getattr(_text_config(model), "max_position_embeddings", None):
        limits.append(positions - _unused_positions(model))
    if not limits:
        raise ValueError(f"how long a text may be is not known: set model_max_length of {type(tokenizer).__name__}")
    return min(limits)


def _text_config(model: PreTrainedModel):
    return getattr(model.config, "text_config", model.config)


def _unused_positions(model: PreTrainedModel) -> int:
    """Positions that no token gets: RoBERTa and its kin count from the one after that of padding."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return module.padding_idx + 1
    return 0


__all__ = ["encode_texts", "load_tokenizer", "load_two_towers", "pixel_statistics", "text_limit"]
