"""VPT and AdaptFormer compute what their papers say, and behave like PEFT's own methods."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import LNTuningConfig, LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from tiny import tiny_config
from tiny_lit import padded, random_captions, tiny_lit
from torch import Tensor, nn

from maws_hf import MawsMAEForPreTraining, MawsViTBackbone, MawsViTForImageClassification, MawsViTModel
from maws_hf.adapters import AdaptFormerConfig, VPTConfig
from maws_hf.hub.export import export_model

CONFIGS = {
    "vpt_deep": lambda **fields: VPTConfig(num_prompts=3, **fields),
    "vpt_shallow": lambda **fields: VPTConfig(num_prompts=3, deep=False, **fields),
    "adaptformer": lambda **fields: AdaptFormerConfig(bottleneck=4, **fields),
}
METHODS = sorted(CONFIGS)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def randomize(model: nn.Module, seed: int = 0, trainable_only: bool = False) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad or not trainable_only:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


def encoder() -> MawsViTModel:
    return randomize(MawsViTModel(tiny_config())).eval()


def classifier() -> MawsViTForImageClassification:
    return randomize(MawsViTForImageClassification(tiny_config(num_labels=3))).eval()


def adapted(model: nn.Module, method: str, **fields) -> PeftModel:
    """With weights that are far from doing nothing."""
    return randomize(get_peft_model(model, CONFIGS[method](**fields)), seed=2, trainable_only=True).eval()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


# ---------------------------------------------------------------- what they compute


@torch.no_grad()
def test_vpt_is_tokens_after_the_class_token_new_ones_in_every_layer():
    base = encoder()
    plain = copy.deepcopy(base)
    model = adapted(base, "vpt_deep")
    prompts = [layer.vpt_prompts["default"] for layer in model.base_model.model.layers]
    tokens = plain.embeddings(IMAGES)
    for layer, prompt in zip(plain.layers, prompts, strict=True):
        tokens = torch.cat([tokens[:, :1], prompt.expand(2, -1, -1), tokens[:, -16:]], dim=1)
        tokens = layer(tokens)
    expected = plain.layernorm(torch.cat([tokens[:, :1], tokens[:, -16:]], dim=1))
    found = model(IMAGES)
    torch.testing.assert_close(found.last_hidden_state, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pooler_output, expected[:, 0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_shallow_vpt_transforms_its_tokens_like_any_other():
    base = encoder()
    plain = copy.deepcopy(base)
    model = adapted(base, "vpt_shallow")
    tokens = plain.embeddings(IMAGES)
    prompt = model.base_model.model.layers[0].vpt_prompts["default"]
    tokens = torch.cat([tokens[:, :1], prompt.expand(2, -1, -1), tokens[:, 1:]], dim=1)
    for layer in plain.layers:
        tokens = layer(tokens)
    expected = plain.layernorm(torch.cat([tokens[:, :1], tokens[:, 4:]], dim=1))
    torch.testing.assert_close(model(IMAGES).last_hidden_state, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_adaptformer_reads_the_stream_after_attention_and_before_the_norm():
    base = encoder()
    plain = copy.deepcopy(base)
    model = adapted(base, "adaptformer")
    tokens = plain.embeddings(IMAGES)
    for layer, with_branch in zip(plain.layers, model.base_model.model.layers, strict=True):
        attended, _ = layer.attention(layer.layernorm_before(tokens))
        stream = tokens + attended
        down, up = (part["default"] for part in (with_branch.mlp.adaptformer_down, with_branch.mlp.adaptformer_up))
        branch = 0.1 * F.linear(F.linear(stream, down.weight, down.bias).clamp(min=0), up.weight, up.bias)
        tokens = stream + layer.mlp(layer.layernorm_after(stream)) + branch
    torch.testing.assert_close(model(IMAGES).last_hidden_state, plain.layernorm(tokens), rtol=0, atol=1e-6)


def test_vpt_starts_within_the_published_bound():
    model = get_peft_model(MawsViTModel(tiny_config()), VPTConfig(num_prompts=200))
    prompts = model.base_model.model.layers[1].vpt_prompts["default"]
    bound = math.sqrt(6 / (3 * 8 * 8 + 32))
    assert prompts.abs().max() <= bound
    torch.testing.assert_close(prompts.std(), torch.tensor(bound / math.sqrt(3)), rtol=0.05, atol=0)
    model = get_peft_model(MawsViTModel(tiny_config(patch_size=(8, 16))), VPTConfig(num_prompts=200))
    prompts = model.base_model.model.layers[1].vpt_prompts["default"]
    bound = math.sqrt(6 / (3 * 8 * 16 + 32))
    assert 0.9 * bound < prompts.abs().max() <= bound


def test_the_defaults_are_those_of_the_reference_implementations():
    vpt, adaptformer = VPTConfig(), AdaptFormerConfig()
    assert (vpt.num_prompts, vpt.deep, vpt.prompt_dropout) == (5, True, 0.1)
    assert (adaptformer.bottleneck, adaptformer.scale, adaptformer.dropout) == (64, 0.1, 0.1)


@torch.no_grad()
def test_the_scale_is_a_factor_of_the_branch():
    added = []
    for scale in (0.1, 0.5):
        model = adapted(encoder(), "adaptformer", scale=scale)
        mlp, norm = (getattr(model.base_model.model.layers[0], name) for name in ("mlp", "layernorm_after"))
        stream = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(3))
        added.append(mlp(stream) - mlp.base_layer(norm.base_layer(stream)))
    torch.testing.assert_close(added[1], 5 * added[0], rtol=1e-4, atol=1e-5)


def test_adaptformer_starts_as_the_model_that_was_there():
    base = encoder()
    with torch.no_grad():
        expected = base(IMAGES).last_hidden_state
        model = get_peft_model(base, AdaptFormerConfig()).eval()
        torch.testing.assert_close(model(IMAGES).last_hidden_state, expected, rtol=0, atol=1e-6)
    down = model.base_model.model.layers[0].mlp.adaptformer_down["default"]
    assert down.weight.shape == (64, 32)
    assert down.weight.abs().max() <= 1 / math.sqrt(32)
    torch.testing.assert_close(down.weight.std(), torch.tensor(1 / math.sqrt(3 * 32)), rtol=0.05, atol=0)
    assert not down.bias.any()


@pytest.mark.parametrize(("method", "dropout"), [("vpt_deep", "prompt_dropout"), ("adaptformer", "dropout")])
def test_dropout_is_for_training_only(method, dropout):
    model = adapted(encoder(), method, **{dropout: 0.9})
    with torch.no_grad():
        assert torch.equal(model(IMAGES).pooler_output, model(IMAGES).pooler_output)
        model.train()
        assert not torch.equal(model(IMAGES).pooler_output, model(IMAGES).pooler_output)


@torch.no_grad()
def test_each_image_of_a_batch_loses_prompts_of_its_own():
    model = adapted(encoder(), "vpt_deep", prompt_dropout=0.5).train()
    first, second = model(IMAGES[:1].expand(2, -1, -1, -1)).pooler_output
    assert not torch.equal(first, second)


# ---------------------------------------------------------------- as PEFT's own


@pytest.mark.parametrize("method", METHODS)
def test_only_the_adapter_and_the_head_change_in_training(method):
    torch.manual_seed(0)  # of few units after the ReLU, one may answer to neither image
    base = classifier()
    before = weights_of(base)
    model = get_peft_model(base, CONFIGS[method](modules_to_save=["classifier"])).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    start = weights_of(model)
    for _ in range(2):  # AdaptFormer's first matrix has a gradient only when the second is no longer zero
        optimizer.zero_grad()
        model(IMAGES, labels=torch.tensor([0, 2])).loss.backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert changed == trainable
    assert all(".vpt_" in name or ".adaptformer_" in name or ".modules_to_save." in name for name in changed)
    restored = model.unload().state_dict()
    for name in before:
        assert torch.equal(restored[name], before[name]) is not name.startswith("classifier."), name


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_what_is_saved_comes_back_bit_for_bit(method, tmp_path: Path):
    model = adapted(classifier(), method, modules_to_save=["classifier"])
    model.save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(tmp_path)
    assert type(config) is type(CONFIGS[method]())
    assert config.peft_type in (PeftType.VPT, PeftType.ADAPTFORMER)
    again = PeftModel.from_pretrained(classifier(), tmp_path).eval()
    assert_equal(weights_of(again), weights_of(model))
    torch.testing.assert_close(again(IMAGES).logits, model(IMAGES).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_folder_with_an_adapter_loads_through_the_model_class(method, tmp_path: Path):
    classifier().save_pretrained(tmp_path / "base")
    base = MawsViTForImageClassification.from_pretrained(tmp_path / "base")
    model = adapted(base, method, modules_to_save=["classifier"])
    model.save_pretrained(tmp_path / "adapter")
    again = MawsViTForImageClassification.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(again(IMAGES).logits, model(IMAGES).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_disabled_and_unloaded_it_is_the_base(method):
    base = encoder()
    before = weights_of(base)
    expected = base(IMAGES).last_hidden_state
    model = adapted(base, method)
    assert (model(IMAGES).last_hidden_state - expected).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(model(IMAGES).last_hidden_state, expected)
    unloaded = model.unload()
    assert torch.equal(unloaded(IMAGES).last_hidden_state, expected)
    assert_equal(weights_of(unloaded), before)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_two_adapters_take_turns(method):
    model = adapted(encoder(), method)
    first = model(IMAGES).pooler_output
    model.add_adapter("other", CONFIGS[method]())
    assert torch.equal(model(IMAGES).pooler_output, first)
    model.set_adapter("other")
    randomize(model, seed=5, trainable_only=True)
    second = model(IMAGES).pooler_output
    assert (second - first).abs().max() > 1e-3
    model.set_adapter("default")
    assert torch.equal(model(IMAGES).pooler_output, first)
    model.delete_adapter("other")
    assert torch.equal(model(IMAGES).pooler_output, first)
    model.add_adapter("third", CONFIGS[method]())
    model.base_model.set_adapter(["default", "third"])
    with pytest.raises(ValueError, match="do not add up"):
        model(IMAGES)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_active_adapter_is_trained(method):
    def trained() -> set[str]:
        return {name.split(".")[-2 if "adaptformer" in name else -1] for name, p in parameters if p.requires_grad}

    model = get_peft_model(encoder(), CONFIGS[method]())
    model.add_adapter("other", CONFIGS[method]())
    parameters = list(model.named_parameters())
    assert trained() == {"default"}
    model.set_adapter("other")
    assert trained() == {"other"}


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_that_is_only_used_is_not_trained(method, tmp_path: Path):
    model = get_peft_model(encoder(), CONFIGS[method](inference_mode=True))
    assert not [name for name, p in model.named_parameters() if p.requires_grad]
    adapted(encoder(), method).save_pretrained(tmp_path)
    for trainable in (False, True):
        again = PeftModel.from_pretrained(encoder(), tmp_path, is_trainable=trainable)
        assert any(p.requires_grad for p in again.parameters()) is trainable


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_an_encoder_in_half_precision_stays_in_it(method, autocast):
    expected = adapted(encoder(), method)(IMAGES).pooler_output
    model = get_peft_model(encoder().bfloat16(), CONFIGS[method](), autocast_adapter_dtype=autocast)
    kinds = {p.dtype for p in model.parameters() if p.requires_grad}
    assert kinds == {torch.float32 if autocast else torch.bfloat16}  # as PEFT has it of LoRA
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.2).to(parameter.dtype)
    found = model.eval()(IMAGES.bfloat16()).pooler_output
    assert found.dtype == torch.bfloat16
    assert F.cosine_similarity(found.float(), expected).min() > 0.99


def test_beside_integer_weights_an_adapter_is_of_float32():
    model = encoder()
    for layer in model.layers:
        packed = layer.mlp.fc1.weight.to(torch.int8)
        layer.mlp.fc1.weight = nn.Parameter(packed, requires_grad=False)
    adapter = get_peft_model(model, AdaptFormerConfig(bottleneck=4))
    assert {p.dtype for p in adapter.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("name", ["VPT", "ADAPTFORMER"])
def test_the_methods_are_members_like_pefts_own(name):
    member = getattr(PeftType, name)
    assert member is PeftType(name) is PeftType[name] is copy.deepcopy(member)
    assert member in list(PeftType)
    assert (member.name, member.value) == (name, name)


@pytest.mark.parametrize("method", METHODS)
def test_merging_says_that_it_cannot_be(method):
    model = adapted(encoder(), method)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match=r"cannot be merged.*unload\(\)"):
            merge()


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_gives_the_same_gradients(method):
    gradients = []
    for checkpointing in (False, True):
        model = adapted(classifier(), method)
        if checkpointing:
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            module.training = not isinstance(module, nn.Dropout)
        for layer in model.modules():
            for dropout in ("prompt_dropout", "dropout"):
                if isinstance(getattr(layer, dropout, None), dict):
                    setattr(layer, dropout, dict.fromkeys(getattr(layer, dropout), 0.0))
        model(IMAGES, labels=torch.tensor([0, 2])).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_it_compiles_as_one_graph(method):
    model = adapted(encoder(), method)
    expected = model(IMAGES).pooler_output
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGES).pooler_output, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_the_class_token_shortcut_gives_the_same_feature(method):
    model = adapted(encoder(), method)
    expected = model(IMAGES).pooler_output
    found = model(IMAGES, class_token_only=True)
    assert found.last_hidden_state.shape == (2, 1, 32)
    torch.testing.assert_close(found.pooler_output, expected, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- other models


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["pixio", "vit", "dinov2"])
@torch.no_grad()
def test_exports_take_the_same_adapters(method, architecture, tmp_path: Path):
    ours = encoder()
    ours.save_pretrained(tmp_path / "ours")
    export = export_model(tmp_path / "ours", tmp_path / "theirs", architecture)
    theirs = getattr(transformers, export.model_class).from_pretrained(export.folder)
    expected = adapted(ours, method)(IMAGES).pooler_output
    model = adapted(theirs, method)
    torch.testing.assert_close(model(IMAGES).pooler_output, expected, rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path / "adapter")
    base = getattr(transformers, export.model_class).from_pretrained(export.folder)
    again = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(IMAGES).pooler_output, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_an_exported_lit_model_takes_the_same_adapters(method, tmp_path: Path):
    ours = tiny_lit(vision_config=tiny_config(intermediate_size=64))
    ours.save_pretrained(tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "theirs")
    theirs = transformers.VisionTextDualEncoderModel.from_pretrained(tmp_path / "theirs")
    expected = adapted(ours, method).base_model.model.get_image_features(IMAGES)
    model = adapted(theirs, method)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names
    assert all(".vision_model." in name for name in names)
    found = model.base_model.model.get_image_features(IMAGES)
    found, expected = (getattr(features, "pooler_output", features) for features in (found, expected))
    torch.testing.assert_close(F.normalize(found), F.normalize(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_in_a_lit_model_only_the_image_tower_is_adapted(method):
    model = get_peft_model(tiny_lit(), CONFIGS[method]())
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names
    assert all(".vision_model.layers." in name for name in names)
    outputs = model(**padded(random_captions(2)), pixel_values=torch.randn(2, 3, 32, 32), return_loss=True)
    outputs.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", METHODS)
def test_in_an_autoencoder_only_the_encoder_is_adapted(method):
    model = get_peft_model(MawsMAEForPreTraining(tiny_config()), CONFIGS[method]())
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names
    assert all(".vit.layers." in name for name in names)
    assert model(IMAGES).loss.isfinite()


def test_a_model_without_known_layers_is_an_error():
    bert = transformers.BertModel(
        transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40)
    )
    with pytest.raises(ValueError, match="does not know the modules of model_type='bert'"):
        get_peft_model(bert, VPTConfig())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: VPTConfig(num_prompts=0), "num_prompts=0"),
        (lambda: VPTConfig(prompt_dropout=1.0), "prompt_dropout=1.0"),
        (lambda: AdaptFormerConfig(bottleneck=0), "bottleneck=0"),
        (lambda: AdaptFormerConfig(dropout=-0.1), "dropout=-0.1"),
    ],
)
def test_values_that_cannot_be_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        config()


@pytest.mark.parametrize("use_dora", [False, True])
def test_lora_knows_where_to_go(use_dora):
    model = get_peft_model(classifier(), LoraConfig(use_dora=use_dora, modules_to_save=["classifier"]))
    adapted_modules = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in model.state_dict() if ".lora_" in name}
    assert adapted_modules == {"q_proj", "v_proj"}
    pixio = transformers.PixioModel(transformers.PixioConfig(hidden_size=32, num_attention_heads=4, image_size=32))
    theirs = get_peft_model(pixio, LoraConfig(use_dora=use_dora))
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in theirs.state_dict() if ".lora_" in name} == {
        "q_proj",
        "v_proj",
    }
    in_lit = get_peft_model(tiny_lit(), LoraConfig(use_dora=use_dora))
    assert all(".vision_model." in name for name in in_lit.state_dict() if ".lora_" in name)


# ---------------------------------------------------------------- what PEFT can ask of them


@pytest.mark.parametrize("deep", [True, False])
@torch.no_grad()
def test_prompts_begin_in_the_first_layer_that_is_not_left_out(deep: bool):
    config = tiny_config(num_hidden_layers=4)
    model = get_peft_model(
        randomize(MawsViTModel(config)), VPTConfig(num_prompts=3, deep=deep, exclude_modules=r"layers\.[01]")
    ).eval()
    lengths = []
    for layer in model.base_model.model.layers:
        layer.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    assert model(IMAGES).last_hidden_state.shape == (2, 17, 32)
    assert lengths == [17, 17, 17, 20]


@torch.no_grad()
def test_each_adapter_knows_where_its_own_prompts_begin():
    def lengths() -> list[int]:
        seen = []
        hooks = [
            layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
            for layer in model.base_model.model.layers
        ]
        model(IMAGES)
        for hook in hooks:
            hook.remove()
        return seen

    base = randomize(MawsViTModel(tiny_config(num_hidden_layers=4))).eval()
    model = get_peft_model(base, VPTConfig(num_prompts=3, exclude_modules=r"layers\.[01]"))
    model.add_adapter("all", VPTConfig(num_prompts=2))
    assert not any(layer.training for layer in model.base_model.model.layers)
    assert lengths() == [17, 17, 17, 20]
    model.set_adapter("all")
    assert lengths() == [17, 19, 19, 19]
    model.delete_adapter("default")
    model.add_adapter("default", VPTConfig(num_prompts=3, exclude_modules=r"layers\.0"))
    model.set_adapter("default")
    assert lengths() == [17, 17, 20, 20]


def test_prompts_that_nothing_takes_out_are_refused():
    model = encoder()
    with pytest.raises(ValueError, match="leaves out the encoder's final norm"):
        get_peft_model(model, VPTConfig(target_modules=r"layers\.\d+"))
    assert model(IMAGES).last_hidden_state.shape == (2, 17, 32)
    with pytest.raises(ValueError, match="apply_layernorm=False"):
        get_peft_model(MawsViTBackbone(tiny_config(apply_layernorm=False)), VPTConfig())


@pytest.mark.parametrize("method", METHODS)
def test_images_of_one_batch_have_one_adapter(method: str):
    model = adapted(encoder(), method)
    with pytest.raises(ValueError, match="adapter_names"):
        model(IMAGES, adapter_names=["default", "__base__"])


@pytest.mark.parametrize("method", METHODS)
def test_the_other_adapter_takes_over_from_one_that_is_deleted(method: str, tmp_path: Path):
    model = adapted(encoder(), method)
    model.add_adapter("other", CONFIGS[method]())
    randomize(model, seed=3, trainable_only=True)
    model.set_adapter("other")
    expected = model.eval()(IMAGES).pooler_output
    model.set_adapter("default")
    model.delete_adapter("default")
    assert model.active_adapters == ["other"]
    assert torch.equal(model(IMAGES).pooler_output, expected)
    model.save_pretrained(tmp_path)


def test_ln_tuning_trains_norms():
    model = get_peft_model(classifier(), LNTuningConfig())
    trained = {name.split(".ln_tuning")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 + 1
    assert all("layernorm" in name for name in trained)
    in_lit = get_peft_model(tiny_lit(), LNTuningConfig())
    assert all(".vision_model." in name for name, p in in_lit.named_parameters() if p.requires_grad)
