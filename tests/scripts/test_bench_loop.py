"""The parts of the benchmark of the loop, with small loads."""

import re
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from bench_data import synthetic_jpeg
from bench_loop import (
    RATES,
    SHARDS,
    Loop,
    Supply,
    calculated_table,
    compare_on_device,
    named_rate,
    open_loader,
    parse_arguments,
    run_bare,
    run_ready,
    seconds_at,
    seconds_between_steps,
    simulate_device,
    step_rows,
    write_pictures,
)
from timed_loop import Device, Resident, StepTimes, open_ready, run_loop
from tiny import tiny_config

from maws_hf import MawsMAEForPreTraining, MawsViTModel
from maws_hf.training import loop as training_loop


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


def test_a_device_works_by_itself_until_it_is_waited_for():
    device, model = Device(100.0), MawsViTModel(tiny_config())
    start = time.perf_counter()
    device.objective(model, {"keys": ["a"] * 8})
    device.objective(model, {"keys": ["a"] * 4})
    assert time.perf_counter() - start < 0.1
    device.wait(torch.zeros(()))
    assert time.perf_counter() - start >= 0.12
    start = time.perf_counter()
    device.wait(torch.zeros(()))
    assert time.perf_counter() - start < 0.1, "it is ready"


def test_what_the_loop_does_while_the_device_works_costs_nothing(corpus: Path):
    class Slow(Resident):
        def __iter__(self):
            while True:
                time.sleep(0.15)
                yield self.batch

    batch = {"pixel_values": torch.zeros(8, 3, 16, 16, dtype=torch.uint8), "keys": ["a"] * 8, "skipped": []}
    loop = simulate_device("slow", Slow(batch), 8, 0, rate=40.0, steps=4)
    assert loop.device == pytest.approx(0.2)
    assert 0.2 <= loop.times.wall < 0.3
    assert loop.times.waited < 0.05
    hurried = simulate_device("slow", Slow(batch), 8, 0, rate=800.0, steps=4)
    assert hurried.times.wall >= 0.15
    assert hurried.times.waited > 0.1, "no device can be fed faster than the loader reads"


def test_a_device_has_pictures_in_memory_of_its_own(corpus: Path):
    device, value = Device(1.0), torch.arange(4)
    first, second, third, again = (device.copy(value + i, value.device) for i in range(4))
    assert [tensor.tolist() for tensor in (second, third)] == [[1, 2, 3, 4], [2, 3, 4, 5]]
    assert again is first
    assert again.tolist() == [3, 4, 5, 6]
    assert Device(1.0, transfers=False).copy(value, value.device) is value


def test_batches_that_nobody_decodes_come_in_new_memory():
    batches = iter(open_ready(3, 1))
    first, second = next(batches), next(batches)
    assert first["pixel_values"].shape == (3, 3, 224, 224)
    assert first["keys"] == ["00000000.jpg", "00000001.jpg", "00000002.jpg"]
    assert first["pixel_values"].is_shared()
    first["pixel_values"].zero_()
    assert second["pixel_values"].float().mean() == pytest.approx(127.5, rel=0.02)


def test_ready_batches_run_beside_one_that_lies_there():
    arguments = parse_arguments(["--ready_batches", "100", "--device_batch", "4", "--workers", "1"])
    resident, ready = run_ready(arguments)
    assert [(loop.data, loop.workers, loop.device) for loop in (resident, ready)] == [
        ("resident", 0, 0.04),
        ("ready", 1, 0.04),
    ]
    assert min(resident.times.wall, ready.times.wall) > 0.04


def test_time_between_steps_is_that_of_the_host_after_a_result(monkeypatch: pytest.MonkeyPatch):
    short = seconds_between_steps("vit_b16", 3)
    finish = training_loop._Run.finish_step

    def slow(*arguments: object) -> None:
        finish(*arguments)
        time.sleep(0.05)

    monkeypatch.setattr(training_loop._Run, "finish_step", slow)
    assert 0 < short < 0.05 < seconds_between_steps("vit_b16", 3)


def test_a_real_loader_feeds_a_device(corpus: Path):
    loop = simulate_device("decoded", open_loader(corpus, 16, 8, 0), 8, 0, rate=100.0, steps=3)
    assert loop.times.wall >= 0.08
    assert loop.times.thread < 0.08, "a wait is no work"
    assert loop.times.cpu > loop.times.thread, "another thread reads"


def test_times_at_another_batch_are_on_a_line():
    assert seconds_at(1024, [64, 256, 64, 256], [1.64, 3.56, 1.64, 3.56]) == pytest.approx(11.24)
    assert seconds_at(1024, [64, 64, 64], [1.0, 5.0, 2.0]) == 2.0
    assert seconds_at(1024, [64, 256], [4.0, 2.0]) == 3.0, "noise: larger batches are not cheaper"
    assert seconds_at(100, [1, 2], [1.0, 3.0]) == 200.0, "nothing costs less than no time"


@pytest.mark.parametrize(("rate", "longer"), [(1000, "+3.0 %"), (20000, "+100.0 %")])
def test_cores_and_percent_follow_from_what_was_measured(rate: int, longer: str):
    arguments = parse_arguments(["--rates", f"card={rate}", "--device_batch", "100", "--pcie_gbps", "15.0528"])
    loops = [
        Loop("decoded", 64, workers, 500.0, StepTimes(0.2, cpu, thread, 0.0))
        for workers, cpu, thread in ((2, 9.0, 1.0), (8, 0.012, 0.003))
    ]
    table = calculated_table([Path("a"), Path("b")], [Supply(1, 9.0, 0.001), Supply(1, 9.0, 0.004)], loops, arguments)
    row = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
    # With most workers 3 ms of the main thread and 9 of the other, and 1 to copy 15 MB: it takes 10 to read a batch.
    assert row[2:] == [f"{rate / 1000:.1f}", f"{rate / 250:.1f}", f"{100_000 / rate:.0f}", "3.00", "10.00", longer]


def test_rates_have_names():
    assert named_rate("my card=12.5") == ("my card", 12.5)
    assert dict(parse_arguments([]).rates) == RATES


def test_a_real_device_runs_the_loop_on_ready_batches(accelerator_anew):
    options = ["--device", "cpu", "--size", "vit_tiny16", "--device_batch", "2", "--steps", "2", "--rounds", "2"]
    printed = compare_on_device(parse_arguments([*options, "--workers", "5", "1"]))
    assert "vit_tiny16, 2 images" in printed
    rows = re.findall(r"^\| (\w.*?) +\| (\S+) +\| (\S+) %.*\| (\S+) +\|$", printed, re.MULTILINE)
    assert [name for name, *_ in rows] == [
        "bare step, resident batch",
        "loop, resident batch",
        "loop, ready batches, 1 workers",
    ]
    assert all(float(milliseconds) > 1 for _, milliseconds, _, _ in rows)
    assert float(rows[0][2]) == float(rows[0][3]) == 0
    assert AcceleratorState().mixed_precision == "bf16"


@pytest.fixture
def accelerator_anew():
    """Precision is the process's, and other tests have another."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_bare_step_is_timed_between_two_waits(gpu, monkeypatch: pytest.MonkeyPatch):
    import side_by_side

    monkeypatch.setattr(side_by_side, "on_gpu", lambda device: True)
    dtypes = []
    model = MawsMAEForPreTraining(tiny_config())
    model.vit.layers[0].mlp.fc1.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    run_bare(model, torch.zeros(2, 3, 32, 32, dtype=torch.uint8), 2, bf16=True)
    assert gpu.calls == ["synchronize"] * 2
    assert set(dtypes) == {torch.bfloat16}


def test_a_row_says_how_much_longer_a_step_is():
    times = {
        "bare": [StepTimes(0.1, 0.0, 0.0, 0.0), StepTimes(0.2, 0.0, 0.0, 0.0)],
        "loop": [StepTimes(0.11, 0.0, 0.0, 0.003), StepTimes(0.21, 0.0, 0.0, 0.001)],
    }
    bare, loop = step_rows(times, "bare")
    assert bare == ["bare", "150.0", "+0.0 % (+0.0 % to +0.0 %)", "0.00"]
    assert loop == ["loop", "160.0", "+7.4 % (+5.0 % to +10.0 %)", "2.00"]
