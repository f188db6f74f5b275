"""Each original tensor is used once, each of ours is filled, and foreign architectures are refused by name."""

import pytest
import torch
from tiny_originals import TEXT, encoder_shapes, spelt_as_before, two_towers

from maws_hf import MawsLiTConfig, MawsLiTModel, MawsMAEForPreTraining, MawsViTConfig
from maws_hf.hub.original_archive import ConversionError
from maws_hf.hub.original_names import canonical_names, check_shapes, layout_of, pieces_of
from maws_hf.hub.released_models import RELEASED_MODELS

CONFIG = MawsViTConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    patch_size=8,
    image_size=32,
)


def test_todays_and_yesterdays_spelling_of_torchtext_mean_the_same():
    today = two_towers()
    before = spelt_as_before(today)
    assert f"{TEXT}.layers.1.attention.input_projection.weight" in before
    assert list(canonical_names(before)) == list(today)
    assert list(canonical_names(before).values()) == list(before)
    between = [name.replace(".layers.layers.1.", ".layers.1.better_transformer.") for name in today]
    assert list(canonical_names(between)) == list(today)
    bare = [name.removeprefix("text_encoder.") for name in today]
    assert list(canonical_names(bare)) == list(today)


def test_one_tensor_in_both_spellings_is_refused():
    both = [f"{TEXT}.layers.layers.0.norm1.weight", f"{TEXT}.layers.0.attention_layer_norm.weight"]
    with pytest.raises(ConversionError, match=r"attention_layer_norm.weight and .*norm1.weight are the same tensor"):
        canonical_names(both)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("fc_norm.weight", "global pooling"),
        ("norm_pre.weight", "norm_pre"),
        ("blocks.3.ls1.gamma", "LayerScale"),
        ("blocks.3.gamma_1", "LayerScale"),
        ("reg_token", "register tokens"),
        ("blocks.0.attn.q_norm.weight", "q_norm"),
        ("vision_encoder.fc_norm.bias", "global pooling"),
        ("attn_pool.latent", "attention pooling"),
        ("patch_embed.norm.weight", "norms its patches"),
        ("dist_token", "distillation"),
        ("blocks.0.attn.rel_pos_h", "relative positions"),
        ("head_dist.weight", "distillation"),
        ("blocks.0.attn.relative_position_bias_table", "relative positions"),
    ],
)
def test_models_that_compute_something_else_are_refused_by_name(name, word):
    with pytest.raises(ConversionError) as error:
        layout_of([*encoder_shapes(), name])
    assert name in str(error.value)
    assert word in str(error.value)


def test_the_layout_follows_from_the_names():
    names = list(encoder_shapes())
    assert layout_of(names) == "encoder"
    assert layout_of([*names, "head.weight", "head.bias"]) == "classifier"
    assert layout_of([*names, "mask_token", "decoder_embed.weight"]) == "mae"
    assert layout_of(two_towers()) == "clip"


def test_everything_that_does_not_fit_is_listed_at_once():
    shapes = encoder_shapes()
    del shapes["norm.bias"], shapes["blocks.1.attn.qkv.weight"]
    shapes |= {"blocks.0.mlp.fc1.weight": (64, 32), "extra": (3,), "queue": (1, 2)}
    with pytest.raises(ConversionError) as error:
        check_shapes(pieces_of("encoder", CONFIG), shapes, "file.pt as maws-vit-b")
    assert str(error.value) == (
        "file.pt as maws-vit-b does not fit: missing: blocks.1.attn.qkv.weight (96, 32); missing: norm.bias (32,); "
        "unexpected: extra (3,); unexpected: queue (1, 2); "
        "of another shape: blocks.0.mlp.fc1.weight is (64, 32), expected (128, 32)"
    )


@pytest.mark.parametrize("name", RELEASED_MODELS)
def test_every_released_architecture_is_filled_tensor_by_tensor(name):
    """No tensor of ours is left out or filled twice, and of each original one all rows are used."""
    released = RELEASED_MODELS[name]
    if released.kind == "clip":
        config, cls, layout = MawsLiTConfig.from_size(released.size), MawsLiTModel, "clip"
    else:
        config, cls, layout = MawsViTConfig.from_size(released.size), MawsMAEForPreTraining, "mae"
    with torch.device("meta"):
        model = cls(config)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    pieces = pieces_of(layout, config)
    assert {piece.target: piece.shape for piece in pieces} == expected
    assert len({piece.target for piece in pieces}) == len(pieces)
    parts = {}
    for piece in pieces:
        parts.setdefault(piece.source, []).append(piece.part)
    parts.pop(None, None)  # the token types, which are zeros
    assert all(sorted(found) == [(i, len(found)) for i in range(len(found))] for found in parts.values())
