import pytest
import torch
from tiny import tiny_config
from torch import nn

from maws_hf import MawsMAEForPreTraining, MawsViTForImageClassification, MawsViTModel
from maws_hf.optim.groups import is_decayed, layer_of, parameter_groups

CONFIG = tiny_config()


def test_only_matrices_decay():
    decay, no_decay = parameter_groups(MawsMAEForPreTraining(CONFIG), 0.05)
    assert (decay["name"], decay["weight_decay"]) == ("decay", 0.05)
    assert (no_decay["name"], no_decay["weight_decay"]) == ("no_decay", 0.0)
    assert all(name.endswith("weight") and "layernorm" not in name for name in decay["param_names"])
    assert "vit.embeddings.patch_embeddings.projection.weight" in decay["param_names"]
    spared = set(no_decay["param_names"])
    assert {"vit.embeddings.cls_token", "decoder.mask_token", "vit.layernorm.weight", "decoder.head.bias"} <= spared


def test_fixed_position_tables_are_not_optimized_and_nothing_else_is_left_out():
    model = MawsMAEForPreTraining(CONFIG)
    grouped = {name for group in parameter_groups(model, 0.05) for name in group["param_names"]}
    left_out = {name for name, _ in model.named_parameters()} - grouped
    assert left_out == {"vit.embeddings.position_embeddings"}


def test_a_group_without_members_is_left_out():
    groups = parameter_groups(nn.Linear(2, 2, bias=False), 0.1)
    assert [group["name"] for group in groups] == ["decay"]
    torch.optim.AdamW(groups)  # and an optimizer takes what is there


def test_layers_learn_with_powers_of_the_decay_as_in_mae():
    """The rule of the original `util/lr_decay.py`: d^(L + 1 - i), with i = 0 for all that is embedded."""
    model = MawsViTForImageClassification(tiny_config(num_hidden_layers=3, num_labels=5))
    groups = parameter_groups(model, 0.05, layer_decay=0.5, depth=3)
    scale = {name: group["lr_scale"] for group in groups for name in group["param_names"]}
    decay = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    assert scale.keys() == dict(model.named_parameters()).keys()
    expected = {
        "vit.embeddings.cls_token": 0.0625,
        "vit.embeddings.position_embeddings": 0.0625,
        "vit.embeddings.patch_embeddings.projection.weight": 0.0625,
        "vit.layers.0.attention.q_proj.weight": 0.125,
        "vit.layers.2.mlp.fc2.bias": 0.5,
        "vit.layernorm.weight": 1.0,
        "classifier.weight": 1.0,
        "classifier.bias": 1.0,
    }
    assert {name: scale[name] for name in expected} == expected
    assert decay["vit.embeddings.position_embeddings"] == decay["vit.embeddings.cls_token"] == 0
    assert decay["classifier.weight"] == decay["vit.layers.0.mlp.fc1.weight"] == 0.05
    assert decay["vit.layers.1.layernorm_before.weight"] == 0
    assert len({group["name"] for group in groups}) == len(groups) == 2 * 5


def test_a_decay_of_1_is_none():
    model = MawsViTForImageClassification(tiny_config(num_labels=5))
    groups = parameter_groups(model, 0.05, layer_decay=1.0, depth=2)
    assert [group["name"] for group in groups] == ["decay", "no_decay"]


def test_a_decay_over_layers_wants_their_number():
    with pytest.raises(ValueError, match=r"layer_decay=0\.75 wants depth"):
        parameter_groups(MawsViTForImageClassification(CONFIG), 0.05, layer_decay=0.75)


def test_a_decoders_layers_are_none_of_the_encoders():
    assert layer_of("vit.layers.0.mlp.fc1.weight", 12) == layer_of("layers.0.mlp.fc1.weight", 12) == 1
    assert layer_of("decoder.layers.0.mlp.fc1.weight", 12) == 13


def test_layers_with_two_digits_and_a_bare_encoders_embeddings_have_their_place():
    assert [layer_of(f"layers.{layer}.mlp.fc1.weight", 12) for layer in (1, 9, 10, 11)] == [2, 10, 11, 12]
    assert layer_of("embeddings.cls_token", 12) == layer_of("vit.embeddings.cls_token", 12) == 0


def test_an_encoder_of_one_block_has_layers_too():
    model = MawsViTModel(tiny_config(num_hidden_layers=1))
    groups = parameter_groups(model, 0.05, layer_decay=0.5, depth=1)
    assert {group["lr_scale"] for group in groups} == {0.25, 0.5, 1.0}


def test_position_tables_of_images_are_spared_wherever_they_lie_and_those_of_words_decay():
    names = ("embeddings.position_embeddings", "vision_model.embeddings.position_embeddings")
    words = "text_model.embeddings.position_embeddings.weight"
    table = nn.Parameter(torch.ones(1, 17, 32))
    assert not any(is_decayed(name, table) for name in names)
    assert is_decayed(words, table[0])


def test_names_stand_in_the_order_of_their_parameters():
    model = MawsMAEForPreTraining(CONFIG)
    own = dict(model.named_parameters())
    for group in parameter_groups(model, 0.05):
        assert group["param_names"] != sorted(group["param_names"])
        assert all(own[name] is each for name, each in zip(group["param_names"], group["params"], strict=True))
