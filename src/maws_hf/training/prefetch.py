"""Batches on the device, and the position in the data behind those that the loop has got.

An accelerator idles while the main thread fetches a batch, copies it and frees the host's memory of it, which for
1,024 crops takes tens of milliseconds. There a thread does all that during the step before.
"""

import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.utils import recursively_apply

from ..data.loader import loader_state, start_reading

Batch = dict[str, Any]
_WORDS = ("keys", "skipped")  # of a batch: no tensors in them
PATIENCE = 1.0  # seconds that the end of a run waits for a thread that waits for the loader


def read_batches(loader: Any, device: torch.device, ahead: int) -> "OnDemand":
    """The batches of `loader` on `device`, read in a way that suits it; `ahead` is how many one update takes."""
    return ReadAhead(loader, device, ahead) if reads_ahead(device) else OnDemand(loader, device)


def reads_ahead(device: torch.device) -> bool:
    # On CPUs decoding and training share the cores: nothing is idle that reading ahead could use. On Metal two threads
    # that run operations at the same time can crash the process: https://github.com/pytorch/pytorch/issues/197805
    return device.type == "cuda"


class OnDemand(AbstractContextManager):
    """Reads a batch when it is asked for one. To be entered, and used by one thread; over, once it is left.

    Args:
        loader: infinite batches from `maws_hf.data.loader.build_loader`: dicts of tensors and lists.
        device: where tensors go; what is no tensor stays as it is.
    """

    def __init__(self, loader: Any, device: torch.device):
        self._loader, self._device = loader, device
        self._batches = start_reading(loader)

    def __next__(self) -> Batch:
        """The next batch, a dict of its own."""
        return _apply(lambda tensor: tensor.to(self._device), next(self._batches))

    @property
    def position(self) -> dict[str, Any]:
        """Where the data go on after the batches handed out so far: see `loader_state`."""
        return loader_state(self._loader)

    def __exit__(self, *_: Any) -> None:
        """Ends the reading, long before the process ends: pyarrow's threads then still let go of what they have read,
        for which they need the interpreter, and would abort a process that has shut it down already (#7566 of
        https://github.com/huggingface/datasets)."""
        self._batches = None
        self._loader.load_state_dict({})


class ReadAhead(OnDemand):
    """Keeps batches ready on the device: a thread fetches them, copies them, and frees the host's memory.

    What the loader raises is raised where its batch would have been handed out, and ends the batches.

    Args:
        ahead: batches that are kept ready. They and those of the running update are on the device at the same time.
    """

    def __init__(self, loader: Any, device: torch.device, ahead: int = 1):
        super().__init__(loader, device)  # starts the workers: they die with the thread that does
        self._position = loader_state(loader)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: queue.SimpleQueue = queue.SimpleQueue()
        self._room = threading.Semaphore(ahead)
        self._over = False
        # Nothing can wake a thread that waits for a slow worker. It must not keep the process from its end.
        self._thread = threading.Thread(target=self._read, name="batches", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        if self._over:
            raise StopIteration
        found = self._ready.get()
        if isinstance(found, BaseException):
            self._over = True
            raise found
        batch, self._position, copied = found
        self._room.release()
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            # The thread's stream must not use the memory of these tensors again before that.
            _apply(lambda tensor: tensor.record_stream(stream), batch)
        return batch

    @property
    def position(self) -> dict[str, Any]:
        return self._position

    def __exit__(self, *_: Any) -> None:
        """Ends the thread; one that still waits for the loader then ends with the batch that it waits for."""
        self._over = True
        self._room.release()
        self._thread.join(PATIENCE)
        if not self._thread.is_alive():
            super().__exit__()

    def _read(self) -> None:
        try:
            if self._stream is not None:
                # For good: to change back would leave a context on the first GPU, which may be another process's.
                torch.cuda.set_stream(self._stream)
            while self._room.acquire() and not self._over:
                self._ready.put(self._fetch())
        except BaseException as error:
            self._ready.put(error)

    def _fetch(self) -> tuple[Batch, dict[str, Any], torch.cuda.Event | None]:
        """A batch on the device, the position after it, and the event of its arrival. Its host memory dies here."""
        batch = next(self._batches)
        if self._over:
            raise StopIteration  # no work on a device that may be shutting down
        position = loader_state(self._loader)
        moved = _apply(lambda tensor: _copy(tensor, self._device), batch)
        return moved, position, None if self._stream is None else self._stream.record_event()


def _apply(function: Callable[[torch.Tensor], Any], batch: Batch) -> Batch:
    """Another dict, with what `function` makes of tensors, also of those in lists and tuples."""
    return {name: value if name in _WORDS else recursively_apply(function, value) for name, value in batch.items()}


def _copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # only then the copy does not wait for its end
    return tensor.to(device, non_blocking=True, copy=True)


__all__ = ["OnDemand", "ReadAhead", "read_batches", "reads_ahead"]
