"""A loss that jumps is told, and left out if asked; a falling one never is."""

import math
import random
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from line_run import lines, objective, run

from maws_hf.training import loop
from maws_hf.training.spikes import LEAST, MOST_SKIPPED, WINDOW, highest_loss, remember


def spikes_of(series: list[float], factor: float) -> list[int]:
    """Places of the spikes, which do not enter the median."""
    recent: list[float] = []
    found = []
    for place, loss in enumerate(series):
        if loss > highest_loss(recent, factor):
            found.append(place)
        else:
            remember(loss, recent)
    return found


def test_the_spikes_of_a_noisy_falling_series_are_found_and_nothing_else():
    rng = random.Random(0)
    series = [6 * 0.995**step * rng.uniform(0.8, 1.25) for step in range(600)]
    for place in (50, 333, 599):
        series[place] *= 5
    assert spikes_of(series, 3.0) == [50, 333, 599]


@given(st.lists(st.floats(1e-6, 1e6), max_size=200), st.floats(1.0, 10.0))
def test_a_falling_series_never_has_one(series: list[float], factor: float):
    assert not spikes_of(sorted(series, reverse=True), factor)


def test_there_is_none_before_the_median_means_something_nor_without_a_factor():
    assert highest_loss([1.0] * (LEAST - 1), 3.0) == math.inf
    assert highest_loss([1.0] * LEAST, 3.0) == 3.0
    assert highest_loss([1.0] * LEAST, 0.0) == math.inf
    assert highest_loss([-1.0] * LEAST, 3.0) == math.inf, "three times as low is no jump"
    assert highest_loss([0.0] * LEAST, 3.0) == math.inf, "nor is the first loss that is not zero"
    assert highest_loss([1.0] * LEAST + [1000.0] * 2, 3.0) == 3.0, "those few would move a mean"
    assert highest_loss([1.0] * LEAST + [2.0] * LEAST, 3.0) == 4.5
    assert highest_loss([1000.0] * WINDOW + [1.0] * WINDOW, 3.0) == 3.0, "what lies beyond the window is forgotten"


def test_a_loss_at_the_limit_is_judged_alike_on_host_and_device():
    losses = torch.full((LEAST,), 0.1).tolist()
    limit = highest_loss(losses, 3.0)
    for loss in (torch.tensor(limit), torch.tensor(limit).nextafter(torch.tensor(1.0))):
        assert bool(loss <= limit) == (loss.item() <= limit)
    assert limit == pytest.approx(0.3)


def test_only_the_window_is_remembered():
    recent: list[float] = []
    for loss in range(3 * WINDOW):
        remember(float(loss), recent)
    assert recent == [float(loss) for loss in range(2 * WINDOW, 3 * WINDOW)]


class Jumping:
    """The objective, a hundred times larger in the updates `jumps`; notes the weights before each."""

    def __init__(self, jumps: Collection[int]):
        self.calls, self.jumps, self.weights = 0, jumps, []

    def __call__(self, model: torch.nn.Module, batch: dict) -> torch.Tensor:
        self.calls += 1
        self.weights.append(model.line.weight.item())
        return objective(model, batch) * (100 if self.calls in self.jumps else 1)


def test_a_spike_is_told_with_its_images_and_changes_nothing_by_default(image_shards: Path, tmp_path: Path, capsys):
    jumping = Jumping([25])
    run(image_shards, tmp_path, jumping, max_steps=30, save_steps=30, learning_rate=1e-4)
    (spike,) = lines(tmp_path / "spikes.jsonl")
    assert (spike["step"], spike["skipped"], len(spike["keys"])) == (25, False, 4)
    assert jumping.weights[25] != jumping.weights[24]
    assert "step 25: the loss jumps to" in capsys.readouterr().out


@pytest.mark.parametrize("deciding", [loop.DECIDING_DEVICES, ()], ids=["decided by the device", "by the host"])
@pytest.mark.parametrize("save_steps", [30, 27])
def test_skipped_spikes_are_bounded_and_the_bound_outlives_a_restart(
    save_steps, deciding, image_shards: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(loop, "DECIDING_DEVICES", deciding)
    options = {"save_steps": save_steps, "learning_rate": 1e-4, "skip_loss_spikes": True}
    jumping = Jumping(range(26, 31))
    if save_steps == 27:  # the restart comes after two of them
        run(image_shards, tmp_path, jumping, max_steps=27, **options)
    run(image_shards, tmp_path, jumping, max_steps=31, **options)
    spikes = [(line["step"], line["skipped"]) for line in lines(tmp_path / "spikes.jsonl")]
    assert spikes == [(step, step < 26 + MOST_SKIPPED) for step in range(26, 31)]
    weights = jumping.weights
    assert weights[25] == weights[26] == weights[27] == weights[28] != weights[29]


def test_an_ordinary_loss_ends_a_row_of_spikes(image_shards: Path, tmp_path: Path):
    jumping = Jumping([26, 27, 29, 30])  # more than may be left out in a row
    run(image_shards, tmp_path, jumping, max_steps=30, save_steps=30, learning_rate=1e-4, skip_loss_spikes=True)
    spikes = [(line["step"], line["skipped"]) for line in lines(tmp_path / "spikes.jsonl")]
    assert spikes == [(step, True) for step in jumping.jumps]
