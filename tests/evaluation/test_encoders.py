"""Vision models of any kind, opened as frozen encoders."""

from pathlib import Path

import pytest
import torch
from tiny_lit import tiny_lit
from tiny_two_towers import tiny_two_towers
from transformers import PreTrainedModel, ViTMAEConfig, ViTMAEModel

from maws_hf.evaluation.encoders import load_encoder
from maws_hf.evaluation.features import encode_images


def two_towers(kind: str) -> PreTrainedModel:
    return tiny_lit().eval() if kind == "lit" else tiny_two_towers(kind)


@pytest.mark.parametrize("kind", ["lit", "clip", "siglip", "bert"])
def test_two_towers_are_probed_on_what_the_image_tower_sees(kind: str, tmp_path: Path):
    torch.manual_seed(3)
    model = two_towers(kind)
    model.save_pretrained(tmp_path)
    side = model.config.vision_config.image_size
    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    encoder = load_encoder(str(tmp_path))
    assert type(encoder) is type(model.vision_model)
    assert not encoder.training
    features = encode_images(encoder, pixels).cpu()
    assert features.shape == (2, model.config.vision_config.hidden_size)
    # The projection of these features is what the model compares with texts.
    projected = encode_images(model, pixels)
    with torch.inference_mode():
        expected = model.visual_projection(features) if hasattr(model, "visual_projection") else features
    torch.testing.assert_close(projected, expected)


def test_of_an_autoencoder_of_transformers_every_patch_is_seen(tmp_path: Path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    ViTMAEModel(ViTMAEConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 32, 32, device=encoder.device)).last_hidden_state.shape == (1, 1 + 16, 32)
