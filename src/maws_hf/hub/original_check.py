"""Does a converted folder compute what its original does? Random input through both."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..models.configuration_maws_vit import as_pair
from ..models.modeling_maws_lit import MawsLiTModel
from ..models.modeling_maws_mae import MawsMAEForPreTraining
from ..models.modeling_maws_vit import MawsViTForImageClassification, MawsViTModel
from .original_archive import ConversionError
from .original_forward import autoencode, classify, encode_images, encode_texts, project
from .original_names import TEXT, Layout

MODELS = {
    "encoder": MawsViTModel,
    "classifier": MawsViTForImageClassification,
    "mae": MawsMAEForPreTraining,
    "clip": MawsLiTModel,
}
# Largest difference, relative to the largest number compared. Deep models in float32 stay below 1e-5; a matrix in the
# wrong place is off by about 1.
TOLERANCE = 1e-3
SEED = 0


@torch.no_grad()
def compare_with_original(folder: Path, layout: Layout, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Runs both on two random images (and captions, and masks), in float32.

    Args:
        folder: what was written.
        layout: of the original.
        weights: the original's tensors, by today's original names.

    Returns:
        The largest absolute difference of each result.

    Raises:
        ConversionError: the folder does not load whole, or a result differs by more than rounding.
    """
    model, report = MODELS[layout].from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if problems := {kind: sorted(map(str, names)) for kind, names in report.items() if names}:
        raise ConversionError(f"the converted model does not load as it should: {problems}")
    generator = torch.Generator().manual_seed(SEED)
    compare = _COMPARISONS[layout]
    results = compare(model.eval(), weights, generator)
    differences = {}
    for name, (ours, theirs) in results.items():
        differences[name] = (ours - theirs).abs().max().item()
        allowed = TOLERANCE * theirs.abs().max().item()
        if not differences[name] <= allowed:
            raise ConversionError(
                f"the converted model's {name} differ from the original's by {differences[name]:.3g}, more than the "
                f"{allowed:.3g} that rounding explains: please report this with the file's name"
            )
    return differences


def _images(config, generator: torch.Generator) -> Tensor:
    return torch.randn(2, config.num_channels, *as_pair(config.image_size), generator=generator)


def _settings(config) -> dict[str, float]:
    return {"heads": config.num_attention_heads, "eps": config.layer_norm_eps}


def _compare_encoder(model, weights, generator) -> dict[str, tuple[Tensor, Tensor]]:
    images = _images(model.config, generator)
    return {"features": (model(images).last_hidden_state, encode_images(weights, images, **_settings(model.config)))}


def _compare_classifier(model, weights, generator) -> dict[str, tuple[Tensor, Tensor]]:
    images, settings = _images(model.config, generator), _settings(model.config)
    return {
        "features": (model.vit(images).last_hidden_state, encode_images(weights, images, **settings)),
        "logits": (model(images).logits, classify(weights, images, **settings)),
    }


def _compare_autoencoder(model, weights, generator) -> dict[str, tuple[Tensor, Tensor]]:
    config = model.config
    images = _images(config, generator)
    noise = torch.rand(len(images), config.grid_size[0] * config.grid_size[1], generator=generator)
    loss, predictions, mask = autoencode(
        weights,
        images,
        noise,
        decoder_heads=config.decoder_num_attention_heads,
        norm_pix_loss=config.norm_pix_loss,
        mask_ratio=config.mask_ratio,
        **_settings(config),
    )
    ours = model(images, noise=noise)
    hidden = predictions.gather(1, ours.ids_mask[:, :, None].expand_as(ours.logits))
    return {
        "features": (model.vit(images).last_hidden_state, encode_images(weights, images, **_settings(config))),
        "mask": (ours.mask.float(), mask),
        "predictions": (ours.logits, hidden),
        "loss": (ours.loss, loss),
    }


def _compare_towers(model, weights, generator) -> dict[str, tuple[Tensor, Tensor]]:
    vision, text = model.config.vision_config, model.config.text_config
    images = _images(vision, generator)
    longest = min(24, model.config.max_text_length)
    input_ids = torch.randint(3, text.vocab_size, (2, longest), generator=generator)
    input_ids[:, 0], input_ids[0, -1] = text.bos_token_id, text.eos_token_id
    input_ids[1, longest // 2 :] = text.pad_token_id
    input_ids[1, longest // 2 - 1] = text.eos_token_id
    ours = model(input_ids=input_ids, attention_mask=input_ids.ne(text.pad_token_id).long(), pixel_values=images)
    features = encode_images(weights, images, prefix="vision_encoder.", **_settings(vision))[:, 0]
    captions = encode_texts(weights, input_ids, heads=text.num_attention_heads, prefix=TEXT)
    image_embeds = project(weights, features, "vision_projection")
    text_embeds = project(weights, captions, "text_projection")
    logits = weights["logit_scale"].float().exp() * image_embeds @ text_embeds.T
    return {
        "image embeddings": (ours.image_embeds, image_embeds),
        "text embeddings": (ours.text_embeds, text_embeds),
        "logits": (ours.logits_per_image, logits),
    }


_COMPARISONS = {
    "encoder": _compare_encoder,
    "classifier": _compare_classifier,
    "mae": _compare_autoencoder,
    "clip": _compare_towers,
}


__all__ = ["MODELS", "compare_with_original"]
