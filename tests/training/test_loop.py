import hashlib
import math
import shutil
import subprocess
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from line_run import Line, LineConfig, lines, objective, run
from safetensors.torch import load_file
from tiny import draw_image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from maws_hf.data.sources import open_stream
from maws_hf.training import loop
from maws_hf.training.checkpoint import CheckpointError
from maws_hf.training.loop import Outcome, TrainingError
from maws_hf.training.records import JsonLines
from maws_hf.training.sharded_files import CheckpointTensors
from maws_hf.training.skips import most_in_a_row, note_skipped
from maws_hf.whole_files import temporary_beside


def test_training_lowers_the_loss_and_logs_every_step(image_shards: Path, tmp_path: Path):
    outcome, _ = run(image_shards, tmp_path, max_steps=30)
    assert outcome == Outcome(step=30, exit_code=0, images_seen=120)
    logged = lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in logged] == list(range(1, 31))
    assert logged[-1]["loss"] < 0.5 * logged[0]["loss"]
    assert logged[-1]["images_seen"] == 120


def test_accumulated_gradients_equal_those_of_the_whole_batch(image_shards: Path, tmp_path: Path):
    _, whole = run(image_shards, tmp_path / "whole", per_device_train_batch_size=12)
    _, accumulated = run(image_shards, tmp_path / "parts", gradient_accumulation_steps=3)
    for left, right in zip(whole.parameters(), accumulated.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-6)
    first, second = (lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    for left, right in zip(first, second, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-6)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], abs=1e-5)


def test_the_images_of_a_forward_pass_are_given_up_after_it(image_shards: Path, tmp_path: Path):
    images: list[weakref.ref] = []

    def watched(model: nn.Module, batch: dict) -> torch.Tensor:
        assert not any(image() is not None for image in images)
        images.append(weakref.ref(batch["pixel_values"]))
        return objective(model, batch)

    run(image_shards, tmp_path, batch_loss=watched, gradient_accumulation_steps=3, max_steps=2)
    assert len(images) == 6


class ValuesAskedFor(TorchDispatchMode):
    """Counts what makes the host wait for an accelerator: Python wants to know a tensor's values."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__()
        self.count = 0
        for method in ("tolist", "numpy"):  # which do not pass the dispatcher
            monkeypatch.setattr(torch.Tensor, method, self._counted(getattr(torch.Tensor, method)))

    def _counted(self, method: Callable) -> Callable:
        def counted(tensor: torch.Tensor, *args, **kwargs):
            self.count += 1
            return method(tensor, *args, **kwargs)

        return counted

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_an_update_waits_for_the_device_once(image_shards: Path, tmp_path: Path, monkeypatch):
    counts = []
    with ValuesAskedFor(monkeypatch) as asked:
        run(
            image_shards,
            tmp_path,
            max_steps=6,
            save_steps=6,
            logging_steps=1,
            gradient_accumulation_steps=2,
            max_grad_norm=1.0,
            ema_decay=0.9,
            dataloader_num_workers=1,  # whose tensors nobody waits for
            after_step=lambda step, model: counts.append(asked.count),
        )
    assert [after - before for before, after in pairwise(counts)] == [1] * 5


def test_the_whole_update_is_on_its_way_before_the_host_waits(image_shards: Path, tmp_path: Path, monkeypatch):
    calls = []

    def note(owner, name: str) -> None:
        call = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: (calls.append(name), call(*args))[1])

    note(torch.optim.AdamW, "step")
    note(loop, "wait_for")
    run(image_shards, tmp_path, max_steps=3, skip_loss_spikes=True)
    assert calls == ["step", "wait_for"] * 3


def test_what_a_callback_has_put_to_evaluation_is_trained_again(image_shards: Path, tmp_path: Path):
    training: list[bool] = []

    def watched(model: nn.Module, batch: dict) -> torch.Tensor:
        training.append(all(module.training for module in model.modules()))
        return objective(model, batch)

    run(
        image_shards,
        tmp_path,
        batch_loss=watched,
        max_steps=4,
        after_step=lambda step, model: next(model.children()).eval(),
    )
    assert training == [True] * 4


def test_learning_rate_scales_with_the_batch_unless_given(image_shards: Path, tmp_path: Path):
    run(image_shards, tmp_path, learning_rate=None, base_learning_rate=1.0, gradient_accumulation_steps=2)
    assert lines(tmp_path / "metrics.jsonl")[0]["learning_rate"] == pytest.approx(8 / 256)


def test_clipping_scales_the_gradient_to_the_limit(image_shards: Path, tmp_path: Path, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def observed(optimizer, *args, **kwargs):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", observed)

    def steep(model: nn.Module, batch: dict) -> torch.Tensor:
        return 1000 * objective(model, batch)

    run(image_shards, tmp_path / "clipped", batch_loss=steep, max_steps=1, max_grad_norm=1.0)
    run(image_shards, tmp_path / "free", batch_loss=steep, max_steps=1)
    assert norms[0] == pytest.approx(1.0, rel=1e-4)
    assert norms[1] > 100
    for name in ("clipped", "free"):
        assert lines(tmp_path / name / "metrics.jsonl")[0]["grad_norm"] == pytest.approx(norms[1])


class Spoiled:
    """An objective that turns bad at chosen calls."""

    def __init__(self, bad_calls: set[int], spoil):
        self.calls, self.bad_calls, self.spoil, self.weights = 0, bad_calls, spoil, []

    def __call__(self, model: nn.Module, batch: dict) -> torch.Tensor:
        self.weights.append([parameter.detach().clone() for parameter in model.parameters()])
        loss = objective(model, batch)
        bad = self.calls in self.bad_calls
        self.calls += 1
        return self.spoil(loss) if bad else loss


def infinite_gradient(loss: torch.Tensor) -> torch.Tensor:
    finite = loss.clone()
    finite.register_hook(lambda gradient: gradient * float("inf"))
    return finite


@pytest.mark.parametrize("deciding", [loop.DECIDING_DEVICES, ()], ids=["decided by the device", "by the host"])
@pytest.mark.parametrize(
    "spoil", [lambda loss: loss * float("nan"), lambda loss: loss * float("inf"), infinite_gradient]
)
def test_a_non_finite_step_is_refused_and_its_images_are_noted(
    spoil, deciding, image_shards: Path, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setattr(loop, "DECIDING_DEVICES", deciding)
    spoiled = Spoiled({2}, spoil)
    outcome, model = run(image_shards, tmp_path, batch_loss=spoiled)
    assert outcome.step == 6
    before, after, later = spoiled.weights[2:5]
    assert all(torch.equal(left, right) for left, right in zip(before, after, strict=True))
    assert not all(torch.equal(left, right) for left, right in zip(after, later, strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert lines(tmp_path / "metrics.jsonl")[2]["loss"] is None
    (refused,) = lines(tmp_path / "refused.jsonl")
    assert refused["step"] == 3
    assert len(refused["keys"]) == 4
    assert not math.isfinite(float(refused["grad_norm"]))
    told = capsys.readouterr().out
    assert f"step 3 refused: loss {refused['loss']}, gradient norm {refused['grad_norm']}; its images" in told
    moments = load_file(tmp_path / "checkpoints" / "step-00000003" / "optimizer.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in moments.values())
    assert {tensor.item() for name, tensor in moments.items() if name.endswith("step")} == {2}


def test_non_finite_steps_in_a_row_end_the_run_with_the_checkpoint_intact(image_shards: Path, tmp_path: Path):
    spoiled = Spoiled({1, 4, 5}, lambda loss: loss * float("nan"))
    with pytest.raises(TrainingError, match=r"step 6 refused.*2 in a row.*--max_grad_norm"):
        run(image_shards, tmp_path, batch_loss=spoiled, max_nonfinite_steps=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_a_run_saved_before_any_update_was_accepted_goes_on(image_shards: Path, tmp_path: Path):
    spoiled = Spoiled({0, 1}, lambda loss: loss * float("nan"))
    run(image_shards, tmp_path / "stopped", batch_loss=spoiled, max_steps=2)
    outcome, resumed = run(image_shards, tmp_path / "stopped", batch_loss=spoiled)
    assert outcome.step == 6
    _, straight = run(image_shards, tmp_path / "straight", Spoiled({0, 1}, lambda loss: loss * float("nan")))
    for left, right in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.fixture
def half_broken(image_shards: Path, tmp_path: Path) -> Path:
    """The corpus with every second image cut short."""
    from datasets import Dataset, Features, Image

    rows = []
    for row in open_stream(image_shards):
        image = dict(row["image"])
        if len(rows) % 2:
            image["bytes"] = image["bytes"][:60]
        rows.append(image)
    folder = tmp_path / "half_broken"
    folder.mkdir()
    dataset = Dataset.from_dict({"image": rows}, features=Features({"image": Image(decode=False)}))
    dataset.cast_column("image", Image()).to_parquet(folder / "train.parquet")
    return folder


def test_bad_images_are_skipped_and_written_down(half_broken: Path, tmp_path: Path):
    outcome, _ = run(half_broken, tmp_path / "run", max_steps=10)
    assert outcome.step == 10
    skipped = lines(tmp_path / "run" / "skipped.jsonl")
    assert lines(tmp_path / "run" / "metrics.jsonl")[-1]["images_skipped"] == len(skipped)
    assert 20 < len(skipped) < 60
    assert all(record["key"].endswith(".png") and record["reason"] and record["step"] for record in skipped)


def test_too_many_bad_images_end_the_run(half_broken: Path, tmp_path: Path):
    message = r"\d+ of the last \d+ images could not be read .*skipped\.jsonl.*more than 0\.2% with --max_skip_rate"
    with pytest.raises(TrainingError, match=message):
        run(half_broken, tmp_path / "run", max_steps=100, save_steps=1000, max_skip_rate=0.002)
    assert len(lines(tmp_path / "run" / "skipped.jsonl")) > 20
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert int(saved.name[-8:]) == lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"]


def test_a_run_that_met_too_many_bad_images_goes_on_once_they_are_repaired(half_broken: Path, tmp_path: Path):
    options = {"max_steps": 40, "logging_steps": 40, "max_skip_rate": 0.002}
    with pytest.raises(TrainingError, match="Repair the data"):
        run(half_broken, tmp_path / "run", **options)
    with pytest.raises(TrainingError, match="Repair the data"):
        run(half_broken, tmp_path / "run", **options)  # nothing is repaired yet
    from datasets import Dataset, Features, Image

    rows = [{"bytes": draw_image(i), "path": row["image"]["path"]} for i, row in enumerate(open_stream(half_broken))]
    dataset = Dataset.from_dict({"image": rows}, features=Features({"image": Image()}))
    dataset.to_parquet(half_broken / "train.parquet")
    outcome, _ = run(half_broken, tmp_path / "run", **options)
    assert outcome.step == 40


def test_the_rate_of_bad_images_is_one_of_all_images_of_a_large_update(tmp_path: Path):
    def too_many(bad: int) -> bool:
        update = {"keys": ["good"] * 20_000, "skipped": [{"key": str(number)} for number in range(bad)]}
        return note_skipped([update], 1, [], JsonLines(tmp_path / "skipped.jsonl"), 0.01)[1]

    assert not too_many(199)
    assert too_many(210)


def test_one_bad_image_met_again_and_again_never_ends_a_run(tmp_path: Path):
    def verdicts(keys: list[str]) -> list[bool]:
        recent, file = [], JsonLines(tmp_path / "skipped.jsonl")
        updates = [{"keys": ["good"], "skipped": [{"key": key, "reason": "broken"}]} for key in keys]
        return [note_skipped([update], step, recent, file, 0.0)[1] for step, update in enumerate(updates)]

    assert verdicts(["same"] * 30) == [False] * 30
    assert verdicts([str(number) for number in range(11)]) == [False] * 9 + [True] * 2


def test_bad_images_in_a_row_are_as_many_as_their_rate_allows():
    assert most_in_a_row(0.01) == 1000, "they say nothing about the others yet"
    assert most_in_a_row(0.9) == 9000


def test_one_bad_image_in_a_small_folder_is_no_reason_to_stop(tmp_path: Path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(9):
        (folder / f"{index}.png").write_bytes(draw_image(index) if index else b"no image")
    outcome, _ = run(folder, tmp_path / "run", max_steps=100, logging_steps=100)
    assert outcome.step == 100
    skipped = lines(tmp_path / "run" / "skipped.jsonl")
    assert len(skipped) > 40
    assert {Path(record["key"]).name for record in skipped} == {"0.png"}


def test_a_nameless_bad_image_has_one_name_in_all_epochs(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "nameless"
    folder.mkdir()
    images = [draw_image(index) if index else b"no image" for index in range(9)]
    pq.write_table(pa.table({"image": images}), folder / "train.parquet")
    run(folder, tmp_path / "run", max_steps=60, logging_steps=60)
    keys = [record["key"] for record in lines(tmp_path / "run" / "skipped.jsonl")]
    assert len(keys) > 20
    assert set(keys) == {f"sha256:{hashlib.sha256(b'no image').hexdigest()[:16]}"}


def test_resuming_with_another_seed_is_refused(image_shards: Path, tmp_path: Path):
    run(image_shards, tmp_path, max_steps=3)
    with pytest.raises(CheckpointError, match=r"--seed 0, this run has 1.*pass --seed 0"):
        run(image_shards, tmp_path, seed=1)


def test_a_run_that_cannot_take_up_another_model_writes_nothing(image_shards: Path, tmp_path: Path, monkeypatch):
    def contents() -> dict[str, bytes]:
        files = (path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock")
        return {str(path): path.read_bytes() for path in files}

    run(image_shards, tmp_path, max_steps=3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 1.0}\n')  # what the run would cut back if it could go on
    before, init = contents(), Line.__init__

    def wider(model: Line, config: LineConfig) -> None:
        init(model, config)
        model.line = nn.Linear(1, 2)

    monkeypatch.setattr(Line, "__init__", wider)
    with pytest.raises(CheckpointError, match=r"line\.\w+ has shape \(1.*\), the model's \(2"):
        run(image_shards, tmp_path)
    assert contents() == before


@pytest.mark.parametrize("place", ["sharded_files.load_weights", "compare_recipes", "restore_position"])
def test_a_checkpoint_that_is_refused_is_closed(place: str, image_shards: Path, tmp_path: Path, monkeypatch):
    run(image_shards, tmp_path, max_steps=3)
    leave, closed = CheckpointTensors.__exit__, []
    monkeypatch.setattr(CheckpointTensors, "__exit__", lambda *given: closed.append(True) or leave(*given))

    def refuse(*given, **more) -> None:
        raise CheckpointError("refused")

    monkeypatch.setattr(f"maws_hf.training.loop.{place}", refuse)
    with pytest.raises(CheckpointError, match="refused"):
        run(image_shards, tmp_path)
    assert closed == [True]


def test_resuming_with_other_options_says_so_and_goes_on(image_shards: Path, tmp_path: Path, capsys):
    run(image_shards, tmp_path, max_steps=3)
    outcome, _ = run(image_shards, tmp_path, max_steps=5, weight_decay=0.1)
    assert outcome.step == 5
    printed = capsys.readouterr().out
    assert "--max_steps was 3 in the checkpoint, now 5" in printed
    assert "--weight_decay was 0.05 in the checkpoint, now 0.1" in printed


def test_a_chosen_checkpoint_is_resumed_from(image_shards: Path, tmp_path: Path):
    _, straight = run(image_shards, tmp_path)
    chosen = tmp_path / "checkpoints" / "step-00000003"
    outcome, again = run(image_shards, tmp_path / "other", resume_from_checkpoint=str(chosen))
    assert outcome.step == 6
    for left, right in zip(straight.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)
    assert [line["step"] for line in lines(tmp_path / "other" / "metrics.jsonl")] == [4, 5, 6]


def test_going_back_is_refused_in_the_same_folder(image_shards: Path, tmp_path: Path):
    run(image_shards, tmp_path)
    with pytest.raises(CheckpointError, match=r"already holds step 6.*another --output_dir"):
        run(image_shards, tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoints" / "step-00000003"))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_run_started_elsewhere_continues_its_own_checkpoints(image_shards: Path, tmp_path: Path):
    run(image_shards, tmp_path / "first", max_steps=3)
    seed = str(tmp_path / "first" / "checkpoints" / "step-00000003")
    run(image_shards, tmp_path / "second", max_steps=6, resume_from_checkpoint=seed)
    shutil.rmtree(seed)  # as the first run does when it goes on
    run(image_shards, tmp_path / "second", max_steps=9, resume_from_checkpoint=seed)
    assert [line["step"] for line in lines(tmp_path / "second" / "metrics.jsonl")] == [4, 5, 6, 7, 8, 9]


def test_a_damaged_newest_checkpoint_is_set_aside_and_not_counted(image_shards: Path, tmp_path: Path):
    run(image_shards, tmp_path)
    damaged = tmp_path / "checkpoints" / "step-00000006" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    run(image_shards, tmp_path, max_steps=5)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["damaged-step-00000006", "step-00000003", "step-00000005"]


def test_a_strict_run_is_told_of_a_damaged_newest_checkpoint_and_leaves_it_there(
    image_shards: Path, tmp_path: Path, capsys
):
    run(image_shards, tmp_path)
    damaged = tmp_path / "checkpoints" / "step-00000006" / "model.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(CheckpointError, match=r"step-00000006/model\.safetensors is not what was written; restore it"):
        run(image_shards, tmp_path, max_steps=7, strict_resume=True)
    damaged.write_bytes(whole)
    capsys.readouterr()
    outcome, _ = run(image_shards, tmp_path, max_steps=7, strict_resume=True)
    assert outcome.step == 7
    assert "--strict_resume" not in capsys.readouterr().out, "it decides nothing about the training"


def test_a_learning_rate_of_zero_is_zero(image_shards: Path, tmp_path: Path):
    run(image_shards, tmp_path, max_steps=1, learning_rate=0.0)
    assert lines(tmp_path / "metrics.jsonl")[0]["learning_rate"] == 0.0


def test_what_a_kill_left_of_pictures_and_records_is_gone_when_the_run_goes_on(
    image_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    killed = subprocess.Popen(["true"])
    killed.wait()
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: killed.pid)
        leftovers = [temporary_beside(tmp_path / name) for name in ("metrics.jsonl", "reconstructions/step-3.png")]
    for leftover in leftovers:
        leftover.parent.mkdir(exist_ok=True)
        leftover.touch()
    run(image_shards, tmp_path, max_steps=1)
    assert not any(leftover.exists() for leftover in leftovers)

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(loop, "remove_leftovers", refuse)
    assert run(image_shards, tmp_path, max_steps=2)[0].step == 2, "it is no reason not to go on"


def test_metrics_after_the_checkpoint_are_cut_back_on_resume(image_shards: Path, tmp_path: Path):
    run(image_shards, tmp_path, max_steps=3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo')  # done but not saved, and torn by a kill
    (tmp_path / "skipped.jsonl").write_bytes(b"\xff\xfe garbage\n[1]\n{}\n")
    run(image_shards, tmp_path)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_an_evaluator_that_raises_finds_live_weights_and_leaves_a_run_that_continues(
    image_shards: Path, tmp_path: Path
):
    options = {"ema_decay": 0.9, "save_steps": 2}
    live: dict[str, list[float]] = {"straight": [], "raising": []}

    def note(step: int, model: nn.Module) -> None:
        live["straight"].append(model.line.weight.item())

    def evaluate(step: int, model: nn.Module) -> None:
        live["raising"].append(model.line.weight.item())
        if step == 5 and len(live["raising"]) == 5:
            raise ValueError("no such metric")

    _, straight = run(image_shards, tmp_path / "straight", after_step=note, **options)
    with pytest.raises(ValueError, match="no such metric"):
        run(image_shards, tmp_path / "raising", after_step=evaluate, **options)
    outcome, resumed = run(image_shards, tmp_path / "raising", after_step=evaluate, **options)
    assert outcome.step == 6
    assert live["raising"] == live["straight"][:5] + live["straight"][4:]
    for name in ("model", "average", "optimizer"):
        first, second = (
            load_file(tmp_path / folder / "checkpoints" / "step-00000006" / f"{name}.safetensors")
            for folder in ("straight", "raising")
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    assert torch.equal(straight.line.weight, resumed.line.weight)


def test_a_run_that_cannot_read_on_is_saved_before_the_images_it_could_not_read(image_shards: Path, tmp_path: Path):
    _, straight = run(image_shards, tmp_path / "straight")
    with pytest.raises(OSError, match="the disk is gone"):
        run(image_shards, tmp_path / "run", bad_batch=4)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step-00000004"
    _, resumed = run(image_shards, tmp_path / "run")
    assert torch.equal(straight.line.weight, resumed.line.weight)


def test_a_damaged_shard_among_good_ones_is_written_down_and_the_run_goes_on(image_shards: Path, tmp_path: Path):
    folder = tmp_path / "shards"
    shutil.copytree(image_shards, folder)
    broken = sorted(folder.iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:-100])
    outcome, _ = run(folder, tmp_path / "run", max_steps=36)  # two epochs of the 72 images that are left
    assert outcome.step == 36
    skipped = lines(tmp_path / "run" / "skipped.jsonl")
    assert [Path(record["key"]).name for record in skipped] == [broken.name] * 2
    assert [record["epoch"] for record in skipped] == [0, 1]
    assert lines(tmp_path / "run" / "metrics.jsonl")[-1]["images_skipped"] == 2
