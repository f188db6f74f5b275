"""Of the processes of a run, the one that has ended is named."""

import os
import socket
import subprocess
import sys
import time

import psutil
import pytest
from accelerate import Accelerator

from maws_hf.training import agreement
from maws_hf.training.agreement import TrainingError, named_failures, reasons_of_ranks, who_has_ended

HERE = socket.gethostname()
WHY = "(its own message, or the launcher's, says why)"


@pytest.fixture
def ended():
    """A process that has ended and that nobody has waited for: kill and the process table still know it."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    yield process
    process.wait()


def test_a_process_that_nobody_has_waited_for_has_ended(ended: subprocess.Popen):
    ranks = [(HERE, os.getpid()), (HERE, ended.pid)]
    assert who_has_ended(ranks) == f"rank 1 (process {ended.pid}) has ended {WHY}"
    ended.wait()
    assert who_has_ended(ranks) == f"rank 1 (process {ended.pid}) has ended {WHY}"


def test_two_that_have_ended_are_both_named(ended: subprocess.Popen):
    ranks = [(HERE, ended.pid), (HERE, os.getpid()), (HERE, ended.pid)]
    assert who_has_ended(ranks) == f"rank 0 (process {ended.pid}) and rank 2 (process {ended.pid}) have ended {WHY}"


def test_an_end_that_is_under_way_is_waited_for():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert who_has_ended([(HERE, process.pid)], patience=0) == f"another process of the run has ended {WHY}"
        process.stdin.close()
        assert who_has_ended([(HERE, process.pid)], patience=20).startswith("rank 0 ")


def test_of_ranks_on_other_hosts_only_their_numbers_are_known(ended: subprocess.Popen):
    elsewhere = f"{HERE}-2"
    ranks = [(HERE, os.getpid()), (elsewhere, ended.pid), (elsewhere, os.getpid())]
    told = f"another process has ended, on another host than {HERE} (one of the ranks 1, 2) {WHY}"
    assert who_has_ended(ranks, patience=0) == told


def test_a_process_that_ends_before_the_first_step_is_a_sentence_too(monkeypatch: pytest.MonkeyPatch):
    def refuse(_: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4711")

    monkeypatch.setattr(agreement, "gather_object", refuse)
    with (
        pytest.raises(TrainingError, match="rank 0 cannot go on in step 1: another process of the run has ended"),
        named_failures(0, 2, lambda: "in step 1"),
    ):
        pytest.fail("the run has begun")


TOO_LATE = "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 2000ms for recv operation to complete"


def test_a_process_that_is_late_is_not_said_to_have_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(agreement, "gather_object", lambda own: [*own, (HERE, os.getppid())])
    with (
        pytest.raises(TrainingError, match="rank 0 cannot go on in step 3: another process has not answered"),
        named_failures(0, 2, lambda: "in step 3"),
    ):
        raise RuntimeError(TOO_LATE)


def test_one_that_has_ended_is_named_even_if_that_shows_late(monkeypatch: pytest.MonkeyPatch, ended: subprocess.Popen):
    monkeypatch.setattr(agreement, "gather_object", lambda own: [*own, (HERE, ended.pid)])
    with (
        pytest.raises(TrainingError, match=rf"step 3: rank 1 \(process {ended.pid}\) has ended"),
        named_failures(0, 2, lambda: "in step 3"),
    ):
        raise RuntimeError(TOO_LATE)


def test_a_rank_whose_data_worker_is_lost_says_what_to_do():
    error = RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")
    (reason,) = reasons_of_ranks(Accelerator(cpu=True), error)
    assert reason.startswith("rank 0: a process that reads data was killed (DataLoader worker (pid 4711) is killed")
    assert "--dataloader_num_workers" in reason
