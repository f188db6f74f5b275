"""The training loop once more, reading ahead as it does for an accelerator: nothing that it leaves behind differs."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from line_run import Line, lines, objective, run
from safetensors.torch import load_file
from test_loop import (  # noqa: F401
    half_broken,
    test_a_chosen_checkpoint_is_resumed_from,
    test_a_damaged_shard_among_good_ones_is_written_down_and_the_run_goes_on,
    test_a_non_finite_step_is_refused_and_its_images_are_noted,
    test_a_run_saved_before_any_update_was_accepted_goes_on,
    test_a_run_started_elsewhere_continues_its_own_checkpoints,
    test_a_run_that_cannot_read_on_is_saved_before_the_images_it_could_not_read,
    test_a_run_that_met_too_many_bad_images_goes_on_once_they_are_repaired,
    test_accumulated_gradients_equal_those_of_the_whole_batch,
    test_an_evaluator_that_raises_finds_live_weights_and_leaves_a_run_that_continues,
    test_non_finite_steps_in_a_row_end_the_run_with_the_checkpoint_intact,
    test_training_lowers_the_loss_and_logs_every_step,
)
from test_resumption import (  # noqa: F401
    test_another_batch_continues_the_stream_and_tells_both_learning_rates,
    test_other_workers_change_nothing_but_the_order_of_the_images,
)

from maws_hf.training import prefetch

pytestmark = pytest.mark.filterwarnings("ignore:.*shards cannot be dealt evenly")
MODES = {"on demand": lambda device: False, "ahead": lambda device: True}


@pytest.fixture(autouse=True)
def reading_ahead(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test here reads ahead, as far as it may before the loop goes on, and is told if it did not."""
    made = []
    init, read = prefetch.ReadAhead.__init__, prefetch.ReadAhead.__next__

    def noted(self: prefetch.ReadAhead, loader: Any, device: torch.device, ahead: int) -> None:
        made.append((self, ahead))
        init(self, loader, device, ahead)

    def read_and_wait(self: prefetch.ReadAhead) -> prefetch.Batch:
        batch, (_, ahead) = read(self), made[-1]
        while self._ready.qsize() < ahead and self._thread.is_alive():
            time.sleep(0.0005)
        return batch

    monkeypatch.setattr(prefetch.ReadAhead, "__init__", noted)
    monkeypatch.setattr(prefetch.ReadAhead, "__next__", read_and_wait)
    monkeypatch.setattr(prefetch, "reads_ahead", MODES["ahead"])
    yield
    assert made
    assert not any(reader._thread.is_alive() for reader, _ in made)


class Seen:
    """The objective, and the images of each call; the process is gone at a call."""

    def __init__(self, dies_at: int = -1):
        self.keys, self.dies_at = [], dies_at

    def __call__(self, model: Line, batch: dict) -> torch.Tensor:
        if len(self.keys) == self.dies_at:
            raise MemoryError
        self.keys.append(batch["keys"])
        return objective(model, batch)


def assert_same_checkpoints(left: Path, right: Path) -> None:
    names = sorted(path.name for path in (left / "checkpoints").iterdir())
    assert names == sorted(path.name for path in (right / "checkpoints").iterdir())
    for name in names:
        first, second = left / "checkpoints" / name, right / "checkpoints" / name
        positions = [json.loads((folder / "rank-00000.json").read_text()) for folder in (first, second)]
        assert positions[0] == positions[1]
        for file in first.glob("*.safetensors"):
            ours, theirs = load_file(file), load_file(second / file.name)
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(("workers", "accumulation"), [(0, 1), (0, 3), (2, 2)])
def test_what_is_saved_does_not_depend_on_how_batches_are_read(
    workers: int, accumulation: int, image_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = {
        "max_steps": 60 // accumulation,  # in the third epoch of 24 batches
        "save_steps": 7,
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
        "ema_decay": 0.9,
        "save_total_limit": 100,
    }
    seen = {}
    for name, mode in MODES.items():
        monkeypatch.setattr(prefetch, "reads_ahead", mode)
        seen[name] = Seen()
        run(image_shards, tmp_path / name, seen[name], **options)
    assert seen["on demand"].keys == seen["ahead"].keys
    assert_same_checkpoints(tmp_path / "on demand", tmp_path / "ahead")


@pytest.mark.parametrize(("before", "after"), [("ahead", "ahead"), ("ahead", "on demand"), ("on demand", "ahead")])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_that_dies_in_any_step_goes_on_with_the_images_behind_its_checkpoint(
    before: str, after: str, accumulation: int, image_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = {"max_steps": 14, "save_steps": 2, "gradient_accumulation_steps": accumulation}
    whole = Seen()
    _, straight = run(image_shards, tmp_path / "straight", whole, **options)
    for dies_at in range(5, 14 * accumulation, 4):
        folder, rest = tmp_path / str(dies_at), Seen()
        monkeypatch.setattr(prefetch, "reads_ahead", MODES[before])
        with pytest.raises(MemoryError):
            run(image_shards, folder, Seen(dies_at), **options)
        monkeypatch.setattr(prefetch, "reads_ahead", MODES[after])
        _, resumed = run(image_shards, folder, rest, **options)
        done = dies_at // accumulation // 2 * 2  # updates that were saved
        assert rest.keys == whole.keys[done * accumulation :]
        assert torch.equal(straight.line.weight, resumed.line.weight)


@pytest.mark.parametrize("bad_batch", [4, 5])
def test_an_update_of_which_a_batch_cannot_be_read_is_not_begun(bad_batch: int, image_shards: Path, tmp_path: Path):
    options = {"gradient_accumulation_steps": 2, "save_steps": 100}
    whole, first, rest = Seen(), Seen(), Seen()
    _, straight = run(image_shards, tmp_path / "straight", whole, **options)
    with pytest.raises(OSError, match="the disk is gone"):
        run(image_shards, tmp_path / "run", first, bad_batch=bad_batch, **options)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    _, resumed = run(image_shards, tmp_path / "run", rest, **options)
    assert first.keys + rest.keys == whole.keys
    assert torch.equal(straight.line.weight, resumed.line.weight)


def test_data_that_end_are_told_and_saved_behind_the_last_whole_update(image_shards: Path, tmp_path: Path):
    with pytest.raises(RuntimeError, match="the data of this process have ended"):
        run(image_shards, tmp_path, batches=5, gradient_accumulation_steps=2)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
