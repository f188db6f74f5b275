"""The proof of an export passes for what is equal and fails for what is not."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from tiny_lit import tiny_lit

from maws_hf import MawsMAEForPreTraining, MawsViTForImageClassification, MawsViTModel
from maws_hf.hub import proof
from maws_hf.hub.export import export_model
from maws_hf.hub.proof import ProofError, prove_export

NAMES = {
    "classifier": {"logits"},
    "autoencoder": {"logits", "mask", "loss"},
    "two towers": {"image_embeds", "text_embeds", "logits_per_image"},
}


def exported(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    if kind == "two towers":
        model = tiny_lit()
    else:
        classes = {"classifier": MawsViTForImageClassification, "autoencoder": MawsMAEForPreTraining}
        model = classes[kind](tiny_config(num_labels=3, prediction_ratio=0.5))  # exports predict everything
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.to(dtype).save_pretrained(folder / "ours")
    return folder / "ours", export_model(folder / "ours", folder / "theirs").folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_a_process_without_this_package_computes_the_same(kind: str, tmp_path: Path):
    dtype = torch.bfloat16 if kind == "classifier" else torch.float32  # both compute in float32
    differences = prove_export(*exported(kind, tmp_path, dtype))
    assert differences.keys() == NAMES[kind]
    assert max(differences.values()) < 2e-5


@pytest.mark.slow
def test_one_changed_weight_is_noticed_and_one_missing_is_named(tmp_path: Path):
    ours, theirs = exported("classifier", tmp_path)
    file = theirs / "model.safetensors"
    weights = load_file(file)
    weights["classifier.bias"][1] += 0.01
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ProofError, match=r"logits of .* differs from the model's by 0\.01"):
        prove_export(ours, theirs)
    del weights["classifier.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ProofError, match=r"does not load in a process without maws_hf: .*classifier\.bias"):
        prove_export(ours, theirs)


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path):
    MawsViTModel(tiny_config()).save_pretrained(tmp_path / "ours")
    with pytest.raises(ProofError, match="is not an export of ours"):
        prove_export(tmp_path / "ours", tmp_path / "ours")


# ------------------------------------------------------------------------------------- without the other process


class Theirs:
    """Stands in for the other process: what the model itself computes in float32, changed; keeps the inputs."""

    def __init__(self, model: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor] = lambda output: output):
        self.model, self.change, self.inputs = model.float().eval(), change, {}

    @torch.no_grad()
    def __call__(self, folder: Path, inputs: dict[str, torch.Tensor], names: list[str]) -> dict[str, torch.Tensor]:
        self.inputs = inputs
        if "noise" not in inputs:
            outputs = self.model(**inputs)
        else:  # transformers' autoencoder predicts the visible patches, too
            outputs = self.model(**inputs, prediction_ratio=1.0)
            masked = outputs.ids_mask[..., None].expand_as(outputs.logits)
            everything = torch.full((*inputs["noise"].shape, outputs.logits.shape[2]), torch.nan)
            outputs.logits = everything.scatter(1, masked, outputs.logits)
        return {name: self.change(outputs[name].clone()) for name in names}


def proved(model, architecture: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *change) -> tuple[dict, dict]:
    """Differences and inputs."""
    model.save_pretrained(folder / "ours")
    (folder / "theirs").mkdir(exist_ok=True)
    (folder / "theirs" / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    theirs = Theirs(model, *change)
    monkeypatch.setattr(proof, "_their_outputs", theirs)
    return prove_export(str(folder / "ours"), str(folder / "theirs")), theirs.inputs


def classifier(largest: float) -> MawsViTForImageClassification:
    """Its largest output is that of two biases, whatever the picture is."""
    model = MawsViTForImageClassification(tiny_config(num_labels=3))
    model.classifier.weight.data.zero_()
    model.classifier.bias.data.copy_(torch.tensor([-largest, 0.0, largest]))
    return model


@pytest.mark.parametrize("largest", [0.01, 50.0])
def test_a_difference_is_judged_by_the_largest_output_but_never_by_less_than_one(largest, tmp_path, monkeypatch):
    for share, equal in ((0.7, True), (-0.7, True), (1.4, False), (-1.4, False), (float("nan"), False)):
        added = torch.tensor([0.0, share * 1e-4 * max(largest, 1.0), 0.0])
        arguments = (classifier(largest), "ViTForImageClassification", tmp_path, monkeypatch, added.add)
        if equal:
            differences, _ = proved(*arguments)
            assert differences["logits"] == pytest.approx(abs(added).max().item(), rel=0.1)
        else:
            with pytest.raises(ProofError, match=r"logits of .*theirs differs from the model's by"):
                proved(*arguments)


NARROW = {"image_size": [32, 16], "patch_size": [8, 4], "num_channels": 1, "image_mean": [0.5], "image_std": [0.5]}


@pytest.mark.parametrize("architecture", ["PixioModel", "ViTModel", "Dinov2Model"])
def test_pictures_are_those_of_the_config_and_weights_are_compared_in_float32(architecture, tmp_path, monkeypatch):
    model = MawsViTModel(tiny_config(**NARROW)).bfloat16()
    differences, inputs = proved(model, architecture, tmp_path, monkeypatch)
    assert differences == {"last_hidden_state": 0.0, "pooler_output": 0.0}
    assert inputs["pixel_values"].shape == (2, 1, 32, 16)


def test_an_autoencoder_is_compared_where_it_is_masked_whatever_it_predicts_by_itself(tmp_path, monkeypatch):
    model = MawsMAEForPreTraining(tiny_config(**NARROW, prediction_ratio=0.5))
    differences, inputs = proved(model, "ViTMAEForPreTraining", tmp_path, monkeypatch)
    assert differences == {"logits": 0.0, "mask": 0.0, "loss": 0.0}
    assert inputs["noise"].shape == (2, 16)
    model = MawsMAEForPreTraining(tiny_config(image_size=[32, 16]))
    _, inputs = proved(model, "ViTMAEForPreTraining", tmp_path, monkeypatch)
    assert inputs["noise"].shape == (2, 8)


@pytest.mark.parametrize(("positions", "longest", "length"), [(40, 30, 16), (40, 7, 7), (12, 12, 8)])
def test_captions_fit_the_text_tower_and_one_is_padded(positions, longest, length, tmp_path, monkeypatch):
    text = {"max_position_embeddings": positions, "bos_token_id": 5, "pad_token_id": 3, "vocab_size": 30}
    model = tiny_lit(text, max_text_length=longest)
    differences, inputs = proved(model, "VisionTextDualEncoderModel", tmp_path, monkeypatch)
    assert set(differences.values()) == {0.0}
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert ids.shape == mask.shape == (2, length)
    assert ids[:, 0].tolist() == [5, 5]
    assert mask.tolist() == [[1] * length, [1] * (length // 2) + [0] * (length - length // 2)]
    assert (ids[1, length // 2 :] == 3).all()


def test_the_other_process_is_offline_without_tokens_and_its_last_words_are_told(tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    classifier(1.0).save_pretrained(tmp_path / "ours")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "hf_secret")
    monkeypatch.setenv("KEPT", "yes")
    asked = []

    def run(command: list[str], **options) -> subprocess.CompletedProcess:
        asked.append((command, options["env"]))
        return subprocess.CompletedProcess(command, 3, "", "first\nlast words\n" if len(asked) == 1 else "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    for why in ("last words", "exit status 3"):
        with pytest.raises(ProofError, match=f"does not load in a process without maws_hf: {why}$"):
            prove_export("ours", "theirs")
    (command, environment), _ = asked
    assert str(tmp_path / "theirs") in command
    assert "hf_secret" not in environment.values()
    assert (environment["HF_HUB_OFFLINE"], environment["KEPT"]) == ("1", "yes")


def test_a_config_without_an_architecture_is_no_export(tmp_path: Path):
    for architectures in (None, [], ["BertModel"]):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": architectures}))
        with pytest.raises(ProofError, match="is not an export of ours"):
            prove_export(tmp_path, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ProofError, match="is not an export of ours"):
        prove_export(tmp_path, tmp_path)
