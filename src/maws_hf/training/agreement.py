"""Failures of one process that all processes of a run hear of, so that none waits for another that is gone."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object

from .interruption import is_alive
from .lost_workers import is_lost_worker, what_was_lost

PATIENCE = 2.0  # seconds from a lost connection to the end of the process behind it


class TrainingError(RuntimeError):
    """The run cannot go on; its last checkpoint is intact."""


def reasons_of_ranks(accelerator: Accelerator, error: Exception | None) -> list[str]:
    """What keeps ranks from going on, "rank 1: ..." each; empty if nothing does. Called by all ranks at once.

    A run on one process is asked nothing. Otherwise it costs a sum of one number, where the device waits for data
    anyway; what the reasons are is only exchanged if there are any.
    """
    reason = f"rank {accelerator.process_index}: {_name(error)}" if error is not None else None
    if accelerator.num_processes > 1:
        failed = torch.tensor(float(error is not None), device=accelerator.device)
        if not accelerator.reduce(failed, reduction="sum").item():
            return []
        return [text for text in gather_object([reason]) if text is not None]
    return [] if reason is None else [reason]


@contextmanager
def named_failures(rank: int, world_size: int, when: Callable[[], str]) -> Iterator[None]:
    """Says on which rank and when (such as "in step 5") something fails, if there are several. Entered by all at once.

    A process that ends takes the others along: their next exchange with it fails, in seconds on gloo. That becomes a
    sentence with the rank that is gone; the backend's own error is its cause. One that hangs is given up after the
    run's time limit, and is not said to have ended.

    Raises:
        TrainingError: another process is gone, or does not answer.
    """
    processes: list[tuple[str, int]] = []  # unknown to one that another has left before
    try:
        if world_size > 1:
            processes = gather_object([(socket.gethostname(), os.getpid())])
        yield
    except TrainingError:
        raise
    except Exception as error:
        if world_size > 1 and _is_of_lost_process(error):
            late = any(word in str(error).lower() for word in ("timed out", "timeout"))
            raise TrainingError(
                f"rank {rank} cannot go on {when()}: {who_has_ended(processes, late=late)}; checkpoints are "
                "intact, the same command continues"
            ) from error
        if world_size > 1:
            print(f"rank {rank} fails {when()}: {_name(error)}", file=sys.stderr)
        raise


def who_has_ended(processes: list[tuple[str, int]], patience: float = PATIENCE, *, late: bool = False) -> str:
    """A clause such as "rank 1 (process 1234) has ended (its own message, or the launcher's, says why)".

    Args:
        processes: host and process id of each rank. Whether one lives can only be told on its own host.
        patience: seconds to wait for an end that is under way; a connection is closed a little before.
        late: no connection was lost, an answer did not come in time.
    """
    why = "(its own message, or the launcher's, says why)"
    here = socket.gethostname()
    deadline = time.monotonic() + patience
    while True:
        ended = [
            f"rank {rank} (process {process})"
            for rank, (host, process) in enumerate(processes)
            if host == here and not is_alive(process)
        ]
        if ended:
            return f"{' and '.join(ended)} {'has' if len(ended) == 1 else 'have'} ended {why}"
        if not processes or time.monotonic() >= deadline:
            break
        time.sleep(0.02)
    if late:
        return "another process has not answered in time: it is slow (in reading its data?), or hangs"
    elsewhere = [str(rank) for rank, (host, _) in enumerate(processes) if host != here]
    if not elsewhere:
        return f"another process of the run has ended {why}"
    return f"another process has ended, on another host than {here} (one of the ranks {', '.join(elsewhere)}) {why}"


def _is_of_lost_process(error: Exception) -> bool:
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "by peer", "nccl"))


def _name(error: Exception) -> str:
    """Class and message; of an error from a data worker, what is left of it below the worker's traceback."""
    if is_lost_worker(error):
        return what_was_lost(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
