"""Batches that are read ahead: the same ones, in their order, with the positions behind those that were handed out."""

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import GeneratorType
from typing import Any

import pytest
import torch
from test_resumption import loader_of

from maws_hf.data.loader import loader_state
from maws_hf.processing.text_batches import TextBatch, pack_captions, pad_captions
from maws_hf.training import prefetch
from maws_hf.training.prefetch import OnDemand, ReadAhead, read_batches, reads_ahead

CPU = torch.device("cpu")


class Numbers:
    """A loader whose batches are numbers; its position is how many it has handed out."""

    def __init__(self, count: int = 1000, error: BaseException | None = None, before: Callable[[int], Any] = bool):
        self.count, self.error, self.before, self.read, self.ended = count, error, before, 0, False
        self.dataset = self
        self.memory: list[weakref.ref] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        self.before(self.read)
        if self.read == self.count:
            raise self.error or StopIteration
        tensor = torch.tensor([self.read])
        self.memory.append(weakref.ref(tensor))
        self.read += 1
        return {"keys": [str(self.read - 1)], "number": tensor}

    def identity(self) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"read": self.read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {}
        self.ended = True


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    wait_for(lambda: not threads())


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_the_position_is_behind_the_batches_handed_out_however_many_are_ready(ahead: int):
    loader = Numbers()
    with ReadAhead(loader, CPU, ahead) if ahead else OnDemand(loader, CPU) as batches:
        for count in range(20):
            wait_for(lambda: loader.read == count + ahead)  # noqa: B023
            assert batches.position["loader"] == {"read": count}
            batch = next(batches)
            assert batch["number"].item() == count
            assert batch["keys"] == [str(count)]


def test_no_more_batches_are_ready_than_were_asked_for():
    loader = Numbers()
    with ReadAhead(loader, CPU, 2) as batches:
        next(batches)
        wait_for(lambda: loader.read == 3)
        time.sleep(0.1)
        assert loader.read == 3


def test_the_loaders_memory_is_free_before_the_batch_is_asked_for():
    loader = Numbers()
    with ReadAhead(loader, CPU, 2) as batches:
        wait_for(lambda: len(loader.memory) == 2 and not any(memory() is not None for memory in loader.memory))
        assert next(batches)["number"].item() == 0


@pytest.mark.parametrize("kind", [ReadAhead, OnDemand])
def test_a_batch_that_the_loop_empties_stays_whole_in_the_loader(kind: type[OnDemand]):
    class Same(Numbers):
        batch = {"keys": ["a"], "number": torch.tensor([7])}

        def __next__(self) -> dict[str, Any]:
            return self.batch

    with kind(Same(), CPU) as batches:
        next(batches).clear()
        assert next(batches)["number"].item() == 7


@pytest.mark.parametrize("kind", [ReadAhead, OnDemand])
def test_captions_go_to_the_device_with_their_images(kind: type[OnDemand]):
    class Pairs(Numbers):
        def __next__(self) -> dict[str, Any]:
            captions = [pad_captions([[2, 3]], pad_token_id=1), pack_captions([[4]], pad_token_id=1, first_position=2)]
            return {**super().__next__(), "text_batches": captions}

    with kind(Pairs(), torch.device("meta")) as batches:
        batch = next(batches)
    padded, packed = batch["text_batches"]
    assert isinstance(packed, TextBatch)
    assert padded.position_ids is None
    for tensor in (batch["number"], padded.input_ids, *packed):
        assert tensor.device.type == "meta"


def test_an_error_of_the_loader_is_raised_in_its_place_and_shows_where_it_came_from():
    def spoil(number: int) -> None:
        if number == 3:
            raise OSError("the disk is gone")

    with ReadAhead(Numbers(before=spoil), CPU, 2) as batches:
        wait_for(lambda: not batches._room._value)  # both are ready
        assert [next(batches)["number"].item() for _ in range(3)] == [0, 1, 2]
        wait_for(lambda: not threads())  # the error is there already, and has not been seen
        with pytest.raises(OSError, match="the disk is gone") as raised:
            next(batches)
        assert "spoil" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
        assert batches.position["loader"] == {"read": 3}
        with pytest.raises(StopIteration):
            next(batches)


@pytest.mark.parametrize("error", [None, SystemExit(3)])
def test_the_end_of_the_data_and_of_the_process_arrive_as_such(error: BaseException | None):
    with ReadAhead(Numbers(2, error), CPU) as batches:
        next(batches), next(batches)
        with pytest.raises(StopIteration if error is None else SystemExit):
            next(batches)


def test_a_state_that_cannot_be_saved_is_an_error_of_its_batch(monkeypatch: pytest.MonkeyPatch):
    loader = Numbers()
    monkeypatch.setattr(loader, "state_dict", lambda: {"read": (loader.read,) if loader.read == 2 else loader.read})
    with ReadAhead(loader, CPU) as batches:
        next(batches)
        with pytest.raises(TypeError, match=r"loader\.read is tuple"):
            next(batches)


def test_an_idle_thread_ends_at_once():
    with ReadAhead(Numbers(), CPU) as batches:
        next(batches)
        start = time.monotonic()
    assert not threads()
    assert time.monotonic() - start < prefetch.PATIENCE / 2
    with pytest.raises(StopIteration):
        next(batches)


def test_a_run_ends_though_the_loader_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prefetch, "PATIENCE", 0.1)
    asked, answer, copied = threading.Event(), threading.Event(), []

    def hang(number: int) -> None:
        if number == 1:
            asked.set()
            answer.wait(30)

    loader = Numbers(before=hang)
    with ReadAhead(loader, CPU) as batches:
        next(batches)
        assert asked.wait(10)
        monkeypatch.setattr(prefetch, "_copy", lambda *_: copied.append(1))
        start = time.monotonic()
    assert time.monotonic() - start < 5
    assert len(threads()) == 1
    assert not loader.ended, "the thread still reads from it"
    answer.set()
    wait_for(lambda: not threads())
    assert not copied, "what comes late is not wanted"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_real_loader_reads_the_same_and_continues_where_the_loop_was(workers: int, image_shards: Path):
    straight = loader_of(image_shards, workers=workers)
    expected, states = [], []
    for batch in straight:
        expected.append(batch)
        states.append(loader_state(straight))
        if len(expected) == 30:  # the epoch has 24
            break
    with ReadAhead(loader_of(image_shards, workers=workers), CPU, 3) as batches:
        for batch, state in zip(expected, states, strict=True):
            found = next(batches)
            assert found["keys"] == batch["keys"]
            assert torch.equal(found["pixel_values"], batch["pixel_values"])
            assert batches.position == state


def open_files() -> list[GeneratorType]:
    """Parquet files of which `datasets` has not read all."""
    generators = [found for found in gc.get_objects() if type(found) is GeneratorType]
    return [found for found in generators if found.__name__ == "_generate_tables" and found.gi_frame is not None]


@pytest.mark.parametrize("kind", [OnDemand, ReadAhead])
def test_the_end_of_a_run_closes_what_is_being_read(kind: type[OnDemand], image_shards: Path):
    others = open_files()
    loader = loader_of(image_shards)
    with kind(loader, CPU) as batches:
        next(batches)
        assert [file for file in open_files() if file not in others]
    assert not [file for file in open_files() if file not in others]


@pytest.mark.parametrize("kind", [OnDemand, ReadAhead])
def test_the_end_of_a_run_ends_its_workers(kind: type[OnDemand], image_shards: Path):
    others = {*multiprocessing.active_children()}
    loader = loader_of(image_shards, workers=2)
    with kind(loader, CPU) as batches:
        next(batches)
        assert len({*multiprocessing.active_children()} - others) == 2
    assert not {*multiprocessing.active_children()} - others


def hang(sample: dict[str, Any], rng: Any) -> None:
    time.sleep(1000)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_process_ends_while_its_loader_hangs(workers: int, image_shards: Path):
    program = (
        "import time, torch, test_prefetch as t\n"
        f"loader = t.loader_of({str(image_shards)!r}, workers={workers})\n"
        "loader.dataset.transform = t.hang\n"
        "with t.ReadAhead(loader, t.CPU):\n"
        "    time.sleep(0.3)\n"
        "    print(time.time(), flush=True)\n"
        "    raise ValueError('the loop fails')\n"
    )
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 1, finished.stderr
    assert finished.stderr.strip().endswith("ValueError: the loop fails")
    assert time.time() - float(finished.stdout) < 60, "most of it is a busy machine; the loader hangs for longer"


def test_only_accelerators_that_can_are_read_ahead_for():
    assert [reads_ahead(torch.device(name)) for name in ("cuda:1", "cpu", "mps")] == [True, False, False]
    with read_batches(Numbers(), CPU, 1) as batches:
        assert type(batches) is OnDemand
    assert not threads()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_are_whole_while_a_gpu_works_on_the_ones_before():
    class Large(Numbers):
        def __next__(self) -> dict[str, Any]:
            batch = super().__next__()
            return {**batch, "number": batch["number"].expand(1 << 24).contiguous()}

    weights = torch.rand(4096, 4096, device="cuda")
    with ReadAhead(Large(), torch.device("cuda"), 2) as batches:
        sums = []
        for _ in range(50):
            batch = next(batches)
            for _ in range(5):
                weights = weights @ weights / 4096  # the device is behind the host all the time
            sums.append((batch["number"].min(), batch["number"].max()))
            del batch
    assert [(low.item(), high.item()) for low, high in sums] == [(number, number) for number in range(50)]
