"""What benchmarks share: turns with a clock, and where and how precisely a GPU computes."""

import argparse
import sys
import time

import pytest
import side_by_side
import torch
from side_by_side import (
    add_device_options,
    describe_machine,
    forget_peak,
    let_go,
    memory_now,
    memory_peak,
    positive,
    take_turns,
    use_device,
)


class Clock:
    """Of a GPU that works by itself: time passes where the host waits for it."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.now, self.owed, self.calls = 0.0, 0.0, {}
        patch.setattr(time, "perf_counter", lambda: self.now)
        patch.setattr(torch.cuda, "synchronize", self.wait)

    def wait(self) -> None:
        self.now, self.owed = self.now + self.owed, 0.0

    def form(self, name: str, seconds: float):
        def call() -> int:
            self.calls[name] = self.calls.get(name, 0) + 1
            assert self.calls[name] < 1000, "a turn never ends"
            self.owed += seconds
            return self.calls[name]

        return call


def test_a_turn_on_a_gpu_is_long_enough_and_counts_one_call(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    forms = {"short": clock.form("short", 0.01), "long": clock.form("long", 0.5)}
    seconds, results = take_turns(forms, 4, "cuda:1")
    assert seconds == {"short": pytest.approx([0.01] * 4), "long": pytest.approx([0.5] * 4)}
    assert results == {"short": 1, "long": 1}
    # Three that do not count; 1 + 2 + 4 + 8 + 16 + 32 until it took long enough; four turns.
    assert clock.calls == {"short": 3 + 63 + 4 * 32, "long": 3 + 1 + 4}


def test_a_turn_on_a_cpu_is_one_call(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    seconds, _ = take_turns({"short": clock.form("short", 0.01)}, 4)
    assert clock.calls == {"short": 5}
    assert len(seconds["short"]) == 4


@pytest.mark.parametrize("threads", [1, 2])
def test_of_one_thread_work_is_timed_and_of_several_what_a_user_waits(threads: int):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seconds, _ = take_turns({"waiting": lambda: time.sleep(0.1)}, 1)
    finally:
        torch.set_num_threads(before)
    assert (seconds["waiting"][0] >= 0.1) is (threads > 1)


@pytest.mark.parametrize("device", ["gpu", "cuda:x"])
def test_a_device_that_torch_does_not_know_is_no_option(device: str, capsys: pytest.CaptureFixture):
    parser = argparse.ArgumentParser()
    add_device_options(parser)
    assert parser.parse_args(["--device", "cuda:1"]).device == "cuda:1"
    with pytest.raises(SystemExit):
        parser.parse_args(["--device", device])
    assert f"argument --device: {device} is no device; say cpu, cuda or cuda:1" in capsys.readouterr().err


@pytest.mark.parametrize(("device", "chosen"), [("cpu", None), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_is_chosen_by_its_number(device: str, chosen: int | None, gpu, exact_again):
    use_device(device)
    assert gpu.chosen == chosen


def test_a_gpu_that_is_not_there_is_an_error(gpu, exact_again):
    with pytest.raises(SystemExit, match=r"--device cuda:2: torch finds 2 GPU"):
        use_device("cuda:2")


@pytest.fixture
def exact_again():
    yield
    use_device("cpu")


@pytest.mark.parametrize(("tf32", "said"), [(False, "float32 in float32"), (True, "float32 in TF32")])
def test_products_and_convolutions_are_equally_precise(tf32: bool, said: str, gpu, exact_again):
    use_device("cuda", not tf32)
    use_device("cuda", tf32)
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32
    assert said in describe_machine("cuda")
    assert "TF32" not in describe_machine()


def test_the_peak_on_a_gpu_is_that_of_its_tensors(gpu):
    gpu.allocate(100)
    gpu.allocate(-60)
    forget_peak("cuda")
    gpu.allocate(20)
    gpu.allocate(-10)
    assert (memory_now("cuda"), memory_peak("cuda")) == (50, 60)


def test_elsewhere_than_on_linux_a_peak_is_refused_with_what_to_type(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(SystemExit, match="read from Linux: give --no_memory"):
        forget_peak()


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from Linux")
def test_the_peak_on_a_cpu_is_that_of_the_process():
    forget_peak()
    before = memory_now()
    taken = bytearray(64 * 2**20)
    del taken
    assert 60 * 2**20 < memory_peak() - before < 100 * 2**20


def test_nothing_is_left_of_a_comparison(gpu):
    compiled: list[list[int]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        compiled.append(list(inputs[0].shape))
        return graph

    def double(inputs: torch.Tensor) -> torch.Tensor:
        return 2 * inputs

    for _ in range(2):
        let_go()
        for _ in range(2):
            torch.compile(double, backend=backend, dynamic=False)(torch.ones(2))
    assert compiled == [[2], [2]]
    assert gpu.calls == ["empty_cache"] * 2


def test_units_of_a_table():
    assert side_by_side.unit_of_time("cpu") == ("s", 1.0)
    assert side_by_side.unit_of_time("cuda") == ("ms", 1000.0)


@pytest.mark.parametrize("given", ["0", "-3", "few"])
def test_of_less_than_one_nothing_can_be_measured(given: str, capsys: pytest.CaptureFixture[str]):
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=positive)
    assert parser.parse_args(["--rounds", "3"]).rounds == 3
    with pytest.raises(SystemExit):
        parser.parse_args(["--rounds", given])
    assert "argument --rounds: " in capsys.readouterr().err
