"""The proof of an export passes for what is equal and fails for what is not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from tiny_lit import tiny_lit

from maws_hf import MawsMAEForPreTraining, MawsViTForImageClassification, MawsViTModel
from maws_hf.hub.export import export_model
from maws_hf.hub.proof import ProofError, prove_export

NAMES = {
    "classifier": {"logits"},
    "autoencoder": {"logits", "mask", "loss"},
    "two towers": {"image_embeds", "text_embeds", "logits_per_image"},
}


def exported(kind: str, folder: Path) -> tuple[Path, Path]:
    if kind == "two towers":
        model = tiny_lit()
    else:
        classes = {"classifier": MawsViTForImageClassification, "autoencoder": MawsMAEForPreTraining}
        model = classes[kind](tiny_config(num_labels=3, prediction_ratio=0.5))  # exports predict everything
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(folder / "ours")
    return folder / "ours", export_model(folder / "ours", folder / "theirs").folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_a_process_without_this_package_computes_the_same(kind: str, tmp_path: Path):
    differences = prove_export(*exported(kind, tmp_path))
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
