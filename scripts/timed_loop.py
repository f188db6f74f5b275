"""The real training loop with a clock, and what it can be given: an accelerator, real or simulated, and batches that
nobody decodes; used by `bench_loop.py`.
"""

import contextlib
import io
import itertools
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import PreTrainedModel

from maws_hf.training import loop as training_loop
from maws_hf.training import prefetch
from maws_hf.training.images import ImageRecipe
from maws_hf.training.loop import BatchLoss, train

SIDE = 224  # of the crops that an accelerator gets
WARM_UP = 3  # steps of a run that are not counted: the workers start, and fill their queues


class Resident:
    """One batch again and again, in the place of a loader."""

    def __init__(self, batch: dict[str, Any]):
        self.batch = batch
        self.dataset = self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return itertools.repeat(self.batch)

    def identity(self) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class ReadyBatches(torch.utils.data.IterableDataset):
    """Random crops in new shared memory for each batch, in the place of a stream that decodes."""

    def __init__(self, batch: int):
        self.pixels = torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8)
        self.keys = [f"{number:08d}.jpg" for number in range(batch)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            memory = torch.UntypedStorage._new_shared(self.pixels.nbytes, device="cpu")
            pixels = torch.empty(0, dtype=torch.uint8).set_(memory).view(self.pixels.shape)
            yield {"keys": self.keys, "skipped": [], "pixel_values": pixels.copy_(self.pixels)}

    def identity(self) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def open_ready(batch: int, workers: int) -> StatefulDataLoader:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*set_vital")  # torchdata calls what torch has deprecated
        return StatefulDataLoader(ReadyBatches(batch), batch_size=None, num_workers=workers, collate_fn=dict)


class Watched:
    """What the loop reads its batches from, and the seconds that it has waited for each."""

    def __init__(self, reader: prefetch.OnDemand):
        self.reader = reader
        self.waits: list[float] = []

    def __next__(self) -> dict[str, Any]:
        start = time.perf_counter()
        batch = next(self.reader)
        self.waits.append(time.perf_counter() - start)
        return batch

    @property
    def position(self) -> dict[str, Any]:
        return self.reader.position

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *error: Any) -> None:
        self.reader.__exit__(*error)


@dataclass(frozen=True)
class StepTimes:
    """Seconds a step of a run, in the mean. CPU times: of the main process, and of its main thread alone."""

    wall: float
    cpu: float
    thread: float
    waited: float


class Device:
    """An accelerator of `rate` images a second, which works by itself until the loop waits for it.

    Its memory is ordinary memory that is used again and again, as the allocators of a real one do; a copy to it stands
    for the transfer, unless batches lie there already.
    """

    def __init__(self, rate: float, *, transfers: bool = True):
        self.rate, self.transfers = rate, transfers
        self.busy_until = 0.0
        self.memory: list[torch.Tensor] = []
        self.copies = itertools.count()

    def objective(self, model: torch.nn.Module, data: dict[str, Any]) -> torch.Tensor:
        self.busy_until = max(self.busy_until, time.perf_counter()) + len(data["keys"]) / self.rate
        return next(model.parameters()).square().mean()

    def copy(self, value: Any, _device: torch.device) -> Any:
        if not self.transfers:
            return value
        if len(self.memory) < 3:  # a batch that is worked on, one that is ready, and one to spare
            self.memory.append(torch.empty_like(value))
        return self.memory[next(self.copies) % len(self.memory)].copy_(value)

    def wait(self, numbers: torch.Tensor) -> list[float]:
        time.sleep(max(0.0, self.busy_until - time.perf_counter()))
        return numbers.tolist()


def run_loop(
    model: PreTrainedModel,
    objective: BatchLoss,
    loader: Any,
    steps: int,
    *,
    accelerator: Accelerator | None = None,
    device: Device | None = None,
) -> StepTimes:
    """`steps` of the real training loop, after the first ones; nothing is saved.

    Args:
        accelerator: where and how precisely the model computes; by default in float32 on the CPU.
        device: a simulated one. Batches are read ahead for it, and the loop waits for it where it reads results.
    """
    ticks: list[tuple[float, float, float]] = []
    readers: list[Watched] = []

    def tick(_step: int, _model: PreTrainedModel) -> None:
        ticks.append((time.perf_counter(), time.process_time(), time.thread_time()))

    def watch(*arguments: Any) -> Watched:
        readers.append(Watched(prefetch.read_batches(*arguments)))
        return readers[0]

    recipe = {"dataset_name": "", "max_steps": WARM_UP + steps, "logging_steps": 10, "learning_rate": 1e-4}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(mock.patch.object(training_loop, "read_batches", watch))
        stack.enter_context(mock.patch.object(training_loop._Run, "save"))
        if device is not None:
            stack.enter_context(mock.patch.object(prefetch, "reads_ahead", return_value=True))
            stack.enter_context(mock.patch.object(prefetch, "_copy", device.copy))
            stack.enter_context(mock.patch.object(training_loop, "wait_for", device.wait))
        accelerator = accelerator or Accelerator(cpu=True)
        train(model, objective, loader, ImageRecipe(output_dir=folder, **recipe), accelerator, after_step=tick)
    begin, end = ticks[WARM_UP - 1], ticks[-1]
    spent = [(last - first) / steps for first, last in zip(begin, end, strict=True)]
    return StepTimes(*spent, waited=sum(readers[0].waits[WARM_UP:]) / steps)
