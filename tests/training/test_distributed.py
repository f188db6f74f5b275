"""How a process that Accelerate has started on CPUs becomes several."""

import os

import pytest

from maws_hf.training import distributed


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What this process would be replaced by; it stands where `accelerate launch --cpu` leaves it."""
    for name in ("RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"MASTER_PORT": "29500", "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MAWS_HF_LAUNCHER", "0")  # so that what is set here is unset again
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: commands.append(command))
    monkeypatch.setattr(distributed, "_num_processes", lambda command: 3)
    return commands


def test_one_machine_starts_its_processes(started: list[list[str]]):
    distributed.start_cpu_ranks()
    assert "--nproc_per_node=3" in started[0]


def test_several_machines_would_be_as_many_runs_and_are_refused(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.7")
    with pytest.raises(ValueError, match="several machines; use `torchrun --nnodes"):
        distributed.start_cpu_ranks()
    assert not started
