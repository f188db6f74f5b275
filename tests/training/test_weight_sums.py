"""A finished model's weights are those that the run has written, or `verify` says so."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config

from maws_hf import MawsMAEForPreTraining, MawsViTModel
from maws_hf.processing.image_processors import image_processor_of
from maws_hf.training import model as training_model
from maws_hf.training.model import save_trained_model
from maws_hf.training.verification import verify_folder
from maws_hf.training.weight_sums import weight_sum_problems, write_weight_sums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path)
    return tmp_path


def save(folder: Path) -> None:
    model = MawsMAEForPreTraining(tiny_config())
    save_trained_model(model, image_processor_of(model.config), folder, [])


def faults_of(folder: Path) -> list[str]:
    return [fault for verdict in verify_folder(folder) for fault in verdict.faults]


def test_a_flipped_bit_in_a_finished_model_is_a_fault(folder: Path):
    (verdict,) = verify_folder(folder)
    assert ("SHA256SUMS" in verdict.checked, verdict.faults) == (True, ())
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert faults_of(folder) == [f"{file} is not what the run has written, says SHA256SUMS"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="a command of GNU coreutils")
def test_the_sums_are_those_that_sha256sum_reads(folder: Path):
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=folder, check=True, capture_output=True).stdout == b"model.safetensors: OK\n"


def test_a_lost_file_of_weights_and_a_damaged_record_are_faults(folder: Path):
    (folder / "model.safetensors").unlink()
    assert f"{folder}/model.safetensors is missing; SHA256SUMS lists it" in faults_of(folder)
    line = b"a" * 64 + b"  model.safetensors"
    wrong = (b"model.safetensors", b"a" * 64 + b"  ../../model.safetensors", b"a" * 64 + b"  model/../x.safetensors")
    for content in (b"", b"\xff", *wrong, line + b".part", line + b"\n" + wrong[0]):
        (folder / "SHA256SUMS").write_bytes(content)
        assert f"{folder}/SHA256SUMS is not what a run has written" in faults_of(folder)


def test_a_model_written_over_another_is_vouched_for_and_one_half_written_by_nobody(folder: Path, monkeypatch):
    save(folder)
    assert faults_of(folder) == []
    monkeypatch.setattr(MawsMAEForPreTraining, "save_pretrained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(folder)
    assert not (folder / "SHA256SUMS").exists()


def test_no_room_for_the_sums_says_that_the_checkpoints_are_intact(tmp_path: Path, monkeypatch):
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_model, "write_weight_sums", full)
    with pytest.raises(OSError, match="checkpoints are intact"):
        save(tmp_path)


def test_a_model_loads_with_sums_that_are_wrong(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    tensors["vit.layernorm.bias"].fill_(2.0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert MawsViTModel.from_pretrained(folder).layernorm.bias.eq(torch.tensor(2.0)).all()


def test_a_record_that_cannot_be_read_is_a_fault_and_none_is_none(folder: Path):
    (folder / "SHA256SUMS").unlink()
    assert list(weight_sum_problems(folder)) == []
    (folder / "SHA256SUMS").mkdir()
    assert list(weight_sum_problems(folder)) == [f"{folder}/SHA256SUMS is not what a run has written"]


def test_every_shard_has_its_sum_and_every_fault_is_told(tmp_path: Path):
    shards = [f"model-0000{number}-of-00004.safetensors" for number in range(1, 5)]
    for name in (*reversed(shards), "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    write_weight_sums(tmp_path)
    sums = (tmp_path / "SHA256SUMS").read_text()
    assert [line.split("  ")[1] for line in sums.splitlines()] == shards
    assert list(weight_sum_problems(tmp_path)) == []
    for name in shards[:2]:
        (tmp_path / name).unlink()
    (tmp_path / shards[0]).mkdir()
    for name in shards[2:]:
        (tmp_path / name).write_bytes(b"else")
    assert list(weight_sum_problems(tmp_path)) == [
        *(f"{tmp_path / name} is missing; SHA256SUMS lists it" for name in shards[:2]),
        *(f"{tmp_path / name} is not what the run has written, says SHA256SUMS" for name in shards[2:]),
    ]
