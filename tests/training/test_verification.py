"""`maws-hf verify`: what is whole is called whole, and every fault is named with its file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from tiny_lit import tiny_lit
from tiny_two_towers import tiny_tokenizer

from maws_hf import MawsLiTProcessor, MawsMAEForPreTraining, MawsViTModel
from maws_hf.cli import main
from maws_hf.processing.image_processors import image_processor_of
from maws_hf.training import checkpoint as ckpt
from maws_hf.training import sharded_files
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


@pytest.mark.parametrize("way", ["from within", "link", "copy", "set aside"])
def test_a_checkpoint_by_another_name_is_compared_with_its_manifest(run: Path, way: str, monkeypatch):
    step = run / "checkpoints" / "step-00000003"
    aside = step.with_name("damaged-step-00000003")
    folder = {"from within": Path(), "link": run / "latest", "copy": run / "best", "set aside": aside}[way]
    if way == "from within":
        monkeypatch.chdir(step)
    elif way == "link":
        folder.symlink_to(step)
    else:
        shutil.copytree(step, folder)
    (verdict,) = verify_folder(folder)
    assert ("SHA-256" in verdict.checked, verdict.faults) == (True, ())
    file = folder / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    (fault,) = faults_of(folder)
    assert "optimizer.safetensors is not what was written" in fault


def test_a_checkpoint_under_the_name_of_another_step_is_a_fault(run: Path):
    folder = run / "checkpoints" / "step-00000009"
    shutil.copytree(run / "checkpoints" / "step-00000003", folder)
    (fault,) = faults_of(folder)
    assert "describes step 3" in fault


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


def write_sharded_step(root: Path, change=lambda tensors: None, **config: Any) -> None:
    """As a sharded run writes it, of one process; `config` are fields of another model than the weights'."""
    model = MawsViTModel(tiny_config())
    tensors = {f"weights/{name}": tensor for name, tensor in model.state_dict().items()}
    change(tensors)

    def write_files(directory: Path) -> None:
        sharded_files.write_shard(tensors, directory, 0, 1)
        sharded_files.save_config(MawsViTModel(tiny_config(**config)), directory)
        (directory / "rank-00000.json").write_text("{}")

    ckpt.save_checkpoint(root, 1, write_files, facts={}, keep=5)


def test_a_checkpoint_of_shards_is_whole(tmp_path: Path, capsys):
    write_sharded_step(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(tmp_path)])
    assert ended.value.code == 0, capsys.readouterr().out
    assert "the newest whole checkpoint is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "config", "told"),
    [
        (lambda tensors: tensors.pop("weights/layernorm.bias"), {}, "the weights lack layernorm.bias"),
        (lambda tensors: tensors.update({"weights/odd": torch.ones(3)}), {}, "the weights hold the unknown odd"),
        (lambda tensors: tensors["weights/layernorm.bias"].fill_(torch.nan), {}, "NaN or infinity in weights/layern"),
        (lambda tensors: None, {"num_hidden_layers": 3}, "the weights lack layers.2."),
        (lambda tensors: None, {"intermediate_size": 65}, "weight of shape (32, 64), not (32, 65)"),
    ],
)
def test_a_checkpoint_of_shards_is_compared_with_its_config(tmp_path: Path, change, config: dict[str, Any], told: str):
    write_sharded_step(tmp_path, change, **config)
    (fault,) = faults_of(tmp_path)
    assert told in fault


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


def split_weights(folder: Path) -> list[Path]:
    """The folder's weights in several files with an index."""
    model = MawsMAEForPreTraining.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    return sorted(folder.glob("model-*.safetensors"))


def test_weights_in_several_files_are_read_without_config_and_index(tmp_path: Path):
    write_model(tmp_path)
    split_weights(tmp_path)
    assert faults_of(tmp_path) == []
    for file in tmp_path.glob("*.json"):
        file.unlink()
    told = " ".join(faults_of(tmp_path))
    assert "config.json describes no model" in told
    assert "model.safetensors.index.json is missing" in told


@pytest.mark.parametrize("way", ["folder", "link"])
def test_a_file_of_weights_that_is_none_is_a_fault_and_no_traceback(tmp_path: Path, way: str):
    write_model(tmp_path)
    file = split_weights(tmp_path)[1]
    file.unlink()
    if way == "folder":
        file.mkdir()
    else:
        file.symlink_to(tmp_path / "gone")
    faults = faults_of(tmp_path)
    assert f"{file} is no file, or a link that leads nowhere" in faults


@pytest.mark.parametrize("architectures", [5, [], ["nn"], "MawsMAEForPreTraining"])
def test_architectures_that_are_none_are_a_fault_and_no_traceback(tmp_path: Path, architectures: Any):
    write_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
    (fault,) = faults_of(tmp_path)
    assert "config.json names the architecture" in fault


def test_an_adapter_needs_its_config_and_its_weights(tmp_path: Path):
    save_file({"prompts": torch.ones(3)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert faults_of(tmp_path) == []
    for content in ("[" * 100_000, "[1]", "{}", '{"peft_type": 3}'):
        (tmp_path / "adapter_config.json").write_text(content)
        assert ["adapter_config.json is missing or describes no" in fault for fault in faults_of(tmp_path)] == [True]
    write_model(tmp_path)  # the base may lie beside it
    (tmp_path / "adapter_model.safetensors").unlink()
    assert f"{tmp_path}/adapter_model.safetensors is missing" in faults_of(tmp_path)


@pytest.fixture
def two_towers(tmp_path: Path) -> Path:
    model = tiny_lit()
    model.save_pretrained(tmp_path / "lit")
    processor = MawsLiTProcessor(image_processor_of(model.config.vision_config), tiny_tokenizer())
    processor.save_pretrained(tmp_path / "lit")
    return tmp_path / "lit"


@pytest.mark.parametrize("content", [None, "{", "[" * 100_000])
def test_two_towers_need_a_tokenizer(two_towers: Path, content: str | None):
    assert faults_of(two_towers) == []
    file = two_towers / "tokenizer.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    (fault,) = faults_of(two_towers)
    assert f"{two_towers} comes without a tokenizer" in fault


def test_a_text_tower_alone_needs_no_image_processor(two_towers: Path, tmp_path: Path):
    folder = tmp_path / "tower"
    tiny_lit().text_model.save_pretrained(folder)  # without a pooler
    (fault,) = faults_of(folder)
    assert "comes without a tokenizer" in fault
    for file in two_towers.glob("tokenizer*"):
        shutil.copy(file, folder)
    assert faults_of(folder) == []


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
