"""The example scripts with sharded parameters, on a few processes over gloo, beside data-parallel runs of the same."""

import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List
from rank_environments import rank_environments
from runs import finish, script, start
from safetensors.torch import load_file
from tiny import draw_image

from maws_hf import MawsMAEForPreTraining, MawsViTForImageClassification
from maws_hf.training.sharded_files import CheckpointTensors
from maws_hf.training.verification import verify_folder

TINY = (
    "image_size=16,patch_size=4,hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,"
    "decoder_hidden_size=8,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=16"
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as `accelerate launch` sets them on GPUs


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    features = Features({"image": Image(), "labels": List(ClassLabel(names=["even", "odd", "third"]))})
    for shard in range(2):
        images = [{"bytes": draw_image(24 * shard + i), "path": f"{shard}/{i}.png"} for i in range(24)]
        labels = [["even" if i % 2 == 0 else "odd", "third"][: 1 + (i % 3 == 0)] for i in range(24)]
        rows = Dataset.from_dict({"image": images, "labels": labels}, features=features)
        rows.to_parquet(folder / f"train-{shard:05d}-of-00002.parquet")
    return folder


@pytest.fixture
def run(prepare, monkeypatch: pytest.MonkeyPatch):
    def run(
        name: str,
        data: Path,
        output_dir: Path,
        environment: dict[str, str],
        processes: int = 2,
        torchrun: bool = False,
        **options: object,
    ) -> str:
        defaults = {
            "dataset_name": data,
            "output_dir": output_dir,
            "config_overrides": TINY,
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "adam_epsilon": 1e-3,  # so that an update does not turn rounding into a step of full length
            "max_grad_norm": 0.3,
            "ema_decay": 0.9,
            "logging_steps": 1,
            "save_steps": 2,
            "dataloader_num_workers": 0,
        }
        command = script(name, **{**defaults, **options})
        if torchrun:
            for variable, value in environment.items():
                monkeypatch.setenv(variable, value)
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            return finish(start(launch + command[1:]))
        ranks = [prepare(command, **environment, **rank) for rank in rank_environments(processes)]
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            time.sleep(0.05)  # until one has failed: the others would wait for it
        printed = "".join(rank.output.read_text(encoding="utf-8") for rank in ranks)
        assert [rank.poll() for rank in ranks] == [0] * processes, printed
        return printed

    return run


def assert_same_weights(left: Path, right: Path) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (left, right))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6, msg=name)


def test_mae_ends_in_the_weights_of_a_data_parallel_run_and_continues(run, image_shards: Path, tmp_path: Path):
    run("run_mae.py", image_shards, tmp_path / "whole", {}, picture_steps=2)
    run("run_mae.py", image_shards, tmp_path / "sharded", SHARDED, picture_steps=2)
    assert_same_weights(tmp_path / "sharded", tmp_path / "whole")
    MawsMAEForPreTraining.from_pretrained(tmp_path / "sharded")
    verdicts = list(verify_folder(tmp_path / "sharded"))
    assert [(verdict.path.name, verdict.faults) for verdict in verdicts] == [
        ("step-00000002", ()),
        ("step-00000004", ()),
        ("sharded", ()),
    ]
    for picture in ("reconstruction.png", "loss.png", "reconstructions/step-00000002.png"):
        assert (tmp_path / "sharded" / picture).read_bytes().startswith(b"\x89PNG"), picture
    files = {path.name for path in (tmp_path / "sharded/checkpoints/step-00000004").iterdir()}
    assert {"shard-00000-of-00002.safetensors", "shard-00001-of-00002.safetensors"} < files
    assert not any(name.startswith("model") for name in files)

    straight = (tmp_path / "sharded/model.safetensors").read_bytes()
    for path in (tmp_path / "sharded/checkpoints/step-00000004").iterdir():
        path.unlink()
    (tmp_path / "sharded/checkpoints/step-00000004").rmdir()
    assert "resuming after step 2" in run("run_mae.py", image_shards, tmp_path / "sharded", SHARDED, picture_steps=2)
    assert (tmp_path / "sharded/model.safetensors").read_bytes() == straight

    more = {"processes": 1, "max_steps": 5, "learning_rate": 1e-9}  # an update that changes next to nothing
    printed = run("run_mae.py", image_shards, tmp_path / "sharded", {}, **more)
    assert "step-00000004 was written by 2 processes, this run has 1" in printed
    assert "reading goes on with epoch 1" in printed
    steps = (tmp_path / "sharded/checkpoints" / f"step-0000000{step}" for step in (4, 5))
    with CheckpointTensors(next(steps)) as before, CheckpointTensors(next(steps)) as after:
        assert before.shapes == after.shapes
        for name in before.shapes:
            old, new = before.read(name), after.read(name)
            if name.startswith("weights/"):
                torch.testing.assert_close(new, old, rtol=0, atol=1e-7, msg=name)
            elif name.startswith("average/"):
                weights = before.read(name.replace("average/", "weights/"))
                assert (new - weights).norm() <= (old - weights).norm(), name
            else:
                assert not torch.equal(new, old), name
        assert {int(after.read(f"optimizer/{name}")) for name in after.names("optimizer/") if "|step" in name} == {5}


def test_wsp_ends_in_the_weights_of_a_data_parallel_run(run, labelled: Path, tmp_path: Path):
    run("run_wsp.py", labelled, tmp_path / "whole", {}, bf16=True, gradient_checkpointing=True)
    run("run_wsp.py", labelled, tmp_path / "sharded", SHARDED, bf16=True, gradient_checkpointing=True)
    assert_same_weights(tmp_path / "sharded", tmp_path / "whole")
    assert MawsViTForImageClassification.from_pretrained(tmp_path / "sharded").config.num_labels == 3


def test_a_start_at_another_size_is_read_by_rows_but_for_its_positions(run, labelled: Path, tmp_path: Path):
    run("run_mae.py", labelled, tmp_path / "start", {}, processes=1, max_steps=1)
    options = {"model_name_or_path": tmp_path / "start", "config_overrides": "image_size=24", "max_steps": 1}
    for script_name in ("run_mae.py", "run_wsp.py"):
        for name, environment in (("whole", {}), ("sharded", SHARDED)):
            printed = run(script_name, labelled, tmp_path / f"{script_name}-{name}", environment, **options)
            assert printed.count("is of 16 px: its positions are made to fit 24 px") == 1
        assert_same_weights(tmp_path / f"{script_name}-sharded", tmp_path / f"{script_name}-whole")


def test_copies_that_are_sharded_end_in_the_weights_of_a_data_parallel_run_and_continue_as_one(
    run, image_shards: Path, tmp_path: Path
):
    sizes = {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"}
    options = {"per_device_train_batch_size": 2, "processes": 4}
    run("run_mae.py", image_shards, tmp_path / "whole", {}, **options)
    run("run_mae.py", image_shards, tmp_path / "hybrid", {**SHARDED, **sizes}, **options)
    assert_same_weights(tmp_path / "hybrid", tmp_path / "whole")
    assert not any(fault for verdict in verify_folder(tmp_path / "hybrid") for fault in verdict.faults)
    files = {path.name for path in (tmp_path / "hybrid/checkpoints/step-00000004").iterdir()}
    assert {name for name in files if name.startswith("shard")} == {
        "shard-00000-of-00002.safetensors",
        "shard-00001-of-00002.safetensors",
    }
    assert {f"rank-{rank:05d}.json" for rank in range(4)} < files  # each has its own position in the data

    for name, environment in (("whole", {}), ("hybrid", SHARDED)):
        printed = run("run_mae.py", image_shards, tmp_path / name, environment, processes=2, max_steps=5)
        assert "step-00000004 was written by 4 processes, this run has 2" in printed
    assert_same_weights(tmp_path / "hybrid", tmp_path / "whole")


def test_one_process_is_sharded_as_well(run, image_shards: Path, tmp_path: Path):
    options = {"processes": 1, "picture_steps": 2}
    run("run_mae.py", image_shards, tmp_path / "whole", {}, **options)
    run("run_mae.py", image_shards, tmp_path / "sharded", SHARDED, torchrun=True, **options)
    assert_same_weights(tmp_path / "sharded", tmp_path / "whole")
    assert (tmp_path / "sharded/checkpoints/step-00000004/shard-00000-of-00001.safetensors").exists()
