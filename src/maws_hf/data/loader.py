"""Batches from a stream, and the loader's position as JSON.

torchdata's `StatefulDataLoader` collects the positions of its workers as of the last batch handed out, whatever they
have prefetched since. For our streams they are plain data; that is checked, not assumed, whenever they are saved.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from maws_hf.data.samples import Sample
from maws_hf.data.streaming import ImageStream, StreamStateError

if TYPE_CHECKING:
    from torchdata.stateful_dataloader import StatefulDataLoader

__all__ = [
    *("begin_next_epoch", "build_loader", "collate", "loader_state", "reads_other_files", "restore_loader"),
    "start_reading",
]

PARTITION = ("rank", "world_size", "num_workers", "strategy")  # of a stream's identity: who reads which share
DATA = ("num_shards", "files")  # and what there is to share
_FORMAT = 1
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def build_loader(
    stream: ImageStream,
    *,
    batch_size: int,
    num_workers: int | None = None,
    collate_fn: Callable[[Sequence[Sample]], dict[str, Any]] | None = None,
) -> StatefulDataLoader:
    """Endless batches of one rank. Do not pass it through `accelerator.prepare`.

    Args:
        stream: the rank's stream.
        batch_size: samples a batch.
        num_workers: as the stream was told, the default.
        collate_fn: what makes a batch of samples, in the workers; [`collate`] by default.

    Raises:
        ImportError: torchdata is not installed.
        ValueError: the batch is empty, or `num_workers` contradicts the stream's.
    """
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError as error:
        raise ImportError("reading training data needs torchdata: pip install torchdata") from error
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, it must be at least 1")
    if num_workers not in (None, stream.num_workers):
        raise ValueError(f"num_workers is {num_workers}, but the stream was made for {stream.num_workers}")
    _allow_many_open_files()
    if stream.num_workers:
        _shield_the_fork_server()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*set_vital")  # torchdata calls what torch has deprecated
        return StatefulDataLoader(
            stream,
            batch_size=batch_size,
            num_workers=stream.num_workers,
            collate_fn=collate_fn or collate,
            worker_init_fn=_live_and_die_with_the_main_process,
            snapshot_every_n_steps=1,
            # Each iterator draws a seed for its workers' global generators. We use none of those, but the draw would
            # shift torch's global generator in this process, and with it whatever the training loop draws next.
            generator=torch.Generator().manual_seed(stream.seed),
        )


def _allow_many_open_files() -> None:
    """As many as the system's administrator does: each tensor of a batch that waits in this process is an open file,
    and behind one slow worker batches of all others pile up."""
    if sys.platform == "linux":  # elsewhere tensors in shared memory are no open files
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _shield_the_fork_server() -> None:
    """Has the process that makes the workers, by default from Python 3.14 on, not die of a SIGTERM to the whole group:
    the workers would be lost with it, and the running step with them. One that runs already stays as it is. It ends
    with the main process and the workers."""
    if sys.platform == "linux" and multiprocessing.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        with _sigterm_blocked():
            forkserver.ensure_running()


def start_reading(loader: Any) -> Iterator[dict[str, Any]]:
    """`iter(loader)`, whose workers do not die of a SIGTERM to the whole group before they can say what it means."""
    if sys.platform == "linux" and getattr(loader, "num_workers", 0):
        with _sigterm_blocked():
            return iter(loader)
    return iter(loader)


@contextmanager
def _sigterm_blocked() -> Iterator[None]:
    """Around the start of processes, which inherit it. This one gets afterwards what has come meanwhile."""
    resource_tracker.ensure_running()  # its start would unblock the signal
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _live_and_die_with_the_main_process(worker: int) -> None:
    # A terminal and a job scheduler signal the whole group; workers that died of it would take the running step along.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # The main process ends its workers by SIGTERM, and at its own exit waits until they are gone: that one counts.
        main_process = multiprocessing.parent_process()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_when_the_main_process_says_so, args=(main_process.pid,), daemon=True).start()
        # And when the main process is killed, they must not stay behind: they have its connections, and the other
        # ranks would wait for a process that is gone.
        if multiprocessing.get_start_method() == "forkserver":  # the parent, which lives as long as its children
            threading.Thread(target=_exit_after_the_main_process, args=(main_process,), daemon=True).start()
            return
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != main_process.pid:
            os._exit(1)  # it was killed before


def _exit_when_the_main_process_says_so(main_process: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main_process:
        pass
    os._exit(0)


def _exit_after_the_main_process(main_process: multiprocessing.Process) -> None:
    main_process.join()
    os._exit(1)


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Samples to one batch.

    Returns:
        "pixel_values": uint8 (B, 3, h, w). "keys": B names. "skipped": the records of all samples in one list.
        Other fields: tensors, arrays and numbers stacked to a tensor (B, ...), anything else as a list of B.

    Raises:
        ValueError: the samples' tensors differ in shape.
    """
    batch: dict[str, Any] = {
        "keys": [sample["key"] for sample in samples],
        "skipped": [record for sample in samples for record in sample["skipped"]],
    }
    for name in samples[0].keys() - {"key", "skipped"}:
        batch[name] = _stack(name, [sample[name] for sample in samples], batch["keys"])
    return batch


def _stack(name: str, values: list, keys: list[str]) -> torch.Tensor | list:
    if not all(isinstance(value, torch.Tensor | np.ndarray | np.generic | int | float) for value in values):
        return values
    tensors = [torch.as_tensor(value) for value in values]
    for key, tensor in zip(keys, tensors, strict=True):
        if tensor.shape != tensors[0].shape:
            raise ValueError(
                f"{name} of {key} has the shape {tuple(tensor.shape)}, of {keys[0]} {tuple(tensors[0].shape)}: "
                "a batch needs one shape, have the transform crop or pad to it"
            )
    return torch.stack(tensors)


def loader_state(loader: StatefulDataLoader) -> dict[str, Any]:
    """The position after the last batch that the loader has handed out, as a copy of JSON types only.

    Raises:
        TypeError: something in it would not come back from JSON as it was.
    """
    stream: ImageStream = loader.dataset
    return {
        "format": _FORMAT,
        "stream": stream.identity(),
        "loader": _json_copy(loader.state_dict(), "loader"),
    }


def restore_loader(loader: StatefulDataLoader, state: Mapping[str, Any]) -> None:
    """Make the next `iter(loader)` continue after the batch where `loader_state` was taken.

    The batch size may have changed: no sample is then lost or repeated, they are only batched otherwise.

    Raises:
        StreamStateError: the state is of another format, or its stream had another seed, rank, number of ranks or
            workers, block size, files or rule of repeats.
    """
    _check_format(state)
    stream: ImageStream = loader.dataset
    stream.check_identity(state["stream"])
    loader.load_state_dict(_json_copy(state["loader"], "loader"))


def reads_other_files(loader: StatefulDataLoader, state: Mapping[str, Any]) -> bool:
    """Whether files were added, removed or exchanged since `loader_state`.

    A place in the order of the old ones is none in that of the new; [`begin_next_epoch`] goes on.

    Raises:
        StreamStateError: the state is of another format.
    """
    return _differs(loader, state, DATA)


def is_dealt_otherwise(loader: StatefulDataLoader, state: Mapping[str, Any]) -> bool:
    """Whether the data were shared out in another way, or among others, at `loader_state`.

    Raises:
        StreamStateError: the state is of another format.
    """
    return _differs(loader, state, PARTITION)


def _differs(loader: StatefulDataLoader, state: Mapping[str, Any], names: Collection[str]) -> bool:
    _check_format(state)
    stream: ImageStream = loader.dataset
    return any(name in names for name in stream.differences(state["stream"]))


def begin_next_epoch(loader: StatefulDataLoader, states: Sequence[Mapping[str, Any]]) -> int:
    """Make `iter(loader)` begin the epoch after the one that other ranks or workers were stopped in.

    For a run that goes on with another number of them, or with other files: each consumer's share is another one, so
    the interrupted epoch cannot be finished exactly. What is left of it is not read; every epoch from the next on is
    shared exactly.

    Args:
        states: the `loader_state` of every rank there was.

    Returns:
        The epoch, counted from 0.

    Raises:
        StreamStateError: a state is of another format, or its stream differs in more than ranks, workers and files.
    """
    stream: ImageStream = loader.dataset
    for state in states:
        _check_format(state)
        # How often each row comes depends on how often its labels do, and so on all files.
        files = (*DATA, "repeats") if reads_other_files(loader, state) else ()
        stream.check_identity(state["stream"], but=(*PARTITION, *files))
    stream.first_epoch = 1 + max(epoch for state in states for epoch in _epochs(state["loader"]))
    return stream.first_epoch


def _epochs(value: Any) -> Iterator[int]:
    """Those of all stream positions in a loader's state, one for each worker."""
    if isinstance(value, dict):
        if "identity" in value:
            yield value["epoch"]
        for item in value.values():
            yield from _epochs(item)
    elif isinstance(value, list):
        for item in value:
            yield from _epochs(item)


def _check_format(state: Mapping[str, Any]) -> None:
    if state.get("format") != _FORMAT:
        raise StreamStateError(f"the saved position has format {state.get('format')}, this version reads {_FORMAT}")


def _json_copy(value: Any, where: str) -> Any:
    """A deep copy, refusing what JSON would change or not take: tuples, odd keys, NaN, tensors, objects."""
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise TypeError(f"the loader's state cannot be saved as JSON: {where} has the key {key!r}")
        return {key: _json_copy(item, f"{where}.{key}") for key, item in value.items()}
    if type(value) is list:
        return [_json_copy(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    raise TypeError(f"the loader's state cannot be saved as JSON: {where} is {type(value).__name__} {value!r:.80}")
