"""Dropout and stochastic depth: where they drop. With a probability of nearly 1 nothing is left of what they reach."""

import pytest
import torch
from tiny import tiny_config

from maws_hf import MawsViTModel
from maws_hf.models.maws_mae_cross_decoder import MawsMAECrossLayer
from maws_hf.models.modeling_maws_vit import MawsViTLayer

NEARLY_ALL = 1 - 1e-7


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_drops_probabilities_under_every_backend_in_training_only(attention: str):
    config = tiny_config(attention_probs_dropout_prob=0.5, attn_implementation=attention)
    model, pixels = MawsViTModel(config), torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.train()(pixels).pooler_output, model(pixels).pooler_output)
    assert torch.equal(model.eval()(pixels).pooler_output, model(pixels).pooler_output)


@pytest.mark.parametrize(("fields", "rate"), [({"hidden_dropout_prob": NEARLY_ALL}, 0.0), ({}, NEARLY_ALL)])
def test_both_branches_of_a_layer_are_dropped(fields: dict, rate: float):
    layer = MawsViTLayer(tiny_config(**fields), 32, 4, 64, drop_path_rate=rate).train()
    tokens = torch.randn(2, 5, 32)
    assert torch.equal(layer(tokens), tokens)


def test_both_branches_of_a_cross_layer_are_dropped():
    layer = MawsMAECrossLayer(tiny_config(decoder_attention="cross", hidden_dropout_prob=NEARLY_ALL)).train()
    masked, encoded = torch.randn(2, 7, 24), torch.randn(2, 5, 32)
    assert torch.equal(layer(masked, encoded), masked)


def test_embeddings_are_dropped():
    embeddings = MawsViTModel(tiny_config(hidden_dropout_prob=NEARLY_ALL)).embeddings.train()
    assert not embeddings(torch.randn(2, 3, 32, 32)).any()
