"""The same weights in transformers' own VisionTextDualEncoderModel give the same logits."""

import pytest
import torch
from tiny import tiny_config
from tiny_lit import padded, random_captions, random_images, tiny_lit
from transformers import (
    PixioConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)
from transformers.models.vision_text_dual_encoder.modeling_vision_text_dual_encoder import image_text_contrastive_loss

from maws_hf import MawsLiTModel
from maws_hf.processing.transforms import normalize

# XLM-R's pooler there is dense, then tanh. With dense = TINY times identity, tanh(z) is z to 5e-7 for first tokens
# below 20; the projection undoes the factor, a power of two.
TINY = 2.0**-14


def as_dual_encoder(model: MawsLiTModel) -> VisionTextDualEncoderModel:
    vision, text = model.config.vision_config, model.config.text_config
    pixio = PixioConfig(
        n_cls_tokens=1,
        hidden_size=vision.hidden_size,
        num_hidden_layers=vision.num_hidden_layers,
        num_attention_heads=vision.num_attention_heads,
        mlp_ratio=vision.intermediate_size // vision.hidden_size,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        layer_norm_eps=vision.layer_norm_eps,
    )
    config = VisionTextDualEncoderConfig(
        vision_config=pixio.to_dict(), text_config=text.to_dict(), projection_dim=model.config.projection_dim
    )
    weights = dict(model.state_dict())
    width = text.hidden_size
    weights["text_model.pooler.dense.weight"] = TINY * torch.eye(width)
    weights["text_model.pooler.dense.bias"] = torch.zeros(width)
    weights["text_projection.weight"] = weights["text_projection.weight"] / TINY
    theirs = VisionTextDualEncoderModel(config)
    theirs.load_state_dict(weights, strict=True)
    return theirs.eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_and_loss_equal_the_dual_encoder(attention):
    model = tiny_lit(vision_config=tiny_config(intermediate_size=64))
    theirs = as_dual_encoder(model)
    for either in (model, theirs):
        either.set_attn_implementation(attention)
    texts, images = padded(random_captions(6)), normalize(random_images(6))
    with torch.no_grad():
        assert model.text_model(**texts).last_hidden_state[:, 0].abs().max() < 20  # where the trick holds
        ours = model(**texts, pixel_values=images, return_loss=True)
        outputs = theirs(**texts, pixel_values=images, return_loss=True)
    torch.testing.assert_close(ours.logits_per_image, outputs.logits_per_image, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.image_embeds, outputs.image_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.text_embeds, outputs.text_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.loss, outputs.loss, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.loss, image_text_contrastive_loss(ours.logits_per_text), rtol=0, atol=1e-6)


def test_the_dual_encoder_has_the_processor_that_we_have():
    assert VisionTextDualEncoderProcessor.get_attributes() == ["image_processor", "tokenizer"]
