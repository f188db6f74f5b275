"""A model loads whole or not at all; formats of others are read as what they are."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from tiny_lit import tiny_lit
from transformers import (
    AutoModel,
    Dinov2Config,
    Dinov2Model,
    PixioConfig,
    PixioModel,
    SwinConfig,
    ViTConfig,
    ViTMAEConfig,
    ViTModel,
)

from maws_hf import MawsLiTModel, MawsMAEForPreTraining, MawsViTConfig, MawsViTForImageClassification, MawsViTModel
from maws_hf.hub.export import export_model
from maws_hf.models import loading
from maws_hf.models.foreign import ForeignModelError, lit_fields, translate_dual_encoder, translate_encoder, vit_fields
from maws_hf.models.loading import refuse_adapter
from maws_hf.models.weight_files import ModelLoadingError, hub_options_of, without_hub_options

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    MawsViTModel(tiny_config()).save_pretrained(tmp_path)
    return tmp_path


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors") | changes
    save_file(
        {name: tensor for name, tensor in weights.items() if tensor is not None},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def edit_config(folder: Path, **changes) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | changes))


def message_of(folder: Path, model_class=MawsViTModel) -> str:
    with pytest.raises(ValueError) as raised:
        model_class.from_pretrained(folder)
    message = str(raised.value)
    assert message.startswith(str(folder)), message
    return message


def test_a_missing_weight_is_an_error_and_no_random_number(folder):
    edit_weights(folder, **{"layers.1.mlp.fc1.bias": None})
    assert "lacks layers.1.mlp.fc1.bias" in message_of(folder)


def test_an_unknown_weight_is_an_error(folder):
    edit_weights(folder, **{"layers.0.gate.weight": torch.zeros(2)})
    assert "has unknown layers.0.gate.weight" in message_of(folder)


def test_a_weight_of_another_shape_is_named_with_both_shapes(folder):
    edit_weights(folder, **{"layernorm.bias": torch.zeros(5)})
    assert "layernorm.bias (5,), not (32,)" in message_of(folder)


def test_only_a_head_may_be_new(folder):
    classifier = MawsViTForImageClassification.from_pretrained(folder, num_labels=3)
    assert classifier.classifier.weight.shape == (3, 32)
    MawsMAEForPreTraining.from_pretrained(folder)
    edit_weights(folder, **{"cls_token": None, "embeddings.cls_token": None})
    assert "lacks vit.embeddings.cls_token" in message_of(folder, MawsViTForImageClassification)


def test_who_asks_for_the_list_gets_it_instead_of_an_error(folder):
    edit_weights(folder, **{"layers.1.mlp.fc1.bias": None})
    _, info = MawsViTModel.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == {"layers.1.mlp.fc1.bias"}


@pytest.mark.parametrize(
    "damage", [lambda b: b[:1000], lambda b: b[:-7], lambda b: b"", lambda b: b"\xff" * 8 + b[8:]]
)
def test_a_damaged_file_is_named(folder, damage):
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert "damaged" in message_of(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads=5 is not possible"),
        ({"image_size": 30}, "image_size=30 is not possible"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hiden_size": 32}, "no field 'hiden_size'"),
        ({"patch_size": [8, 8, 8]}, "patch_size"),
        ({"image_std": [0.2, 0.2, 0.0]}, "image_std"),
        ({"num_hidden_layers": 3}, "lacks layers.2"),
        ({"hidden_size": 64}, "has another shape of"),
    ],
)
def test_a_config_that_cannot_be_is_named_with_its_field(folder, changes, message):
    edit_config(folder, **changes)
    assert message in message_of(folder)


def test_a_config_that_is_no_json_is_an_error(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(OSError, match=r"config\.json"):
        MawsViTModel.from_pretrained(folder)


@pytest.mark.parametrize("content", ["[]", "3", '"vit"'])
def test_a_config_that_is_no_object_is_named(folder, content):
    (folder / "config.json").write_text(content)
    assert "config.json" in message_of(folder)


def test_a_folder_without_a_config_is_no_model_of_the_default_size(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        MawsViTConfig.from_pretrained(tmp_path)


def test_another_kind_of_model_is_refused_by_name(tmp_path):
    SwinConfig().save_pretrained(tmp_path)
    assert "model_type='swin' is not a vision model that can be read" in message_of(tmp_path)


def test_two_class_tokens_are_refused(tmp_path):
    config = PixioConfig(n_cls_tokens=2, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=32)
    PixioModel(config).save_pretrained(tmp_path)
    assert "n_cls_tokens=2" in message_of(tmp_path)


def test_a_gated_mlp_is_refused():
    fields = Dinov2Config(hidden_size=32, num_attention_heads=4, use_swiglu_ffn=True).to_dict()
    with pytest.raises(ForeignModelError, match="use_swiglu_ffn=True"):
        vit_fields(fields)


def test_an_autoencoder_whose_masking_was_switched_off_hides_our_share():
    fields = ViTMAEConfig(hidden_size=32, num_attention_heads=4, mask_ratio=0.0).to_dict()
    assert MawsViTConfig(**vit_fields(fields)).mask_ratio == 0.75
    assert vit_fields({**fields, "mask_ratio": 0.6})["mask_ratio"] == 0.6


def test_dinov2_with_layer_scale_is_refused(tmp_path):
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=28, layerscale_value=0.5
    )
    Dinov2Model(config).save_pretrained(tmp_path)
    with pytest.raises(ForeignModelError, match=r"layer_scale1\.lambda1 is not one"):
        MawsViTModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (torch.randn(4, 4), 0.0),
        (2.0**-14 * torch.eye(4), 0.1),
        (3e-4 * torch.eye(4), 0.0),
        (0.5 * torch.eye(4), 0.0),
        (-(2.0**-14) * torch.eye(4), 0.0),
    ],
    ids=["weight", "bias", "no power of two", "not linear", "negative"],
)
def test_a_dual_encoder_with_a_trained_pooler_is_refused(weight, bias):
    state_dict = {
        "text_model.pooler.dense.weight": weight,
        "text_model.pooler.dense.bias": torch.full((4,), bias),
        "text_projection.weight": torch.zeros(2, 4),
    }
    with pytest.raises(ForeignModelError, match="pooler is trained"):
        translate_dual_encoder(state_dict)


def test_pickled_weights_are_not_read(tmp_path):
    ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=32).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    assert "maws-hf convert" in message_of(tmp_path)


@pytest.mark.parametrize("original_format", [True, False])
def test_both_spellings_of_vit_are_read(original_format, tmp_path):
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, image_size=32, patch_size=8
    )
    theirs = ViTModel(config).eval()
    theirs.save_pretrained(tmp_path, save_original_format=original_format)
    ours = MawsViTModel.from_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(images).last_hidden_state, theirs(images).last_hidden_state)
    assert ours.config.layer_norm_eps == 1e-12  # theirs, not our default


def test_what_transformers_itself_writes_for_vitmae_is_read():
    names = translate_encoder(
        {
            "decoder.decoder_encoder.layer.0.attention.attention.query.bias": torch.zeros(1),
            "decoder.decoder_layers.1.output.dense.bias": torch.zeros(1),
        }
    )
    assert set(names) == {"decoder.layers.0.attention.q_proj.bias", "decoder.layers.1.mlp.fc2.bias"}


def timm_folder(tmp_path: Path, **model_args) -> dict[str, torch.Tensor]:
    """The recorded model of timm 0.9.7 in a folder as timm's Hub repositories are."""
    golden = load_file(GOLDEN / "timm_vit_tiny.safetensors")
    weights = {name.removeprefix("weight/"): t for name, t in golden.items() if name.startswith("weight/")}
    save_file(weights, tmp_path / "model.safetensors")
    fields = {
        "architecture": "vit_tiny_patch8_32",
        "num_classes": 5,
        "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 4, **model_args},
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "tag": "made"},
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return golden


def test_a_repository_of_timm_gives_the_recorded_numbers(tmp_path):
    golden = timm_folder(tmp_path)
    classifier, encoder = (c.from_pretrained(tmp_path) for c in (MawsViTForImageClassification, MawsViTModel))
    with torch.no_grad():
        torch.testing.assert_close(classifier(golden["images"]).logits, golden["logits"], rtol=0, atol=1e-5)
        features = encoder(golden["images"]).last_hidden_state
    torch.testing.assert_close(features, golden["forward_features"], rtol=0, atol=1e-5)
    assert encoder.config.image_mean == (0.5, 0.5, 0.5)
    assert encoder.config.image_std == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("size", "width", "depth", "heads"),
    [
        ("tiny", 192, 12, 3),
        ("small", 384, 12, 6),
        ("base", 768, 12, 12),
        ("large", 1024, 24, 16),
        ("huge", 1280, 32, 16),
    ],
)
def test_the_sizes_of_timm_are_known_by_name(size, width, depth, heads):
    config = MawsViTConfig(**vit_fields({"architecture": f"vit_{size}_patch14_224.augreg"}))
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (width, depth, heads)
    assert (config.intermediate_size, config.patch_size, config.image_size) == (4 * width, 14, 224)
    assert (config.num_labels, config.num_channels) == (1000, 3)  # timm's defaults


def test_a_wrapped_model_of_timm_and_its_channels_are_read():
    fields = {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", "model_args": {"in_chans": 1}}
    assert vit_fields(fields)["num_channels"] == 1


def test_a_state_dict_of_the_original_autoencoder_is_taken_as_it_is():
    golden = load_file(GOLDEN / "mae_tiny.safetensors")
    weights = {name.removeprefix("weight/"): t for name, t in golden.items() if name.startswith("weight/")}
    config = tiny_config(intermediate_size=128, decoder_intermediate_size=96, norm_pix_loss=True)
    model = MawsMAEForPreTraining.from_pretrained(None, config=config, state_dict=weights).eval()
    with torch.no_grad():
        loss = model(golden["images"], noise=golden["noise"]).loss
    torch.testing.assert_close(loss, golden["loss/norm_pix"], rtol=0, atol=1e-5)


def test_a_state_dict_of_timm_is_taken_as_it_is():
    golden = load_file(GOLDEN / "timm_vit_tiny.safetensors")
    weights = {name.removeprefix("weight/"): t for name, t in golden.items() if name.startswith("weight/")}
    config = tiny_config(intermediate_size=128, num_labels=5)
    classifier = MawsViTForImageClassification.from_pretrained(None, config=config, state_dict=weights)
    with torch.no_grad():
        torch.testing.assert_close(classifier(golden["images"]).logits, golden["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "convnext_tiny"}, "no plain ViT of timm"),
        ({"model_args": {"init_values": 1e-5}}, "init_values=1e-05"),
        ({"model_args": {"global_pool": "avg"}}, "global_pool='avg'"),
    ],
)
def test_other_models_of_timm_are_refused(changes, message, tmp_path):
    timm_folder(tmp_path)
    edit_config(tmp_path, **changes)
    assert message in message_of(tmp_path)


def test_the_image_tower_of_a_lit_model_is_an_encoder(tmp_path):
    lit = tiny_lit()
    lit.save_pretrained(tmp_path)
    tower = MawsViTModel.from_pretrained(tmp_path)
    for name, tensor in lit.vision_model.state_dict().items():
        assert torch.equal(tower.state_dict()[name], tensor), name
    assert isinstance(MawsViTConfig.from_pretrained(tmp_path), MawsViTConfig)


def test_lit_from_an_encoder_is_refused(folder):
    with pytest.raises(ValueError, match="from_vision_text_pretrained"):
        MawsLiTModel.from_pretrained(folder)


@pytest.mark.parametrize("wrap", ["compile", "compiled_object", "bfloat16"])
def test_what_is_saved_is_what_was_there(wrap, tmp_path):
    torch.manual_seed(1)
    model = MawsMAEForPreTraining(tiny_config())
    if wrap == "bfloat16":
        model = model.to(torch.bfloat16)
    wrapped = torch.compile(model, backend="eager") if wrap == "compiled_object" else model
    if wrap == "compile":
        wrapped.compile(backend="eager")
    wrapped(torch.randn(1, 3, 32, 32, dtype=model.dtype))
    wrapped.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert not [name for name in saved if "_orig_mod" in name or name.startswith("module.")]
    loaded = MawsMAEForPreTraining.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys() == saved.keys()
    for name, tensor in model.state_dict().items():  # also the decoder's table, which is a buffer
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    torch.manual_seed(2)
    MawsViTModel(tiny_config()).save_pretrained(tmp_path / "base")
    adapted = get_peft_model(MawsViTModel.from_pretrained(tmp_path / "base"), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", "[]", r"adapter_config\.json holds a list"),
        ("adapter_config.json", "", r"adapter_config\.json is not JSON"),
        ("adapter_config.json", "[" * 5000, r"adapter_config\.json is not JSON"),
        ("adapter_config.json", '{"peft_type": "FOO"}', "peft_type 'FOO' is no method"),
        ("adapter_config.json", '{"peft_type": "LORA"}', "names no base of the adapter: load the base, and"),
        ("base_record.json", "{", r"base_record\.json is not JSON"),
        ("base_record.json", '{"modules": {"head": 3}}', r"base_record\.json is not what `write_base_record` writes"),
        ("adapter_model.safetensors", "short", "its safetensors file is damaged"),
    ],
)
def test_a_damaged_file_of_an_adapter_is_named(adapter, file, content, message):
    (adapter / file).write_text(content)
    with pytest.raises(ModelLoadingError, match=f"^{adapter}.*{message}"):
        MawsViTModel.from_pretrained(adapter)


def test_an_adapter_may_lie_in_a_subfolder(adapter, tmp_path):
    expected = MawsViTModel.from_pretrained(adapter).state_dict()
    found = MawsViTModel.from_pretrained(tmp_path, subfolder="adapter").state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_of_where_an_adapter_lies_only_what_concerns_any_file_is_passed_on_to_its_base(adapter, tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def load(where, **options):
        raise Asked(where, options)

    monkeypatch.setattr(MawsViTModel, "_load", load)
    with pytest.raises(Asked) as asked:
        MawsViTModel.from_pretrained(tmp_path, subfolder="adapter", revision="v1", token="secret", dtype="auto")
    base = str(tmp_path / "base")
    assert asked.value.args == (base, {"config": None, "token": "secret", "dtype": "auto"})


def test_an_adapter_of_a_model_made_in_memory_names_no_base(tmp_path):
    made = MawsViTModel(tiny_config())
    copied = MawsViTModel.from_pretrained(None, config=made.config, state_dict=made.state_dict())
    assert copied.name_or_path == ""
    for name, model in (("made", made), ("copied", copied)):
        get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / name)
        with pytest.raises(ModelLoadingError, match="names no base of the adapter"):
            MawsViTModel.from_pretrained(tmp_path / name)


def test_an_adapter_is_no_start_where_whole_models_are_wanted(adapter):
    for refused in (refuse_adapter, MawsViTConfig.from_pretrained):
        with pytest.raises((ModelLoadingError, FileNotFoundError), match=f"^{adapter} "):
            refused(adapter)
    with pytest.raises(ModelLoadingError, match="is an adapter, and whole models are wanted here: merge it"):
        MawsLiTModel.from_vision_text_pretrained(str(adapter), "anything")


@pytest.mark.parametrize("base_format", ["ours", "exported"])
def test_an_adapter_comes_back_on_its_base_whatever_format_that_has(base_format, tmp_path):
    torch.manual_seed(2)
    MawsViTForImageClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "exported")
    base = MawsViTForImageClassification.from_pretrained(tmp_path / base_format)
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], init_lora_weights=False)
    adapted = get_peft_model(base, lora).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = adapted(images).logits
        loaded = MawsViTForImageClassification.from_pretrained(tmp_path / "adapter")
    for name, tensor in adapted.base_model.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits, expected, rtol=0, atol=1e-6)
    edit_weights(tmp_path / base_format, **{"vit.layernorm.bias": None})
    with pytest.raises(ValueError, match=r"lacks vit\.layernorm\.bias"):
        MawsViTForImageClassification.from_pretrained(tmp_path / "adapter")


def test_offline_says_how_to_fetch_before_any_tower_is_built(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(MawsViTModel, "from_pretrained", lambda *_, **__: pytest.fail("a tower was loaded"))
    with pytest.raises(
        OSError, match=r"(?s)no folder org/text-tower here, .*hf download org/text-tower.*hf auth login"
    ):
        MawsLiTModel.from_vision_text_pretrained("org/maws-vit-b", "org/text-tower")
    with pytest.raises(OSError, match="hf download org/maws-vit-b"):
        MawsViTConfig.from_pretrained("org/maws-vit-b")
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError) as said:
        MawsViTModel.from_pretrained("org/maws-vit-b")
    assert str(said.value).count("hf download") == 1


@pytest.mark.parametrize("change", ["missing", "unknown", "deeper", "half of our own"])
def test_a_state_dict_is_all_or_nothing_too(change):
    golden = load_file(GOLDEN / "timm_vit_tiny.safetensors")
    weights = {name.removeprefix("weight/"): t for name, t in golden.items() if name.startswith("weight/")}
    config = tiny_config(intermediate_size=128, num_labels=5)
    if change == "missing":
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("blocks.1.")}
    elif change == "unknown":
        weights["blocks.0.ls1.gamma"] = torch.ones(32)
    elif change == "deeper":
        config.num_hidden_layers = 1
    else:
        weights = dict(list(MawsViTForImageClassification(config).state_dict().items())[:9])
    with pytest.raises(ModelLoadingError, match="state_dict is not a whole MawsViTForImageClassification"):
        MawsViTForImageClassification.from_pretrained(None, config=config, state_dict=weights)


@pytest.fixture
def exported(folder, tmp_path_factory) -> Path:
    return export_model(folder, tmp_path_factory.mktemp("exports") / "pixio").folder


@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16, "float16"])
def test_the_type_of_an_export_s_weights_can_be_chosen(exported, dtype):
    wanted = {"auto": torch.float32, "float16": torch.float16}.get(dtype, dtype)
    assert MawsViTModel.from_pretrained(exported, dtype=dtype).dtype == wanted


def test_towers_of_a_lit_model_may_be_exports(exported, tmp_path):
    tiny_lit().text_model.save_pretrained(tmp_path / "text")
    lit = MawsLiTModel.from_vision_text_pretrained(exported, tmp_path / "text")
    assert torch.equal(lit.vision_model.layernorm.weight, MawsViTModel.from_pretrained(exported).layernorm.weight)


def test_a_variant_is_what_is_loaded(exported):
    weights = {name: tensor + 1 for name, tensor in load_file(exported / "model.safetensors").items()}
    save_file(weights, exported / "model.ema.safetensors", metadata={"format": "pt"})
    plain, ema = (MawsViTModel.from_pretrained(exported, variant=name) for name in (None, "ema"))
    assert torch.equal(ema.layernorm.bias, plain.layernorm.bias + 1)
    with pytest.raises(ForeignModelError, match=r"model\.fp8\.safetensors"):
        MawsViTModel.from_pretrained(exported, variant="fp8")


def test_a_variant_of_another_library_may_be_in_shards(exported, tmp_path):
    theirs = AutoModel.from_pretrained(exported)
    theirs.save_pretrained(tmp_path / "shards", variant="fp16", max_shard_size="20KB")
    assert (tmp_path / "shards" / "model.safetensors.index.fp16.json").is_file()
    ours = MawsViTModel.from_pretrained(tmp_path / "shards", variant="fp16")
    assert torch.equal(ours.layernorm.bias, theirs.layernorm.bias)


def test_shards_of_another_library_may_lie_in_a_subfolder(exported, tmp_path):
    theirs = AutoModel.from_pretrained(exported)
    theirs.save_pretrained(tmp_path / "shards" / "part", max_shard_size="20KB")
    ours = MawsViTModel.from_pretrained(tmp_path / "shards", subfolder="part")
    assert torch.equal(ours.layernorm.bias, theirs.layernorm.bias)


def test_where_files_are_fetched_from_is_told_to_all_that_fetch():
    options = {"cache_dir": "c", "force_download": True, "local_files_only": True, "proxies": {"https": "p"}}
    options |= {"revision": "v1", "subfolder": "s", "token": "t"}
    assert hub_options_of({**options, "dtype": "auto"}) == options
    assert without_hub_options({**options, "dtype": "auto"}) == {"dtype": "auto"}


def test_shards_lie_beside_their_index(exported):
    (exported / "model.safetensors").rename(exported.parent / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"layernorm.bias": "../elsewhere.safetensors"}}
    (exported / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadingError, match=r"names '\.\./elsewhere\.safetensors'"):
        MawsViTModel.from_pretrained(exported)


def test_a_config_of_another_library_is_refused_by_name(exported):
    with pytest.raises(ForeignModelError, match="config must be a MawsViTConfig"):
        MawsViTModel.from_pretrained(exported, config=ViTConfig())
    edit_config(exported, maws_config=[1])
    assert "maws_config=[1] is no object" in message_of(exported)


def test_an_image_tower_with_a_pooler_is_refused():
    vision = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4).to_dict()
    fields = {"model_type": "vision-text-dual-encoder", "vision_config": vision, "text_config": {}}
    with pytest.raises(ForeignModelError, match="a ViT with a pooler"):
        lit_fields(fields)
    del vision["pooler_act"]  # as older versions of transformers write it, whose pooler ends in tanh
    with pytest.raises(ForeignModelError, match="a ViT with a pooler"):
        lit_fields(fields)
    vision["pooler_act"] = "linear"
    assert lit_fields(fields)["projection_dim"] == 512  # where it is not said, as in transformers
    for weight, bias in ((torch.randn(4, 4), torch.zeros(4)), (torch.eye(4), torch.ones(4))):
        with pytest.raises(ForeignModelError, match=r"vision_model\.pooler is trained"):
            translate_dual_encoder(
                {"vision_model.pooler.dense.weight": weight, "vision_model.pooler.dense.bias": bias}
            )


@pytest.mark.parametrize("name", ["./nothere", "/nothere/model", "runs/demo/nothere", "tests/nothere"])
def test_a_missing_folder_is_no_repository(name, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(loading, "model_info", unreachable)
    monkeypatch.chdir(GOLDEN.parents[1])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        MawsViTModel.from_pretrained(name)


def test_a_file_is_no_model_and_how_it_becomes_one_is_said(folder: Path):
    file = folder / "mae.pth"
    file.write_bytes(b"weights")
    for read in (MawsViTModel.from_pretrained, MawsViTConfig.from_pretrained, refuse_adapter):
        with pytest.raises(ModelLoadingError, match=r"mae\.pth is a file, .*`maws-hf convert .*mae\.pth --output_dir"):
            read(str(file))
    with pytest.raises(
        ModelLoadingError, match=re.escape(f"is a file, and the folder of a model is wanted: give {folder}")
    ):
        MawsViTModel.from_pretrained(folder / "model.safetensors")
    assert MawsViTConfig.from_pretrained(folder / "config.json").hidden_size == 32


def test_weights_in_a_pickle_are_not_read_however_restricted(tmp_path):
    MawsViTModel(tiny_config()).save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        MawsViTModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use_safetensors=False"):
        MawsViTModel.from_pretrained(tmp_path, use_safetensors=False)


@pytest.mark.parametrize(
    "content",
    [
        '{"metadata": {}, "weight_map": {"layernorm.bias": "../outside.safetensors"}}',
        '{"metadata": {}, "weight_map": {"layernorm.bias": "pytorch_model.bin"}}',
        '{"metadata": {}, "weight_map": {"layernorm.bias": 3}}',
        '{"weight_map": {}}',
        '{"metadata": {}, "weight_map": []}',
        "[]",
        "{",
    ],
)
def test_an_index_that_is_none_or_leads_out_of_its_folder_is_refused_by_name(tmp_path, content: str):
    model = MawsViTModel(tiny_config())
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(content)
    for where, options in ((tmp_path / "model", {}), (tmp_path, {"subfolder": "model"})):
        with pytest.raises(ModelLoadingError, match=r"model\.safetensors\.index\.json"):
            MawsViTModel.from_pretrained(where, **options)


@pytest.mark.parametrize(
    ("model_class", "left_out"),
    [(MawsViTForImageClassification, "classifier.bias"), (MawsMAEForPreTraining, "decoder.layers.1.mlp.fc1.bias")],
)
def test_half_a_head_is_none(model_class, left_out: str, tmp_path: Path):
    model_class(tiny_config(num_labels=3)).save_pretrained(tmp_path)
    edit_weights(tmp_path, **{left_out: None})
    assert f"lacks {left_out}" in message_of(tmp_path, model_class)


def test_with_other_sizes_only_a_head_starts_anew(tmp_path: Path):
    MawsViTForImageClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path)
    loose = {"ignore_mismatched_sizes": True}
    assert MawsViTForImageClassification.from_pretrained(tmp_path, num_labels=4, **loose).num_labels == 4
    with pytest.raises(ModelLoadingError, match="has another shape of classifier"):
        MawsViTForImageClassification.from_pretrained(tmp_path, num_labels=4)
    for model_class in (MawsViTModel, MawsViTForImageClassification):
        with pytest.raises(ModelLoadingError, match="has another shape of"):
            model_class.from_pretrained(tmp_path, intermediate_size=40, **loose)
        with pytest.raises(ModelLoadingError, match=r"position_embeddings .* then call set_image_size"):
            model_class.from_pretrained(tmp_path, image_size=64, **loose)
    model = MawsViTModel.from_pretrained(tmp_path)
    model.set_image_size(64)
    assert model.config.image_size == 64
    MawsMAEForPreTraining(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadingError, match=r"position_embeddings .* then call set_image_size"):
        MawsMAEForPreTraining.from_pretrained(tmp_path, image_size=64, **loose)


def test_who_asks_what_has_another_shape_is_told_and_not_refused(tmp_path: Path):
    MawsViTModel(tiny_config()).save_pretrained(tmp_path)
    options = {"intermediate_size": 40, "ignore_mismatched_sizes": True}
    _, info = MawsViTModel.from_pretrained(tmp_path, **options, output_loading_info=True)
    told = {name for name, *_ in info["mismatched_keys"]}
    assert told == {
        f"layers.{number}.mlp.{name}" for number in range(2) for name in ("fc1.weight", "fc1.bias", "fc2.weight")
    }


def test_with_other_sizes_a_decoder_may_be_deeper(tmp_path: Path):
    MawsMAEForPreTraining(tiny_config()).save_pretrained(tmp_path)
    model = MawsMAEForPreTraining.from_pretrained(tmp_path, decoder_num_hidden_layers=3, ignore_mismatched_sizes=True)
    assert len(model.decoder.layers) == 3


def test_a_config_of_somebody_elses_class_keeps_its_fields(tmp_path: Path):
    class Derived(MawsViTConfig):
        def __init__(self, extra: int = 3, **fields):
            self.extra = extra
            super().__init__(**fields)

    Derived(extra=7).save_pretrained(tmp_path)
    assert Derived.from_pretrained(tmp_path).extra == 7


def test_an_attribute_beside_the_fields_is_not_saved(tmp_path: Path):
    model = tiny_lit()
    model.config.dataset = model.config.vision_config.dataset = "cifar"
    model.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config.projection_dim == model.config.projection_dim
    assert "cifar" not in (tmp_path / "config.json").read_text()
    assert model.config.to_dict()["dataset"] == "cifar"


def test_a_folder_with_the_name_of_an_organisation_hides_no_repository(monkeypatch, tmp_path: Path):
    asked = []

    def model_info(name: str, timeout: float) -> str:
        asked.append(name)
        if name == "org/there":
            return "information"
        raise ConnectionError

    monkeypatch.setattr(loading, "model_info", model_info)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    loading.refuse_missing_folder("org/there")
    with pytest.raises(FileNotFoundError, match="there is no folder org/nothere"):
        loading.refuse_missing_folder("org/nothere")
    loading.refuse_missing_folder("other/nothere")
    assert asked == ["org/there", "org/nothere"]


def test_what_was_fetched_before_is_known_without_asking(monkeypatch, tmp_path: Path):
    (tmp_path / "org").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "model_info", lambda *_, **__: pytest.fail("the Hub was asked"))
    monkeypatch.setattr(loading, "try_to_load_from_cache", lambda name, file: f"/cache/{name}/{file}")
    loading.refuse_missing_folder("org/fetched")
