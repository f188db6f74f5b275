"""`maws-hf export` of what is no model folder yet."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import tiny_config
from transformers import ViTMAEForPreTraining

from maws_hf import MawsMAEForPreTraining
from maws_hf.cli import main
from maws_hf.hub.proof import ProofError
from maws_hf.models.weight_files import ModelLoadingError
from maws_hf.optim.ema import WeightAverage
from maws_hf.optim.groups import parameter_groups
from maws_hf.training.checkpoint import CheckpointError, save_checkpoint
from maws_hf.training.initial_weights import new_model
from maws_hf.training.sharded_export import last_checkpoint
from maws_hf.training.sharded_files import save_training


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Of a sharded run, stopped after step 2: one shard a step."""
    for step in (1, 2):
        model = new_model(MawsMAEForPreTraining, tiny_config(), step)
        optimizer, average = torch.optim.AdamW(parameter_groups(model, 0.05)), WeightAverage(model, 0.9)
        for tensor in average.state_dict().values():
            tensor.fill_(step / 8)

        write = partial(save_training, model, optimizer, average)
        save_checkpoint(tmp_path / "run/checkpoints", step, write, facts={}, keep=2)
    return tmp_path / "run"


@pytest.mark.parametrize(("named", "step"), [("checkpoints/step-00000001", 1), (".", 2)])
def test_the_average_of_a_sharded_checkpoint_is_exported(run: Path, tmp_path: Path, named: str, step: int, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export", str(run / named), "--output_dir", str(tmp_path / "new/export"), "--no_verify"])
    assert not ended.value.code
    assert f"the model of {run / 'checkpoints' / f'step-{step:08d}'}" in capsys.readouterr().out
    model = ViTMAEForPreTraining.from_pretrained(tmp_path / "new/export")
    assert (model.decoder.decoder_pred.weight == step / 8).all()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["export"]


def test_a_checkpoint_is_known_from_inside_its_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(run / "checkpoints/step-00000001")
    with pytest.raises(SystemExit) as ended:
        main(["export", ".", "--output_dir", str(tmp_path / "export"), "--no_verify"])
    assert not ended.value.code


def test_a_checkpoint_that_is_not_what_was_written_is_refused(run: Path, tmp_path: Path, capsys):
    shard = run / "checkpoints/step-00000001/shard-00000-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(SystemExit) as ended:
        main(["export", str(shard.parent), "--output_dir", str(tmp_path / "export")])
    assert ended.value.code
    assert "is not what was written" in f"{ended.value.code}{capsys.readouterr()}"
    assert not (tmp_path / "export").exists()


def test_the_end_of_a_run_never_takes_an_older_checkpoint_for_its_result(run: Path):
    assert last_checkpoint(run / "checkpoints").name == "step-00000002"
    shard = run / "checkpoints/step-00000002/shard-00000-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match=r"step-00000002.*is not what was written, so no model is written"):
        last_checkpoint(run / "checkpoints")


def test_a_sharded_checkpoint_is_no_model_and_it_is_said_how_it_becomes_one(run: Path):
    with pytest.raises(ModelLoadingError, match=r"sharded parameters.*`maws-hf export .*step-00000002 --output_dir"):
        MawsMAEForPreTraining.from_pretrained(run / "checkpoints/step-00000002")


def test_the_architecture_asked_for_is_written(run: Path, tmp_path: Path):
    output = ["--output_dir", str(tmp_path / "export"), "--no_verify"]
    with pytest.raises(SystemExit) as ended:
        main(["export", str(run), *output, "--architecture", "pixio"])
    assert not ended.value.code
    assert json.loads((tmp_path / "export" / "config.json").read_text())["model_type"] == "pixio"


def test_an_export_that_computes_something_else_is_not_left_behind(run: Path, tmp_path: Path, monkeypatch):
    def refuse(*_: object) -> None:
        assert (tmp_path / "export" / "config.json").is_file()
        raise ProofError("pooler_output differs")

    monkeypatch.setattr("maws_hf.hub.proof.prove_export", refuse)
    with pytest.raises(SystemExit, match="pooler_output differs") as ended:
        main(["export", str(run), "--output_dir", str(tmp_path / "export")])
    assert ended.value.code
    assert not (tmp_path / "export").exists()
