"""A start that is read row by row is the one that `from_pretrained` reads whole, with the same things to refuse."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config

from maws_hf import MawsMAEForPreTraining, MawsViTForImageClassification, MawsViTModel
from maws_hf.hub.export import export_model
from maws_hf.models.weight_files import ModelLoadingError
from maws_hf.training.initial_weights import meta_model, new_model
from maws_hf.training.model import ModelRecipe, build_model
from maws_hf.training.native_start import NativeStart


def save(model_class, folder: Path, **options) -> Path:
    new_model(model_class, tiny_config(), 1).save_pretrained(folder, **options)
    return folder


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["one file", "several"])
@pytest.mark.parametrize("saved", [MawsViTModel, MawsMAEForPreTraining, MawsViTForImageClassification])
def test_rows_are_those_of_the_whole_model(tmp_path: Path, saved, options: dict):
    start = NativeStart.of(save(saved, tmp_path, **options), MawsMAEForPreTraining)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or options
    whole = MawsMAEForPreTraining.from_pretrained(tmp_path).state_dict()
    assert {name for name in whole if name.startswith("vit.")} <= start.names
    for name in start.names & whole.keys():
        assert torch.equal(start.read(name, 1, 3), whole[name][1:3]), name
        assert torch.equal(start.read(name), whole[name]), name


def test_what_a_start_lacks_is_drawn_as_for_a_new_model(tmp_path: Path):
    save(MawsViTModel, tmp_path)
    recipe = ModelRecipe(output_dir="x", model_name_or_path=str(tmp_path), seed=7)
    built, fresh = build_model(MawsMAEForPreTraining, recipe), new_model(MawsMAEForPreTraining, tiny_config(), 7)
    for name, value in built.decoder.state_dict().items():
        assert torch.equal(value, fresh.decoder.state_dict()[name]), name
    assert not torch.equal(built.vit.layers[0].mlp.fc1.weight, fresh.vit.layers[0].mlp.fc1.weight)


def spoil(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


NAME = "vit.layers.0.mlp.fc1.weight"
SPOILT = {
    "lacks vit.layers.0.mlp.fc1.weight": lambda weights: weights.pop(NAME),
    "has another shape of vit.layers.0.mlp.fc1.weight": lambda weights: weights.update({NAME: torch.ones(2, 2)}),
    "has unknown vit.extra": lambda weights: weights.update({"vit.extra": torch.ones(2)}),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_what_is_wrong_with_a_start_is_said_in_the_words_of_from_pretrained(tmp_path: Path, fault: str):
    spoil(save(MawsMAEForPreTraining, tmp_path), SPOILT[fault])
    start = NativeStart.of(tmp_path, MawsViTForImageClassification)
    with pytest.raises(ModelLoadingError, match=fault) as ours:
        start.refuse_another_model(meta_model(MawsViTForImageClassification, tiny_config()), tmp_path)
    with pytest.raises(ModelLoadingError) as theirs:
        MawsViTForImageClassification.from_pretrained(tmp_path)
    assert str(ours.value) == str(theirs.value)


def test_a_decoder_or_head_of_another_model_is_no_fault(tmp_path: Path):
    start = NativeStart.of(save(MawsMAEForPreTraining, tmp_path), MawsViTForImageClassification)
    start.refuse_another_model(meta_model(MawsViTForImageClassification, tiny_config()), tmp_path)


def test_other_formats_adapters_and_half_folders_are_left_to_from_pretrained(tmp_path: Path):
    native = save(MawsViTModel, tmp_path / "native")
    assert NativeStart.of(export_model(native, tmp_path / "export").folder, MawsMAEForPreTraining) is None
    assert NativeStart.of("nobody/has-this", MawsMAEForPreTraining) is None
    (native / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert NativeStart.of(native, MawsMAEForPreTraining) is None
    several = save(MawsViTModel, tmp_path / "several", max_shard_size="20KB")
    min(several.glob("model-*.safetensors")).unlink()
    assert NativeStart.of(several, MawsMAEForPreTraining) is None


def test_a_start_of_another_format_is_read_whole_and_a_line_says_so(tmp_path: Path, monkeypatch, capsys):
    export = export_model(save(MawsViTModel, tmp_path / "native"), tmp_path / "export").folder
    monkeypatch.setattr("maws_hf.training.model.sharding_wanted", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    model = build_model(MawsMAEForPreTraining, ModelRecipe(output_dir="x", model_name_or_path=str(export)))
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert capsys.readouterr().out.count("export is no folder in our own format") == 1
