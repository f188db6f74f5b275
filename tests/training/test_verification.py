"""`maws-hf verify`: what is whole is called whole, and every fault is named with its file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config

from maws_hf import MawsMAEForPreTraining, MawsViTModel
from maws_hf.cli import main
from maws_hf.processing.image_processors import image_processor_of
from maws_hf.training import checkpoint as ckpt
from maws_hf.training.initial_weights import new_model
from maws_hf.training.sharded_files import save_config
from maws_hf.training.verification import Verdict, VerificationError, newest_usable, verify_folder

WEIGHTS = "model.safetensors"


def write_model(folder: Path) -> None:
    model = MawsMAEForPreTraining(tiny_config())
    model.save_pretrained(folder)
    image_processor_of(model.config).save_pretrained(folder)


def write_step(root: Path, step: int) -> None:
    def write_files(directory: Path) -> None:
        MawsViTModel(tiny_config()).save_pretrained(directory)
        save_file({"layernorm.bias|exp_avg": torch.ones(3)}, directory / "optimizer.safetensors")
        (directory / "rank-00000.json").write_text("{}")

    ckpt.save_checkpoint(root, step, write_files, facts={}, keep=5)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    write_model(folder)
    for step in (1, 2, 3):
        write_step(folder / "checkpoints", step)
    return folder


def faults_of(folder: Path) -> list[str]:
    return [fault for verdict in verify_folder(folder) for fault in verdict.faults]


def change_weights(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_whole_run_has_no_faults_and_the_newest_checkpoint_is_named(run: Path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(run)])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert output.count("ok ") == 4
    assert f"the newest whole checkpoint is {run}/checkpoints/step-00000003" in output


def test_a_flipped_bit_is_named_and_the_one_before_is_usable(run: Path, capsys):
    file = run / "checkpoints" / "step-00000003" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(run)])
    assert ended.value.code == 1
    output = capsys.readouterr().out
    assert str(file) in output
    assert f"the newest whole checkpoint is {run}/checkpoints/step-00000002" in output


def write_sharded_step(root: Path, step: int, *, spoil=lambda tensors: None) -> Path:
    """As a run with sharded parameters writes it before its first update: rows of two processes, no moments."""

    def write_files(directory: Path) -> None:
        model = new_model(MawsMAEForPreTraining, tiny_config(), 1)
        tensors = {f"weights/{name}": tensor for name, tensor in model.state_dict().items()}
        spoil(tensors)
        for rank in (0, 1):
            parts, rows = {}, {}
            for name, tensor in tensors.items():
                half = (len(tensor) + 1) // 2
                parts[name] = (tensor[:half], tensor[half:])[rank].contiguous()
                rows[name] = {"shape": list(tensor.shape), "start": rank * half}
            file = directory / f"shard-{rank:05d}-of-00002.safetensors"
            save_file(parts, file, metadata={"rows": json.dumps(rows)})
        save_config(model, directory)

    ckpt.save_checkpoint(root, step, write_files, facts={}, keep=5)
    return root / f"step-{step:08d}"


def test_a_sharded_checkpoint_is_whole(tmp_path: Path):
    assert faults_of(write_sharded_step(tmp_path, 1)) == []


def test_a_checkpoint_is_known_from_inside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(write_sharded_step(tmp_path, 1))
    assert faults_of(Path(".")) == []


SPOILT = {
    "the weights lack vit.layernorm.bias": lambda tensors: tensors.pop("weights/vit.layernorm.bias"),
    "the weights hold the unknown odd": lambda tensors: tensors.update({"weights/odd": torch.ones(4)}),
    "vit.layernorm.bias of shape (7,), not (32,)": lambda tensors: tensors.update(
        {"weights/vit.layernorm.bias": torch.ones(7)}
    ),
    "NaN or infinity in weights/vit.layernorm.bias": lambda tensors: tensors["weights/vit.layernorm.bias"].fill_(
        float("nan")
    ),
}


@pytest.mark.parametrize("told", SPOILT)
def test_each_way_that_shards_can_miss_the_config_is_named(tmp_path: Path, told: str):
    faults = faults_of(write_sharded_step(tmp_path, 1, spoil=SPOILT[told]))
    assert faults
    assert all(told in fault for fault in faults)


def test_a_checkpoint_from_before_the_first_update_is_whole(tmp_path: Path):
    def write_files(directory: Path) -> None:
        MawsViTModel(tiny_config()).save_pretrained(directory)
        save_file({}, directory / "optimizer.safetensors")

    ckpt.save_checkpoint(tmp_path, 1, write_files, facts={}, keep=2)
    assert faults_of(tmp_path) == []


@pytest.mark.parametrize("manifest", ["{}", "[" * 100_000, "", '{"sha256": 3}'])
def test_a_manifest_of_another_shape_is_a_fault_and_no_traceback(run: Path, manifest: str):
    step = run / "checkpoints" / "step-00000003"
    (step / "manifest.json").write_text(manifest)
    assert ["manifest.json" in fault for fault in faults_of(step)] == [True]


def test_a_checkpoint_that_was_written_with_nan_is_a_fault(tmp_path: Path):
    def write_files(directory: Path) -> None:
        save_file({"w": torch.tensor([1.0, float("nan")])}, directory / "optimizer.safetensors")

    ckpt.save_checkpoint(tmp_path, 4, write_files, facts={}, keep=2)
    (fault,) = faults_of(tmp_path)
    assert "optimizer.safetensors holds NaN or infinity in w" in fault


def test_each_way_that_weights_can_miss_the_config_is_named(tmp_path: Path):
    write_model(tmp_path)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["odd.weight"] = tensors.pop("vit.layernorm.bias")
        tensors["vit.layernorm.weight"] = torch.ones(7)

    change_weights(tmp_path / WEIGHTS, change)
    faults = faults_of(tmp_path)
    assert len(faults) == 3
    assert any("lack vit.layernorm.bias" in fault for fault in faults)
    assert any("hold the unknown odd.weight" in fault for fault in faults)
    assert any("vit.layernorm.weight of shape (7,), not (32,)" in fault for fault in faults)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", b"{", "describes no model"),
        ("config.json", b'{"model_type": "maws_vit", "hidden_size": 1000000000000}', "hidden_size"),
        (WEIGHTS, b"\xff" * 20, "is not a whole safetensors file"),
        (WEIGHTS, None, "is missing"),
        ("preprocessor_config.json", None, "is missing"),
        ("preprocessor_config.json", b"[", "makes no image processor"),
    ],
)
def test_a_model_with_a_broken_file_is_a_fault_of_that_file(tmp_path: Path, name: str, content: bytes | None, told):
    write_model(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    faults = faults_of(tmp_path)
    assert any(name in fault and told in fault for fault in faults), faults


def test_an_infinite_weight_is_found(tmp_path: Path):
    write_model(tmp_path)
    change_weights(tmp_path / WEIGHTS, lambda tensors: tensors["vit.layernorm.bias"].fill_(float("inf")))
    assert any("NaN or infinity in vit.layernorm.bias" in fault for fault in faults_of(tmp_path))


def test_shards_are_compared_with_their_records_and_counted(tmp_path: Path):
    import hashlib

    for number in (0, 1):
        content = b"shard" * (number + 1)
        (tmp_path / f"train-{number:05d}-of-00003.parquet").write_bytes(content)
        record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (tmp_path / f"train-{number:05d}-of-00003.json").write_text(json.dumps(record))
    assert ["lacks 1 of 3 shards of train, the first number 2" in fault for fault in faults_of(tmp_path)] == [True]
    (tmp_path / "train-00001-of-00003.parquet").write_bytes(b"shardshare")
    (tmp_path / "train-00000-of-00003.parquet").unlink()
    told = " ".join(faults_of(tmp_path))
    assert "train-00001-of-00003.parquet is not what was written" in told
    assert "train-00000-of-00003.parquet is missing" in told


def test_a_folder_with_nothing_known_in_it_is_said_to_be_that(tmp_path: Path):
    with pytest.raises(VerificationError, match="nothing to verify"):
        list(verify_folder(tmp_path))
    with pytest.raises(VerificationError, match="no folder"):
        list(verify_folder(tmp_path / "nowhere"))


def test_the_newest_usable_is_the_newest_without_faults():
    verdicts = [
        Verdict(Path("step-00000009"), "", ()),
        Verdict(Path("step-00000010"), "", ()),
        Verdict(Path("step-00000011"), "", ("broken",)),
        Verdict(Path("model"), "", ()),
    ]
    assert newest_usable(verdicts) == Path("step-00000010")
    assert newest_usable(verdicts[3:]) is None
