"""The plain forward of the originals gives the recorded numbers of the originals, and torch's own transformer's."""

import torch
import torch.nn.functional as F
from tiny_originals import TEXT, TEXT_HEADS, VOCABULARY, golden, golden_weights, text_encoder

from maws_hf.hub.original_forward import autoencode, classify, encode_images, encode_texts, project


def assert_close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def test_the_image_encoder_and_the_classifier_are_timms():
    recorded, weights = golden("timm_vit_tiny.safetensors"), golden_weights("timm_vit_tiny.safetensors")
    assert_close(encode_images(weights, recorded["images"], heads=4, eps=1e-6), recorded["forward_features"])
    assert_close(classify(weights, recorded["images"], heads=4, eps=1e-6), recorded["logits"])


def test_a_prefix_selects_the_image_tower():
    recorded, weights = golden("timm_vit_tiny.safetensors"), golden_weights("timm_vit_tiny.safetensors")
    tower = {f"vision_encoder.{name}": value for name, value in weights.items()}
    features = encode_images(tower, recorded["images"], heads=4, eps=1e-6, prefix="vision_encoder.")
    assert_close(features, recorded["forward_features"])


def test_the_autoencoder_gives_the_original_losses_predictions_and_mask():
    recorded, weights = golden("mae_tiny.safetensors"), golden_weights("mae_tiny.safetensors")
    for kind, norm_pix_loss in (("norm_pix", True), ("plain", False)):
        loss, predictions, mask = autoencode(
            weights,
            recorded["images"],
            recorded["noise"],
            heads=4,
            decoder_heads=3,
            eps=1e-6,
            norm_pix_loss=norm_pix_loss,
            mask_ratio=0.75,
        )
        assert_close(loss, recorded[f"loss/{kind}"])
        assert_close(predictions, recorded["pred"])
        assert torch.equal(mask, recorded["mask"])


def test_the_text_encoder_is_torchs_own_transformer():
    torch.manual_seed(0)
    text = text_encoder()
    for parameter in text.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    input_ids = torch.randint(3, VOCABULARY, (3, 12))
    input_ids[1, 7:] = input_ids[2, 3:] = 1
    real = input_ids.ne(1)
    positions = torch.where(real, torch.arange(12).expand(3, -1) + 2, 1)
    embedded = text["token_embedding"](input_ids) + text["positional_embedding"]["embedding"](positions)
    with torch.no_grad():
        encoded = text["layers"](text["embedding_layer_norm"](embedded), src_key_padding_mask=~real)[:, 0]
        weights = {f"{TEXT}.{name}": value for name, value in text.state_dict().items()}
        assert_close(encode_texts(weights, input_ids, heads=TEXT_HEADS, prefix=TEXT), encoded, tolerance=1e-5)


def test_a_projection_multiplies_from_the_right():
    features, matrix = torch.randn(2, 5), torch.randn(5, 3)
    assert_close(project({"vision_projection": matrix}, features, "vision_projection"), F.normalize(features @ matrix))
