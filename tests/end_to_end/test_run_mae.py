"""`examples/run_mae.py` as a user runs it."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from runs import (
    assert_same_run,
    assert_same_run_weights,
    comparable_metrics,
    finish,
    kill_after,
    leave_out_training,
    load_script,
    script,
    start,
    steps_logged,
)
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from maws_hf import MawsMAEForPreTraining, MawsViTConfig, MawsViTModel
from maws_hf.evaluation.flops import mae_training_flops
from maws_hf.models.patch_grid import resample_position_table
from maws_hf.training.ledger import Stage, read_ledger, write_ledger
from maws_hf.training.model import parse_overrides

STEPS = 60
TINY = (
    "image_size=16,patch_size=4,hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,"
    "decoder_hidden_size=8,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=16,"
    "drop_path_rate=0.1"
)
TINY_FIELDS = parse_overrides(TINY)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def command(corpus: Path, output_dir: Path, **options: object) -> list[str]:
    defaults = {
        "dataset_name": corpus,
        "output_dir": output_dir,
        "config_overrides": TINY,
        "max_steps": STEPS,
        "warmup_steps": 5,
        "per_device_train_batch_size": 5,
        "gradient_accumulation_steps": 2,
        "shuffle_block_size": 7,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 7,
        "picture_steps": 30,
        "dataloader_num_workers": 0,
    }
    return script("run_mae.py", **{**defaults, **options})


@pytest.fixture(scope="module")
def straight_run(image_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("straight")
    output = finish(start(command(image_shards, output_dir)))
    assert "loss on masked patches" in output
    assert str(output_dir / "reconstruction.png") in output
    return output_dir


def test_a_run_leaves_a_model_pictures_and_metrics(straight_run: Path):
    assert steps_logged(straight_run) == list(range(1, STEPS + 1))
    for picture in ("reconstruction.png", "loss.png", "reconstructions/step-00000030.png"):
        assert (straight_run / picture).read_bytes().startswith(b"\x89PNG"), picture
    checkpoints = sorted(path.name for path in (straight_run / "checkpoints").iterdir())
    assert checkpoints == ["step-00000056", "step-00000060"]
    assert not list(straight_run.rglob("*.bin")), "nothing may be pickled"
    assert not list(straight_run.rglob("*.pkl")), "nothing may be pickled"

    encoder, report = MawsViTModel.from_pretrained(straight_run, output_loading_info=True)
    assert not report["missing_keys"]
    processor = AutoImageProcessor.from_pretrained(straight_run)
    image = torch.zeros(3, 30, 20, dtype=torch.uint8)
    assert encoder(**processor(image, return_tensors="pt")).pooler_output.shape == (1, 16)


def test_the_same_seed_ends_in_identical_weights(prepare, straight_run: Path, image_shards: Path, tmp_path: Path):
    finish(prepare(command(image_shards, tmp_path)))
    assert_same_run(straight_run, tmp_path)


def test_a_rectangular_model_started_from_half_precision_weights_trains_in_float32(
    prepare, image_shards: Path, tmp_path: Path
):
    options = {"max_steps": 2, "warmup_steps": 0, "picture_steps": 1}
    first, second = tmp_path / "first", tmp_path / "second"
    rectangle = f"{TINY},image_size=[16,24]".replace("image_size=16,", "")
    finish(prepare(command(image_shards, first, **options, config_overrides=rectangle)))
    half = tmp_path / "half"
    MawsMAEForPreTraining.from_pretrained(first, dtype=torch.bfloat16).save_pretrained(half)
    options |= {"model_name_or_path": half, "config_overrides": "mask_ratio=0.5"}
    finish(prepare(command(image_shards, second, **options)))
    model = MawsMAEForPreTraining.from_pretrained(second)
    assert model.config.image_size == (16, 24)
    assert model.config.mask_ratio == 0.5
    assert {tensor.dtype for tensor in load_file(second / "model.safetensors").values()} == {torch.float32}


def test_a_model_is_trained_on_at_another_size_and_the_same_command_resumes(
    prepare, straight_run: Path, image_shards: Path, tmp_path: Path
):
    options = {"model_name_or_path": straight_run, "config_overrides": "image_size=[24,16]", "save_steps": 3}
    straight, killed = (command(image_shards, tmp_path / name, **options) for name in ("straight", "killed"))
    output = finish(prepare(straight))
    assert f"{straight_run} is of 16 px: its positions are made to fit (24, 16) px\n" in output
    kill_after(prepare(killed), tmp_path / "killed", 8)
    output = finish(prepare(killed))
    assert "resuming after step" in output
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    model, report = MawsMAEForPreTraining.from_pretrained(tmp_path / "killed", output_loading_info=True)
    assert not any(report.values()), report
    assert model.config.image_size == (24, 16)
    start = MawsMAEForPreTraining.from_pretrained(straight_run)
    for found, old in [(model.decoder, start.decoder), (model.vit.embeddings, start.vit.embeddings)]:
        expected = resample_position_table(old.position_embeddings, (4, 4), (6, 4))
        assert torch.equal(found.position_embeddings, expected)
    assert AutoImageProcessor.from_pretrained(tmp_path / "killed").crop_size == {"height": 24, "width": 16}
    assert [stage.name for stage in read_ledger(str(tmp_path / "killed"))] == ["mae", "mae"]


def test_an_objective_that_is_not_the_papers_is_one_flag_and_counted_as_what_it_costs(
    prepare, image_shards: Path, tmp_path: Path
):
    shortcut = "decoder_attention=cross,decoder_inter_block_attention=true,prediction_ratio=0.5"
    options = {"max_steps": 3, "warmup_steps": 0, "picture_steps": 3, "gradient_checkpointing": True}
    output = finish(prepare(command(image_shards, tmp_path, **options, config_overrides=f"{TINY},{shortcut}")))
    assert "loss on masked patches" in output
    assert (tmp_path / "reconstruction.png").read_bytes().startswith(b"\x89PNG")
    model, report = MawsMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert (model.config.decoder_attention, model.config.prediction_ratio) == ("cross", 0.5)
    (stage,) = read_ledger(str(tmp_path))
    assert stage.flops == stage.images * mae_training_flops(model.config)
    assert stage.flops < 0.97 * stage.images * mae_training_flops(MawsViTConfig(**TINY_FIELDS))


def test_another_seed_ends_in_other_weights(prepare, straight_run: Path, image_shards: Path, tmp_path: Path):
    finish(prepare(command(image_shards, tmp_path, seed=1)))
    first, second = load_file(straight_run / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert not torch.equal(first["vit.layers.0.mlp.fc1.weight"], second["vit.layers.0.mlp.fc1.weight"])


@pytest.mark.parametrize("workers", [0, 2])
def test_three_kills_change_nothing(prepare, workers: int, straight_run: Path, image_shards: Path, tmp_path: Path):
    reference = straight_run
    if workers:
        reference = tmp_path / "straight"
        finish(prepare(command(image_shards, reference, dataloader_num_workers=workers)))
    killed = tmp_path / "killed"
    arguments = command(image_shards, killed, dataloader_num_workers=workers)
    for step in sorted(random.SystemRandom().sample(range(2, STEPS - 2), 3)):
        print(f"killing after step {step}")
        kill_after(prepare(arguments), killed, step)
    finish(prepare(arguments))
    assert_same_run(reference, killed)


def test_sigterm_saves_at_once_and_says_how_to_go_on(straight_run: Path, image_shards: Path, tmp_path: Path):
    arguments = command(image_shards, tmp_path, save_steps=1000)
    process = start(arguments)
    while (steps_logged(tmp_path) or [0])[-1] < 10 and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    output = finish(process, expected=128 + signal.SIGTERM)
    assert "the same command continues" in output
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    finish(start(arguments))
    assert_same_run_weights(straight_run, tmp_path)


of_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers die of SIGTERM")


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=of_linux), signal.SIGINT])
def test_a_signal_to_the_whole_group_saves_though_workers_get_it_too(
    prepare, number: int, start_method: str, image_shards: Path, tmp_path: Path
):
    options = {
        "dataloader_num_workers": 2,
        "gradient_accumulation_steps": 8,
        "max_steps": 100_000,
        "save_steps": 99_999,
    }
    process = prepare(command(image_shards, tmp_path, **options), start_method=start_method)
    while (steps_logged(tmp_path) or [0])[-1] < 5 and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    output = finish(process, expected=128 + number)
    assert "the same command continues" in output
    assert "Traceback" not in output
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert int(checkpoint.name[-8:]) == steps_logged(tmp_path)[-1]


def test_a_killed_data_worker_is_one_sentence_and_the_same_command_continues(
    prepare, image_shards: Path, tmp_path: Path
):
    options = {"dataloader_num_workers": 2, "save_steps": 3, "max_steps": 100_000}
    process = prepare(command(image_shards, tmp_path, **options), start_method="fork")
    while (steps_logged(tmp_path) or [0])[-1] < 5 and process.poll() is None:
        time.sleep(0.01)
    workers = [child for child in psutil.Process(process.pid).children() if child.num_threads() > 1]
    workers[0].kill()
    output = finish(process, expected=1)
    assert "error: a process that reads data was killed (" in output, output
    assert "a smaller --shuffle_block_size. The same command continues\n" in output
    assert "Traceback" not in output
    saved = max(int(path.name[-8:]) for path in (tmp_path / "checkpoints").glob("step-*"))
    finish(prepare(command(image_shards, tmp_path, **{**options, "max_steps": saved + 3})))
    assert steps_logged(tmp_path)[-1] == saved + 3


def test_a_second_run_in_the_same_folder_is_refused(prepare, image_shards: Path, tmp_path: Path):
    arguments = command(image_shards, tmp_path, max_steps=100_000, save_steps=99_999)
    first = prepare(arguments)
    while not steps_logged(tmp_path) and first.poll() is None:
        time.sleep(0.01)
    output = finish(prepare(arguments), expected=1)
    assert f"process {first.pid} is training in {tmp_path}" in output.splitlines()[-1]
    first.terminate()
    finish(first, expected=128 + signal.SIGTERM)


def test_killing_the_launcher_stops_and_saves_the_run(image_shards: Path, tmp_path: Path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--cpu"]
    process = start(launch + command(image_shards, tmp_path, max_steps=100_000, save_steps=99_999)[1:])
    while not steps_logged(tmp_path) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    output, _ = process.communicate(timeout=60)  # ends only when the orphaned script has closed its output too
    assert "the same command continues" in output
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_two_processes_finish_and_save_one_model(image_shards: Path, tmp_path: Path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=2", "--cpu"]
    arguments = command(image_shards, tmp_path, max_steps=8, dataloader_num_workers=1)
    finish(start(launch + arguments[1:]))
    assert steps_logged(tmp_path) == list(range(1, 9))
    ranks = sorted(path.name for path in (tmp_path / "checkpoints" / "step-00000008").glob("rank-*.json"))
    assert ranks == ["rank-00000.json", "rank-00001.json"]
    model, saved = MawsMAEForPreTraining.from_pretrained(tmp_path), load_file(tmp_path / "model.safetensors")
    assert model.config.hidden_size == 16
    assert saved.keys() == MawsMAEForPreTraining(model.config).state_dict().keys(), "nothing of the ranks in names"
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())

    again = tmp_path / "again"
    shorter = command(image_shards, again, max_steps=8, dataloader_num_workers=1, save_steps=3)
    process = start(launch + shorter[1:], start_new_session=True)
    kill_after(process, again, 5)
    finish(start(launch + shorter[1:]))
    assert_same_run_weights(tmp_path, again)

    alone = {"max_steps": 11, "per_device_train_batch_size": 10, "dataloader_num_workers": 0}
    output = finish(start(command(image_shards, tmp_path, **alone)))
    assert "2 processes x 1 data workers, now 1 x 0: reading goes on with epoch" in output
    metrics = comparable_metrics(tmp_path)
    assert [line["step"] for line in metrics] == list(range(1, 12))
    assert [line["images_seen"] for line in metrics] == list(range(20, 240, 20))
    assert "peak learning rate" not in output, "10 images x 2 are as many as 5 x 2 x 2 processes"


def test_bf16_checkpointing_and_a_tracker_train_alike(prepare, straight_run: Path, image_shards: Path, tmp_path: Path):
    options = {"bf16": True, "gradient_checkpointing": True, "report_to": "tensorboard", "max_grad_norm": 1}
    finish(prepare(command(image_shards, tmp_path, **options)))
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    plain, mixed = (comparable_metrics(folder)[-1]["loss"] for folder in (straight_run, tmp_path))
    assert plain != mixed
    assert mixed == pytest.approx(plain, rel=0.02)


def test_a_compiled_run_trains_alike_and_saves_plain_names(
    prepare, straight_run: Path, image_shards: Path, tmp_path: Path
):
    finish(prepare(command(image_shards, tmp_path, torch_compile=True)))
    compiled, plain = load_file(tmp_path / "model.safetensors"), load_file(straight_run / "model.safetensors")
    assert compiled.keys() == plain.keys()
    # The compiler draws other masks from the same seed.
    first, last = (comparable_metrics(tmp_path)[index]["loss"] for index in (0, -1))
    assert last < first
    assert last == pytest.approx(comparable_metrics(straight_run)[-1]["loss"], rel=0.1)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"max_stepz": 3}, "--max_stepz"),
        ({"config_overrides": "hidden_size=30,num_attention_heads=4"}, "num_attention_heads=4 is not possible"),
        ({"config_overrides": "hiden_size=30"}, "did you mean 'hidden_size'"),
        ({"dataset_name": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"warmup_steps": 60}, "--warmup_steps 60 is not possible"),
        ({"dataset_split": "validation"}, "no split 'validation'"),
        ({"config_overrides": "hidden_size=16.5"}, "hidden_size"),
        ({"config_overrides": "hidden_size"}, "must be field=value"),
        ({"report_to": "wandb"}, "pip install wandb"),
        ({"picture_steps": 0}, "--picture_steps 0 is not possible"),
        ({"model_name_or_path": "/nowhere/at/all"}, "there is no folder /nowhere/at/all"),
        ({"model_name_or_path": "README.md"}, "`maws-hf convert README.md --output_dir FOLDER`"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(
    prepare, options: dict, wanted: str, image_shards: Path, tmp_path: Path
):
    process = prepare(command(image_shards, tmp_path / "run", **options))
    output, _ = process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    assert wanted in output.splitlines()[-1], output
    assert "Traceback" not in output


def test_the_ledger_goes_on_and_the_end_is_measured_with_masks_of_the_seed(
    image_shards: Path, tmp_path: Path, monkeypatch
):
    run, noises, drawn = load_script("run_mae.py", monkeypatch), [], {}
    losses = {"loss": 0.1, "shuffled_positions_loss": 0.2, "patch_mean_loss": 0.3, "patch_colour_loss": 0.4}
    monkeypatch.setattr(run, "reconstruction_losses", lambda model, images, noise: noises.append(noise) or losses)
    monkeypatch.setattr(run, "plot_curve", lambda *files, references: drawn.update(references))
    start = tmp_path / "start"
    MawsMAEForPreTraining(MawsViTConfig(**TINY_FIELDS)).save_pretrained(start)
    write_ledger(start, [Stage("mae", images=3, flops=5)])
    for number, seed in enumerate((0, 0, 1)):
        options = {"model_name_or_path": start, "config_overrides": "", "seed": seed}
        arguments = command(image_shards, tmp_path / str(number), **options)
        given = leave_out_training(run, arguments, monkeypatch)
    assert torch.equal(noises[0], noises[1])
    assert not torch.equal(noises[0], noises[2])
    assert noises[0].shape == (96, 16)
    spent = Stage("mae", images=7, flops=7 * mae_training_flops(given.model.config))
    assert read_ledger(str(tmp_path / "0")) == [Stage("mae", images=3, flops=5), spent]
    assert given.flops_per_image == mae_training_flops(given.model.config)
    assert drawn == {"every patch's mean": 0.3, "every patch's own mean colour": 0.4}


def test_the_report_has_each_loss_in_its_line(tmp_path: Path, monkeypatch, capsys):
    run = load_script("run_mae.py", monkeypatch)
    losses = {"loss": 0.1, "shuffled_positions_loss": 0.2, "patch_mean_loss": 0.3, "patch_colour_loss": 0.4}
    run.report(tmp_path, 5, Stage("mae", images=1000, flops=10**12), losses)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "MAE pre-pretraining: 5 steps done, 1,000 images, 1.00e+12 operations." in lines
    assert "loss on masked patches 0.1000" in lines
    assert "the same with shuffled positions 0.2000" in lines
    assert "predicting each patch's mean 0.3000" in lines
    assert any(line.startswith("predicting each patch's own mean colour 0.4000") for line in lines)
