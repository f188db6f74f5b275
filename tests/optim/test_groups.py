import torch
from tiny import tiny_config
from torch import nn

from maws_hf import MawsMAEForPreTraining
from maws_hf.optim.groups import parameter_groups

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
