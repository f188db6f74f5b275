import copy
from collections.abc import Iterator

import pytest
import torch
from tiny import tiny_config
from tiny_lit import padded, random_captions, tiny_lit
from torch import Tensor, nn

from maws_hf import (
    MawsMAEForPreTraining,
    MawsViTBackbone,
    MawsViTForImageClassification,
    MawsViTModel,
    prepare_for_inference,
)
from maws_hf.kernels.packed import PackedLinear, PackedModelError, can_pack
from maws_hf.models.adapter_base import encoder_digest
from maws_hf.models.inference import FusedLayer, prepared_for_inference
from maws_hf.models.modeling_maws_vit import MawsViTLayer

HEADS = (MawsViTModel, MawsViTForImageClassification, MawsViTBackbone, MawsMAEForPreTraining)
LINEARS = 6  # in a block

needs_packing = pytest.mark.skipif(not can_pack(nn.Linear(1, 1)), reason="no oneDNN, or no x86 processor")


def randomize(model: nn.Module) -> nn.Module:
    """Weights among which no zero hides a mistake."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.15
    return model.eval()


def pictures(count: int, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def tensors(output) -> Iterator[tuple[str, Tensor]]:
    for name, value in output.items():
        parts = value if isinstance(value, tuple) else (value,)
        yield from ((f"{name} {number}", part) for number, part in enumerate(parts) if isinstance(part, Tensor))


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def assert_same_outputs(found, expected, tolerance: float = 2e-6) -> None:
    found, expected = dict(tensors(found)), dict(tensors(expected))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.shape == expected[name].shape
        assert distance(value, expected[name]) < tolerance, name


def packed_layers(model: nn.Module) -> int:
    return sum(isinstance(module, PackedLinear) for module in model.modules())


# ---------------------------------------------------------------- results


@needs_packing
@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_pytorch_tanh", "relu"])
@pytest.mark.parametrize("model_class", HEADS)
@torch.no_grad()
def test_outputs_are_those_of_the_plain_model(model_class, hidden_act):
    plain = randomize(model_class(tiny_config(hidden_act=hidden_act, qkv_bias=hidden_act != "relu")))
    prepared = copy.deepcopy(plain)
    assert prepare_for_inference(prepared) is prepared
    blocks = sum(isinstance(module, MawsViTLayer) for module in plain.modules())
    assert packed_layers(prepared) == LINEARS * blocks
    for images in (pictures(3), pictures(1), pictures(2, 48, 64)):
        options = {}
        if model_class is MawsMAEForPreTraining:
            patches = images.shape[2] * images.shape[3] // 64
            options["noise"] = torch.rand(len(images), patches, generator=torch.Generator().manual_seed(0))
        for asked in ({}, {"output_hidden_states": True}, {"output_attentions": True}):
            assert_same_outputs(prepared(images, **options, **asked), plain(images, **options, **asked))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@torch.no_grad()
def test_torchs_own_gelu_is_fused_in_the_form_it_has(approximate: str):
    plain = randomize(MawsViTModel(tiny_config()))
    for layer in plain.layers:
        layer.mlp.activation_fn = nn.GELU(approximate=approximate)
    prepared = prepare_for_inference(copy.deepcopy(plain))
    assert_same_outputs(prepared(pictures(2)), plain(pictures(2)))


@needs_packing
@torch.no_grad()
def test_fused_blocks_do_not_write_over_hidden_states():
    model = prepare_for_inference(randomize(MawsViTModel(tiny_config(num_hidden_layers=3))))
    assert all(type(layer) is FusedLayer for layer in model.layers)
    states = model(pictures(2), output_hidden_states=True).hidden_states
    for layer, before, after in zip(model.layers, states[:-1], states[1:], strict=True):
        kept = before.clone()
        assert torch.equal(layer(before), after)
        assert torch.equal(before, kept)


@needs_packing
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_the_class_token_alone_and_kept_patches_are_exact(attention):
    plain = randomize(MawsViTModel(tiny_config(attn_implementation=attention)))
    prepared = prepare_for_inference(copy.deepcopy(plain))
    ids_keep = torch.tensor([[3, 1, 7], [15, 0, 2]])
    for options in ({"class_token_only": True}, {"ids_keep": ids_keep}, {"ids_keep": ids_keep[:, :1]}):
        assert_same_outputs(prepared(pictures(2), **options), plain(pictures(2), **options))


@needs_packing
@torch.no_grad()
def test_bfloat16_is_no_farther_from_the_truth_than_the_plain_model():
    truth = randomize(MawsViTModel(tiny_config(hidden_size=64, intermediate_size=256, num_hidden_layers=4)))
    plain = copy.deepcopy(truth).bfloat16()
    if not can_pack(plain.layers[0].mlp.fc1):
        pytest.skip("oneDNN does not take bfloat16 on this processor")
    prepared = prepare_for_inference(copy.deepcopy(plain))
    images = pictures(16)
    expected = truth.double()(images).last_hidden_state
    error, plain_error = (distance(model(images).last_hidden_state, expected) for model in (prepared, plain))
    assert 0 < error < 1.05 * plain_error


@needs_packing
@torch.no_grad()
def test_a_lit_model_has_its_image_tower_packed():
    plain = tiny_lit(lock_vision_tower=False)
    prepared = prepare_for_inference(copy.deepcopy(plain))
    assert packed_layers(prepared) == packed_layers(prepared.vision_model) == 2 * LINEARS
    inputs = {**padded(random_captions(3)), "pixel_values": pictures(2)}
    assert_same_outputs(prepared(**inputs), plain(**inputs))
    with pytest.raises(PackedModelError, match=r"train\(\)"):
        prepared.train()


@needs_packing
@torch.no_grad()
def test_a_compiled_model_gives_the_same():
    plain = randomize(MawsViTModel(tiny_config()))
    compiled = torch.compile(prepare_for_inference(copy.deepcopy(plain)), backend="eager")
    for images in (pictures(2), pictures(3, 48, 32)):
        assert_same_outputs(compiled(images), plain(images))


# ---------------------------------------------------------------- adapters


def adapted(method: str) -> nn.Module:
    peft = pytest.importorskip("peft")
    from maws_hf.adapters import AdaptFormerConfig, VPTConfig

    configs = {
        "LoRA": lambda: peft.LoraConfig(target_modules=["q_proj", "v_proj"]),
        "LoRA everywhere": lambda: peft.LoraConfig(target_modules=["q_proj", "o_proj", "fc1", "fc2"]),
        "VPT": VPTConfig,
        "AdaptFormer": AdaptFormerConfig,
    }
    base = MawsViTForImageClassification(tiny_config())
    return randomize(peft.get_peft_model(base, configs[method]()))


@needs_packing
@pytest.mark.parametrize(
    ("method", "packed"), [("LoRA", 4), ("LoRA everywhere", 2), ("VPT", LINEARS), ("AdaptFormer", LINEARS)]
)
@torch.no_grad()
def test_adapted_models_are_packed_around_their_adapters(method, packed):
    plain = adapted(method)
    expected, asked = plain(pictures(2)), plain(pictures(2), output_hidden_states=True)
    prepared = prepare_for_inference(plain)
    assert packed_layers(prepared) == 2 * packed
    assert_same_outputs(prepared(pictures(2)), expected)
    assert_same_outputs(prepared(pictures(2), output_hidden_states=True), asked)
    for attempt in (prepared.train, prepared.state_dict, prepared.half):
        with pytest.raises(PackedModelError):
            attempt()


@needs_packing
@torch.no_grad()
def test_merged_adapters_cost_nothing():
    plain = adapted("LoRA everywhere").merge_and_unload()
    prepared = prepare_for_inference(copy.deepcopy(plain))
    assert all(type(layer) is FusedLayer for layer in prepared.vit.layers)
    assert_same_outputs(prepared(pictures(2)), plain(pictures(2)))


@needs_packing
def test_adapters_that_come_later_are_refused():
    peft = pytest.importorskip("peft")
    from maws_hf.adapters import AdaptFormerConfig, VPTConfig

    for config in (VPTConfig(), AdaptFormerConfig(), peft.LoraConfig()):
        model = prepare_for_inference(MawsViTModel(tiny_config()))
        with pytest.raises((PackedModelError, ValueError), match=r"prepare_for_inference.*before"):
            peft.get_peft_model(model, config)
    with pytest.raises(PackedModelError, match=r"add_adapter\(\)"):
        model.add_adapter(peft.LoraConfig())
    with pytest.raises(PackedModelError, match="base of an adapter"):
        encoder_digest(model)


# ---------------------------------------------------------------- what it refuses, and what it leaves alone


@needs_packing
def test_refusals_leave_the_model_as_it_was(tmp_path):
    model = prepare_for_inference(randomize(MawsViTForImageClassification(tiny_config())))
    with torch.no_grad():
        expected = model(pictures(2)).logits
    for attempt in (
        model.train,
        model.requires_grad_,
        model.state_dict,
        model.half,
        lambda: model.to(torch.bfloat16),
        lambda: model.to("meta"),
        lambda: model.load_state_dict({}),
        lambda: model.save_pretrained(tmp_path / "saved"),
        lambda: model.load_adapter(str(tmp_path)),
        lambda: copy.deepcopy(model),
    ):
        with pytest.raises(PackedModelError, match="do it before, or with the model loaded anew"):
            attempt()
    assert not (tmp_path / "saved").exists()
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.eval()(pictures(2)).logits, expected)


@needs_packing
def test_preparing_twice_changes_nothing():
    model = prepare_for_inference(randomize(MawsViTModel(tiny_config())))
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    prepare_for_inference(model)
    assert [module for module in model.modules() if isinstance(module, PackedLinear)] == layers


def test_where_nothing_can_be_packed_only_gradients_and_training_end(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = randomize(MawsViTModel(tiny_config())).train()
    names = list(model.state_dict())
    assert prepare_for_inference(model) is model
    assert packed_layers(model) == 0
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert list(model.state_dict()) == names
    model.train()


def test_other_models_are_an_error():
    with pytest.raises(TypeError, match="Sequential is no MAWS model"):
        prepare_for_inference(nn.Sequential(nn.Linear(2, 2)))


# ---------------------------------------------------------------- for a while


@needs_packing
def test_after_the_while_the_model_is_as_it_was():
    model = randomize(MawsViTForImageClassification(tiny_config()))
    parameters = {name: (parameter, parameter.detach().clone()) for name, parameter in model.named_parameters()}
    classes = [type(module) for module in model.modules()]

    @torch.inference_mode()
    def fail_in_the_while() -> None:
        with prepared_for_inference(model):
            assert packed_layers(model) == 2 * LINEARS
            raise KeyError

    with pytest.raises(KeyError):
        fail_in_the_while()
    assert [type(module) for module in model.modules()] == classes
    assert model.state_dict().keys() == parameters.keys()
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name][0]
        assert torch.equal(parameter, parameters[name][1])
        assert parameter.requires_grad
    model.train()(pictures(2), labels=torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@needs_packing
@torch.no_grad()
def test_under_autocast_it_is_no_farther_from_the_truth_than_the_plain_model():
    if not can_pack(nn.Linear(1, 1), torch.bfloat16):
        pytest.skip("oneDNN does not take bfloat16 on this processor")
    model = randomize(MawsViTModel(tiny_config()))
    weights = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    images = pictures(64)
    truth = copy.deepcopy(model).double()(images).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(images).last_hidden_state
    with prepared_for_inference(model, torch.bfloat16), torch.autocast("cpu", torch.bfloat16):
        assert packed_layers(model) == 2 * LINEARS
        found = model(images).last_hidden_state
    assert found.dtype == plain.dtype
    assert distance(found, truth) < 1.1 * distance(plain, truth)
    for name, parameter in model.named_parameters():
        assert parameter is weights[name][0]
        assert torch.equal(parameter, weights[name][1])


@needs_packing
def test_a_while_does_not_undo_what_is_for_good_nor_touch_a_model_in_training():
    model = MawsViTModel(tiny_config()).train()
    with prepared_for_inference(model):
        assert packed_layers(model) == 0
    prepare_for_inference(model)
    with prepared_for_inference(model):
        pass
    assert packed_layers(model) == 2 * LINEARS


@needs_packing
@torch.no_grad()
def test_a_hook_on_the_activation_is_called_before_and_after():
    model = randomize(MawsViTModel(tiny_config()))
    expected, seen = model(pictures(2)), []
    first, second = (layer.mlp.activation_fn for layer in model.layers)
    first.register_forward_hook(lambda module, inputs, output: seen.append(output))
    prepare_for_inference(model)
    assert_same_outputs(model(pictures(2)), expected)
    second.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert_same_outputs(model(pictures(2)), expected)
    assert len(seen) == 1 + 2


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook", "forward"])
@torch.no_grad()
def test_a_layer_that_somebody_listens_to_is_not_packed(kind: str):
    model, calls = MawsViTModel(tiny_config()).eval(), []
    listened = model.layers[0].attention.q_proj
    if kind == "forward":  # as Accelerate does
        forward = listened.forward
        listened.forward = lambda hidden_states: (calls.append(kind), forward(hidden_states))[1]
    else:
        getattr(listened, kind)(lambda *_: calls.append(kind))
    prepare_for_inference(model)(torch.zeros(1, 3, 32, 32))
    assert calls == [kind]
