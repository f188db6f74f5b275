"""New weights depend on the seed and on their own name, and on nothing else."""

import pytest
import torch
from tiny import tiny_config
from tiny_lit import tiny_lit_config

from maws_hf import MawsLiTModel, MawsMAEForPreTraining, MawsViTConfig, MawsViTForImageClassification
from maws_hf.models.patch_grid import sincos_position_table
from maws_hf.training.initial_weights import draw_weights, meta_model, new_model


def test_two_models_of_one_seed_are_equal_and_of_two_seeds_differ():
    first, again, other = (new_model(MawsMAEForPreTraining, tiny_config(), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["decoder.embed.weight"], other["decoder.embed.weight"])


def test_a_weight_does_not_depend_on_what_else_the_model_has():
    deep = new_model(MawsMAEForPreTraining, tiny_config(num_hidden_layers=3), 1).state_dict()
    classifier = new_model(MawsViTForImageClassification, tiny_config(), 1).state_dict()
    shared = [name for name in classifier if name in deep]
    assert len(shared) > 30
    assert all(torch.equal(deep[name], classifier[name]) for name in shared)


def test_layers_of_one_shape_start_differently():
    weights = new_model(MawsMAEForPreTraining, tiny_config(), 1).state_dict()
    matrices = [value for name, value in weights.items() if name.endswith("proj.weight")]
    assert len({matrix.numpy().tobytes() for matrix in matrices}) == len(matrices)


def test_the_distributions_are_those_of_the_model_itself():
    config = tiny_config(hidden_size=64, intermediate_size=256)
    ours = new_model(MawsMAEForPreTraining, config, 1).state_dict()
    theirs = MawsMAEForPreTraining(config).state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if value.std() == 0 or name.endswith("position_embeddings"):
            assert torch.equal(ours[name], value), name
        else:
            assert float(ours[name].std()) == pytest.approx(float(value.std()), rel=0.35), name
    matrix = ours["vit.layers.0.mlp.fc1.weight"]
    assert matrix.abs().max() <= (6 / 320) ** 0.5
    assert float(matrix.std()) == pytest.approx((2 / 320) ** 0.5, rel=0.03)


def test_positions_are_the_sine_cosine_tables():
    model = new_model(MawsMAEForPreTraining, tiny_config(), 1)
    assert torch.equal(model.vit.embeddings.position_embeddings, sincos_position_table(32, (4, 4)))
    assert torch.equal(model.decoder.position_embeddings, sincos_position_table(24, (4, 4)))
    assert not model.vit.embeddings.position_embeddings.requires_grad


@pytest.mark.parametrize(("size", "millions"), [("vit_2b14", 1_890), ("vit_6.5b14", 6_447)])
def test_the_large_models_can_be_built_without_memory(size: str, millions: int):
    model = meta_model(MawsMAEForPreTraining, MawsViTConfig.from_size(size))
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert sum(p.numel() for p in model.vit.parameters()) / 1e6 == pytest.approx(millions, abs=1)


def test_weights_of_another_precision_are_the_same_ones_rounded():
    options = {"dtype": torch.bfloat16, "attn_implementation": "eager"}
    model = new_model(MawsMAEForPreTraining, tiny_config(), 1, **options)
    assert model.config._attn_implementation == "eager"
    exact = new_model(MawsMAEForPreTraining, tiny_config(), 1).state_dict()
    theirs = MawsMAEForPreTraining._from_config(tiny_config(), **options).state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, exact[name].to(tensor.dtype)), name


def test_what_is_kept_elsewhere_has_the_models_names_and_leaves_the_model_as_it_was():
    config = tiny_config(qkv_bias=False)
    model, kept = meta_model(MawsMAEForPreTraining, config), {}
    draw_weights(model, 1, keep=kept.__setitem__)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    whole = new_model(MawsMAEForPreTraining, config, 1).state_dict()
    assert whole.keys() == kept.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in whole.items())


def test_a_weight_of_the_model_itself_has_a_name_without_a_dot():
    model, kept = meta_model(MawsLiTModel, tiny_lit_config()), {}
    draw_weights(model, 1, keep=kept.__setitem__, only={"logit_scale"})
    assert kept.keys() == {"logit_scale"}
    assert float(kept["logit_scale"]) == pytest.approx(model.config.logit_scale_init_value)


def test_only_what_is_new_is_drawn_even_of_one_module():
    model = new_model(MawsViTForImageClassification, tiny_config(num_labels=3), 1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7.0)
    draw_weights(model, 2, only={"classifier.bias", "vit.layers.1.mlp.fc1.weight"})
    fresh = new_model(MawsViTForImageClassification, tiny_config(num_labels=3), 2).state_dict()
    for name, tensor in model.state_dict().items():
        drawn = name in ("classifier.bias", "vit.layers.1.mlp.fc1.weight")
        assert torch.equal(tensor, fresh[name] if drawn else torch.full_like(tensor, 7.0)), name


def test_a_tensor_that_the_model_leaves_undefined_is_named():
    class Forgetful(MawsViTForImageClassification):
        def _init_weights(self, module):
            if module is not self.classifier:
                super()._init_weights(module)

    with pytest.raises(RuntimeError, match=r"Forgetful\._init_weights leaves classifier\.weight undefined"):
        new_model(Forgetful, tiny_config(num_labels=3), 1)
