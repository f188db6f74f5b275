"""An adapter meets the base that it was made on, or an error that names both."""

import copy
import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from tiny_lit import tiny_lit
from torch import Tensor, nn

from maws_hf import MawsMAEForPreTraining, MawsViTForImageClassification, MawsViTModel
from maws_hf.adapters import AdapterBaseError, AdaptFormerConfig, VPTConfig, write_base_record
from maws_hf.hub.export import export_model
from maws_hf.models.adapter_base import describe_base, encoder_digest

CONFIGS = {"vpt": lambda **f: VPTConfig(num_prompts=3, **f), "adaptformer": lambda **f: AdaptFormerConfig(**f)}
METHODS = sorted(CONFIGS)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
# Weights of an encoder outside of its layers.
AROUND = (
    "embeddings.cls_token",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.projection.bias",
    "layernorm.weight",
)
Classifier = MawsViTForImageClassification


def save_base(folder: Path, seed: int = 0, **fields) -> Path:
    torch.manual_seed(seed)
    Classifier(tiny_config(**{"num_labels": 3, **fields})).save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, config: PeftConfig) -> nn.Module:
    model = get_peft_model(Classifier.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(folder)
    if isinstance(config, LoraConfig):
        write_base_record(model, folder)
    return model.eval()


def load_on(model: nn.Module, adapter: Path, how: str) -> nn.Module:
    """As PEFT does it, as transformers does it, and as one more beside an adapter that is there already."""
    if how == "PeftModel":
        return PeftModel.from_pretrained(model, adapter)
    if how == "second":
        model = get_peft_model(model, VPTConfig())
        model.load_adapter(adapter, "second")
    else:
        model.load_adapter(adapter)
    return model


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(after[name], before[name])] == []


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return save_base(tmp_path / "other", seed=1)


@pytest.mark.parametrize("architecture", [None, "vit"])
def test_base_and_adapter_may_lie_in_one_folder(architecture, base, tmp_path):
    folder = base if architecture is None else tmp_path / "export"
    if architecture is not None:
        export_model(base, folder, architecture)
    adapted = save_adapter(base, folder, CONFIGS["vpt"]())
    loaded = Classifier.from_pretrained(folder, adapter_name="mine").eval()
    assert list(loaded.peft_config) == ["mine"]
    torch.testing.assert_close(loaded(IMAGES).logits, adapted(IMAGES).logits)


# ---------------------------------------------------------------- another base


@pytest.mark.parametrize(
    ("method", "how"), [*((m, h) for m in METHODS for h in ("PeftModel", "load_adapter")), ("vpt", "second")]
)
def test_a_base_with_other_weights_is_an_error_with_both_names_and_digests(method, how, base, other, tmp_path):
    save_adapter(base, tmp_path / "adapter", CONFIGS[method]())
    model = Classifier.from_pretrained(other)
    before = weights_of(model)
    names = rf"made on {base} \(encoder {encoder_digest(Classifier.from_pretrained(base))[:12]}\)"
    with pytest.raises(AdapterBaseError, match=names) as error:
        load_on(model, tmp_path / "adapter", how)
    assert f"{other}, has other weights (encoder {encoder_digest(model)[:12]})" in str(error.value)
    assert "base_record to null in adapter_config.json" in str(error.value)
    if how != "second":
        assert_same_weights(model, before)
        load_on(Classifier.from_pretrained(base), tmp_path / "adapter", how)


@pytest.mark.parametrize("config", [*METHODS, "lora"])
def test_a_base_that_was_trained_on_under_its_name_is_an_error(config, base, tmp_path):
    save_adapter(base, tmp_path / "adapter", CONFIGS.get(config, LoraConfig)())
    Classifier.from_pretrained(tmp_path / "adapter")
    save_base(base, seed=7)
    with pytest.raises(AdapterBaseError, match=f"made on {base} .*this model, {base}, has other weights"):
        Classifier.from_pretrained(tmp_path / "adapter")


def test_who_knows_better_says_so(base, other, tmp_path):
    made = save_adapter(base, tmp_path / "adapter", VPTConfig())
    config = PeftConfig.from_pretrained(tmp_path / "adapter")
    config.base_record = None
    model = PeftModel.from_pretrained(Classifier.from_pretrained(other), tmp_path / "adapter", config=config)
    prompts = [m.base_model.model.vit.layers[1].vpt_prompts["default"] for m in (made, model)]
    assert torch.equal(*prompts)
    model.save_pretrained(tmp_path / "again")  # from now on that is the base
    load_on(Classifier.from_pretrained(other), tmp_path / "again", "PeftModel")
    with pytest.raises(AdapterBaseError):
        load_on(Classifier.from_pretrained(base), tmp_path / "again", "PeftModel")


@pytest.mark.parametrize("how", ["PeftModel", "load_adapter"])
@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ({"hidden_size": 48}, "32 wide and 2 layers deep.* is 48 wide and 2 layers deep"),
        ({"num_hidden_layers": 3}, "32 wide and 2 layers deep.* is 32 wide and 3 layers deep"),
        ({"num_hidden_layers": 1}, "32 wide and 2 layers deep.* is 32 wide and 1 layers deep"),
    ],
)
def test_another_width_or_depth_is_said_in_one_sentence(fields, sizes, how, base, tmp_path):
    save_adapter(base, tmp_path / "adapter", AdaptFormerConfig())
    model = Classifier.from_pretrained(save_base(tmp_path / "other", **fields))
    before = weights_of(model)
    with pytest.raises(AdapterBaseError, match=f"made on {base}, {sizes}: load {base}$") as error:
        load_on(model, tmp_path / "adapter", how)
    assert len(str(error.value)) < 400
    assert_same_weights(model, before)


# ---------------------------------------------------------------- heads


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_with_a_head_wants_a_model_with_that_head(method, base, tmp_path):
    save_adapter(base, tmp_path / "adapter", CONFIGS[method](modules_to_save=["classifier"]))
    with pytest.raises(
        AdapterBaseError, match=r"brings its own classifier of \[3, 32\], and .* has none: load a class"
    ):
        load_on(MawsViTModel.from_pretrained(base), tmp_path / "adapter", "PeftModel")
    five = Classifier.from_pretrained(save_base(tmp_path / "five", num_labels=5))
    with pytest.raises(AdapterBaseError, match=r"\[3, 32\], .* has one of \[5, 32\]: give num_labels=3, ignore"):
        load_on(five, tmp_path / "adapter", "PeftModel")


def test_a_new_head_below_an_adapter_is_told_and_no_error(base, tmp_path, caplog, monkeypatch):
    encoder = MawsViTModel.from_pretrained(base)
    encoder.save_pretrained(tmp_path / "encoder")
    made = get_peft_model(Classifier.from_pretrained(tmp_path / "encoder", num_labels=3), VPTConfig())
    made.save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        Classifier.from_pretrained(tmp_path / "adapter", num_labels=3)
    assert "classifier.weight" in caplog.text
    assert "newly initialized" in caplog.text


# ---------------------------------------------------------------- the same base


def test_a_copy_in_bfloat16_is_the_base_and_one_in_float16_is_not(base, tmp_path):
    save_adapter(base, tmp_path / "adapter", VPTConfig())
    load_on(Classifier.from_pretrained(base, dtype=torch.bfloat16), tmp_path / "adapter", "PeftModel")
    with pytest.raises(AdapterBaseError, match="float32 or bfloat16"):
        load_on(Classifier.from_pretrained(base, dtype=torch.float16), tmp_path / "adapter", "PeftModel")


@pytest.mark.parametrize("architecture", ["pixio", "vit", "dinov2"])
def test_an_export_is_the_base(architecture, base, tmp_path):
    encoder = MawsViTModel.from_pretrained(base)
    encoder.save_pretrained(tmp_path / "encoder")
    export = export_model(tmp_path / "encoder", tmp_path / "export", architecture)
    theirs = getattr(transformers, export.model_class).from_pretrained(export.folder)
    back = MawsViTModel.from_pretrained(export.folder)
    assert encoder_digest(theirs) == encoder_digest(back) == encoder_digest(encoder)
    for name in AROUND:
        with torch.no_grad():
            theirs.get_parameter(name).view(-1)[3] += 0.5
        assert encoder_digest(theirs) != encoder_digest(back), name
        theirs.load_state_dict(getattr(transformers, export.model_class).from_pretrained(export.folder).state_dict())


def test_other_classes_of_one_encoder_have_its_digest():
    lit, masked = tiny_lit(), MawsMAEForPreTraining(tiny_config())
    assert encoder_digest(lit) == encoder_digest(lit.vision_model)
    assert encoder_digest(masked) == encoder_digest(masked.vit)
    assert encoder_digest(lit) != encoder_digest(masked)


def test_ranks_that_adalora_does_not_save_are_not_missed(base, tmp_path):
    save_adapter(base, tmp_path / "adapter", AdaLoraConfig(target_modules=["q_proj"], total_step=10))
    assert not any("ranknum" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    model = Classifier.from_pretrained(base)
    model.load_adapter(tmp_path / "adapter")
    assert any("ranknum" in name for name in model.state_dict())


def test_of_two_towers_the_image_towers_sizes_are_recorded():
    lit = tiny_lit({"hidden_size": 24}, vision_config=tiny_config(num_hidden_layers=3))
    record = describe_base(lit)
    assert (record["hidden_size"], record["num_hidden_layers"]) == (32, 3)


@pytest.mark.parametrize("made", [MawsMAEForPreTraining, tiny_lit], ids=["vit_mae", "vision-text-dual-encoder"])
def test_an_export_of_a_model_around_an_encoder_has_its_digest(made, tmp_path):
    model = tiny_lit() if made is tiny_lit else made(tiny_config())
    model.save_pretrained(tmp_path / "ours")
    export = export_model(tmp_path / "ours", tmp_path / "export")
    theirs = getattr(transformers, export.model_class).from_pretrained(export.folder)
    tower = MawsViTModel.from_pretrained(export.folder)
    assert encoder_digest(theirs) == encoder_digest(tower) == encoder_digest(model)


def test_a_resampled_position_table_makes_no_other_base(base, tmp_path):
    save_adapter(base, tmp_path / "adapter", AdaptFormerConfig())
    model = Classifier.from_pretrained(base)
    model.set_image_size(64)
    load_on(model, tmp_path / "adapter", "PeftModel")


@pytest.mark.parametrize("name", ["layers.1.mlp.fc1.weight", "layers.0.layernorm_before.weight", *AROUND])
def test_one_weight_makes_another_base(name, base):
    model = MawsViTModel.from_pretrained(base)
    before = encoder_digest(model)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] += 0.5
    assert encoder_digest(model) != before


def test_the_same_numbers_in_another_shape_make_another_base():
    wide, high = (MawsViTModel(tiny_config(patch_size=size)) for size in ((8, 16), (16, 8)))
    for name, tensor in wide.state_dict().items():
        high.get_parameter(name).data.copy_(tensor.reshape(high.get_parameter(name).shape))
    assert encoder_digest(wide) != encoder_digest(high)


def test_an_adapter_and_its_head_are_not_part_of_the_digest(base):
    model = Classifier.from_pretrained(base)
    before = encoder_digest(model)
    for config in (CONFIGS["adaptformer"](modules_to_save=["classifier"]), LoraConfig(modules_to_save=["classifier"])):
        adapted = get_peft_model(Classifier.from_pretrained(base), config)
        assert encoder_digest(adapted.get_base_model()) == before


def test_without_weights_nothing_is_compared_but_sizes(base, tmp_path):
    save_adapter(base, tmp_path / "adapter", VPTConfig())
    with torch.device("meta"):
        model, wide = Classifier(tiny_config(num_labels=3)), Classifier(tiny_config(num_labels=3, hidden_size=48))
    assert encoder_digest(model) is None
    load_on(model, tmp_path / "adapter", "PeftModel")
    with pytest.raises(AdapterBaseError, match="48 wide"):
        load_on(wide, tmp_path / "adapter", "PeftModel")


def test_the_digest_is_computed_only_when_the_adapter_is_saved(base, tmp_path, monkeypatch):
    model = get_peft_model(Classifier.from_pretrained(base), VPTConfig())
    monkeypatch.setattr("maws_hf.models.adapter_base.encoder_digest", lambda model: "told")
    model.save_pretrained(tmp_path / "adapter")
    record = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_record"]
    assert record == {"digest": "told", "hidden_size": 32, "num_hidden_layers": 2, "modules": {}}


def test_one_config_serves_several_models(base, other, tmp_path):
    config = VPTConfig()
    models = [get_peft_model(Classifier.from_pretrained(folder), config) for folder in (base, other)]
    models.append(copy.deepcopy(models[0]))
    for number, folder in enumerate((base, other, base)):
        models[number].save_pretrained(tmp_path / f"adapter{number}")
        load_on(Classifier.from_pretrained(folder), tmp_path / f"adapter{number}", "PeftModel")
    assert config.base_record is None


def test_a_copy_of_an_adapted_model_records_its_own_base(base, tmp_path):
    model = get_peft_model(Classifier.from_pretrained(base), AdaptFormerConfig())
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.base_model.model.vit.layernorm.weight[3] += 0.5
    for name, made in (("model", model), ("copied", copied)):
        made.save_pretrained(tmp_path / name)
        record = json.loads((tmp_path / name / "adapter_config.json").read_text())["base_record"]
        assert record["digest"] == encoder_digest(made.get_base_model())
    assert encoder_digest(model.get_base_model()) != encoder_digest(copied.get_base_model())


# ---------------------------------------------------------------- PEFT's own methods, through our classes


def test_lora_knows_its_base_from_the_file_beside_it(base, other, tmp_path):
    save_adapter(base, tmp_path / "adapter", LoraConfig())
    model = Classifier.from_pretrained(other)
    with pytest.raises(AdapterBaseError, match=f"made on {base} .*delete base_record.json beside the adapter"):
        model.load_adapter(tmp_path / "adapter")
    (tmp_path / "adapter" / "base_record.json").unlink()
    model.load_adapter(tmp_path / "adapter")


@pytest.mark.parametrize(
    "options", [{"subfolder": "adapter"}, {"adapter_kwargs": {"subfolder": "adapter"}}], ids=["plain", "nested"]
)
def test_the_record_is_looked_for_where_the_adapter_lies(options, base, other, tmp_path):
    save_adapter(base, tmp_path / "adapter", LoraConfig())
    with pytest.raises(AdapterBaseError, match=f"made on {base} .*has other weights"):
        Classifier.from_pretrained(other).load_adapter(tmp_path, **options)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"hidden_size": 48}, r"shape of classifier.*, vit\.layers\.0\S+ \(8, 32\), not \(8, 48\) and \d+ more$"),
        ({"num_hidden_layers": 1}, r"it has unknown .*layers\.1\."),
        ({"num_hidden_layers": 3}, r"it lacks vit\.layers\.2\."),
        ({"num_labels": 5}, r"shape of classifier.*\(3,\), not \(5,\)"),
        (None, r"it has unknown .*classifier"),
    ],
)
def test_without_a_record_shapes_tell(fields, fault, base, tmp_path):
    save_adapter(base, tmp_path / "adapter", LoraConfig(modules_to_save=["classifier"]))
    (tmp_path / "adapter" / "base_record.json").unlink()
    if fields is None:
        model = MawsViTModel.from_pretrained(base)
    else:
        model = Classifier.from_pretrained(save_base(tmp_path / "other", **fields))
    before = weights_of(model)
    with pytest.raises(AdapterBaseError, match=f"made on {base}, does not fit this {type(model).__name__}, .*{fault}"):
        model.load_adapter(tmp_path / "adapter")
    assert set(model.state_dict()) == set(before)
    assert_same_weights(model, before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path / "again")
    assert_same_weights(type(model).from_pretrained(tmp_path / "again"), before)


@torch.no_grad()
def test_a_refused_adapter_leaves_the_one_that_was_there(base, tmp_path):
    expected = save_adapter(base, tmp_path / "one", LoraConfig(modules_to_save=["classifier"]))(IMAGES).logits
    deeper = save_base(tmp_path / "deeper", num_hidden_layers=3)
    save_adapter(
        deeper, tmp_path / "lora", LoraConfig(modules_to_save=["classifier"], target_modules=["fc1", "q_proj"])
    )
    (tmp_path / "lora" / "base_record.json").unlink()
    save_adapter(deeper, tmp_path / "vpt", VPTConfig())
    model = Classifier.from_pretrained(base)
    model.load_adapter(tmp_path / "one", "one")
    before = weights_of(model)
    for other in ("lora", "vpt"):
        with pytest.raises(AdapterBaseError, match=f"made on {deeper}"):
            model.load_adapter(tmp_path / other, "other")
        assert_same_weights(model, before)
        assert (list(model.peft_config), model.active_adapters()) == (["one"], ["one"])
        torch.testing.assert_close(model(IMAGES).logits, expected, rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path / "again")
    (tmp_path / "one").rename(tmp_path / "moved")
    again = Classifier.from_pretrained(tmp_path / "again").eval()
    torch.testing.assert_close(again(IMAGES).logits, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("swapped", [True, False])
def test_half_an_adapter_is_refused_beside_a_whole_one(swapped, base, tmp_path):
    save_adapter(base, tmp_path / "whole", LoraConfig())
    save_adapter(base, tmp_path / "half", LoraConfig())
    file = tmp_path / "half" / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if ".layers.1." not in name}, file)
    model = Classifier.from_pretrained(base)
    model.load_adapter(tmp_path / "whole", "whole")
    before = weights_of(model)
    name = "whole" if swapped else "other"
    with pytest.raises(AdapterBaseError, match=rf"it lacks vit\.layers\.1\.\S+\.lora_A\.{name}\.weight.* and 2 more$"):
        model.load_adapter(tmp_path / "half", name, hotswap=swapped)
    assert_same_weights(model, before)


def test_a_refused_pissa_adapter_leaves_the_base_that_it_would_have_moved(base, tmp_path):
    save_adapter(base, tmp_path / "adapter", LoraConfig(init_lora_weights="pissa"))
    model = Classifier.from_pretrained(save_base(tmp_path / "deeper", num_hidden_layers=3))
    (tmp_path / "adapter" / "base_record.json").unlink()
    before = weights_of(model)
    with pytest.raises(AdapterBaseError, match=r"it lacks vit\.layers\.2\."):
        model.load_adapter(tmp_path / "adapter")
    assert_same_weights(model, before)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (LoraConfig(modules_to_save=["classifier"]), LoraConfig(r=4, modules_to_save=["classifier"])),
        (LoraConfig(), VPTConfig(num_prompts=3)),
        (VPTConfig(num_prompts=3), VPTConfig(num_prompts=2)),
        (AdaptFormerConfig(), LoraConfig()),
    ],
    ids=lambda config: config.peft_type.value.lower(),
)
@pytest.mark.parametrize("names", [("one", "two"), ("vit", "1")], ids="-".join)  # the latter are in names of weights
@torch.no_grad()
def test_two_adapters_of_one_base_take_turns(first, second, names, base, tmp_path):
    adapters = dict(zip(names, (first, second), strict=True))
    expected = {name: save_adapter(base, tmp_path / name, config)(IMAGES).logits for name, config in adapters.items()}
    model = Classifier.from_pretrained(base)
    for name in adapters:
        model.load_adapter(tmp_path / name, name)
    for name in (*names, *names):
        model.set_adapter(name)
        torch.testing.assert_close(model(IMAGES).logits, expected[name], rtol=0, atol=1e-6)
    assert (expected[names[0]] - expected[names[1]]).abs().max() > 1e-3


def test_dora_comes_back_with_its_magnitudes(base, tmp_path):
    model = save_adapter(base, tmp_path / "adapter", LoraConfig(use_dora=True, modules_to_save=["classifier"]))
    again = Classifier.from_pretrained(tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(IMAGES).logits, model(IMAGES).logits, rtol=0, atol=1e-6)


def test_a_lora_that_leaves_the_base_as_it_is_records_its_digest(base, tmp_path):
    save_adapter(base, tmp_path / "adapter", LoraConfig(init_lora_weights="gaussian"))
    record = json.loads((tmp_path / "adapter" / "base_record.json").read_text())
    assert record["digest"] == encoder_digest(Classifier.from_pretrained(base))


def test_pissa_moves_the_base_and_records_no_digest(base, tmp_path):
    save_adapter(base, tmp_path / "adapter", LoraConfig(init_lora_weights="pissa"))
    record = json.loads((tmp_path / "adapter" / "base_record.json").read_text())
    assert record["digest"] is None
    assert record["hidden_size"] == 32


# ---------------------------------------------------------------- the base stays as it was


@pytest.mark.parametrize("method", [*METHODS, "lora"])
@torch.no_grad()
def test_a_loaded_adapter_leaves_the_base_bit_for_bit(method, base, tmp_path):
    save_adapter(base, tmp_path / "adapter", CONFIGS.get(method, LoraConfig)(modules_to_save=["classifier"]))
    model = Classifier.from_pretrained(base).eval()
    before, expected = weights_of(model), model(IMAGES).logits
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    assert (adapted(IMAGES).logits - expected).abs().max() > 1e-3
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(IMAGES).logits, expected, rtol=0, atol=1e-6)
    head = adapted.get_base_model().classifier.original_module
    assert torch.equal(head.weight, before["classifier.weight"])
    adapted.unload()
    assert_same_weights(model.vit, {n.removeprefix("vit."): t for n, t in before.items() if n.startswith("vit.")})


@torch.no_grad()
def test_lora_merged_and_taken_out_again_is_the_base_within_rounding(base, tmp_path):
    save_adapter(base, tmp_path / "adapter", LoraConfig())
    model = Classifier.from_pretrained(base)
    before = weights_of(model.vit)
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter")
    adapted.merge_adapter()
    merged = adapted.get_base_model().vit.layers[0].attention.q_proj.base_layer.weight
    assert (merged - before["layers.0.attention.q_proj.weight"]).abs().max() > 1e-3
    adapted.unmerge_adapter()
    for name, tensor in adapted.unload().vit.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)
