"""The parts of the benchmark of the loop, with small loads."""

import time
from pathlib import Path

import pytest
import torch
from bench_data import synthetic_jpeg
from bench_loop import (
    RATES,
    SHARDS,
    Loop,
    Resident,
    StepTimes,
    Supply,
    Watched,
    calculated_table,
    named_rate,
    open_loader,
    overhead_of_main_process,
    parse_arguments,
    run_loop,
    simulate_device,
    write_pictures,
)
from tiny import tiny_config

from maws_hf import MawsViTModel


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "40 x 32"
    write_pictures(folder, 2 * SHARDS, (32, 40, 90))
    return folder


def test_the_pictures_are_read_as_they_were_written(corpus: Path):
    batch = next(iter(open_loader(corpus, 16, 2 * SHARDS, 0)))
    assert batch["pixel_values"].shape == (2 * SHARDS, 3, 16, 16)
    assert len(set(batch["keys"])) == 2 * SHARDS
    assert synthetic_jpeg(32, 40, 90, 0) != synthetic_jpeg(32, 40, 90, 1)


def test_a_slow_loader_is_seen_as_waiting_and_not_as_work():
    class Slow(Resident):
        def __iter__(self):
            while True:
                time.sleep(0.05)
                yield self.batch

    batch = {"pixel_values": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "keys": ["a", "b"], "skipped": []}
    times = run_loop(MawsViTModel(tiny_config()), objective, Slow(batch), steps=4)
    assert 0.05 <= times.waited <= times.wall
    assert times.cpu < times.wall
    assert run_loop(MawsViTModel(tiny_config()), objective, Resident(batch), steps=4).waited < 0.02


def objective(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    return model(batch["pixel_values"]).pooler_output.square().mean()


def test_the_loader_waits_where_it_is_asked_for_batches():
    watched = Watched(Resident({"keys": []}))
    batches = iter(watched)
    assert watched.waits == []
    next(batches), next(batches)
    assert len(watched.waits) == 2
    assert watched.state_dict() == {}


def test_a_device_that_waits_is_as_slow_as_it_was_told(corpus: Path):
    loop = simulate_device(corpus, batch=8, workers=0, rate=100.0, steps=3)
    assert loop.device == pytest.approx(0.08, rel=0.3)
    assert loop.device < loop.times.wall
    assert loop.times.cpu < 0.08, "a wait is no work"


def test_the_overhead_is_a_line_through_the_batches():
    assert overhead_of_main_process([64, 256, 64, 256], [1.64, 3.56, 1.64, 3.56]) == pytest.approx((1.0, 0.01))
    assert overhead_of_main_process([64, 64, 64], [1.0, 5.0, 2.0]) == (2.0, 0.0)
    assert overhead_of_main_process([64, 256], [4.0, 2.0]) == (3.0, 0.0), "noise: larger batches are not cheaper"


def test_cores_and_percent_follow_from_what_was_measured():
    arguments = parse_arguments(["--rates", "card=1000", "--device_batch", "100", "--pcie_gbps", "15.0528"])
    loops = [Loop(64, workers, 500.0, 0.1, StepTimes(0.2, cpu, 0.0)) for workers, cpu in ((2, 9.0), (8, 0.002))]
    table = calculated_table([Path("a"), Path("b")], [Supply(1, 9.0, 0.001), Supply(1, 9.0, 0.004)], loops, arguments)
    row = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
    # 0.1 s a step; 2 ms of the main process with most workers, 1 ms to copy 15 MB.
    assert row == ["card", "1000", "1.0", "4.0", "100", "2.00", "1.00", "+3.0 %"]


def test_rates_have_names():
    assert named_rate("my card=12.5") == ("my card", 12.5)
    assert dict(parse_arguments([]).rates) == RATES
