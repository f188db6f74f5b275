"""The small configuration and the small pictures that tests share."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from maws_hf import MawsViTConfig


def tiny_config(**overrides: Any) -> MawsViTConfig:
    fields = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "decoder_hidden_size": 24,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 3,
        "decoder_intermediate_size": 48,
    }
    return MawsViTConfig(**{**fields, **overrides})


def draw_image(index: int, size: int = 24) -> bytes:
    """A PNG with a disc and a bar whose place and colours follow from `index`."""
    rng = np.random.default_rng(index)
    picture = Image.new("RGB", (size, size), tuple(rng.integers(0, 256, 3).tolist()))
    drawing = ImageDraw.Draw(picture)
    x, y, radius = rng.integers(4, size - 4, 3) // (1, 1, 3)
    drawing.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(rng.integers(0, 256, 3).tolist()))
    drawing.line((0, int(y), size, int(x)), fill=tuple(rng.integers(0, 256, 3).tolist()), width=2)
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    return encoded.getvalue()
