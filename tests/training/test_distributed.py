"""What a run asks of Accelerate, and how a process that it has started on CPUs becomes several."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from maws_hf.training import distributed
from maws_hf.training.arguments import TrainingArguments


@pytest.fixture(autouse=True)
def nothing_chosen_before_or_for_later() -> Iterator[None]:
    """Accelerate settles on a device, with a GPU on that, once for all tests of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


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


@pytest.mark.parametrize(
    ("launched", "bf16", "told"),
    [("no", False, False), ("no", True, False), ("bf16", True, False), ("bf16", False, True), ("fp16", True, True)],
)
def test_a_precision_of_the_launcher_that_changes_nothing_is_told(launched, bf16, told, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "start_cpu_ranks", lambda: None)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    accelerator = distributed.build_accelerator(TrainingArguments(output_dir=str(tmp_path), bf16=bf16))
    assert accelerator.mixed_precision == ("bf16" if bf16 else "no")
    assert (f"mixed_precision {launched} changes nothing" in capsys.readouterr().out) == told


@pytest.mark.parametrize("engine", ["DEEPSPEED", "MEGATRON_LM"])
def test_engines_with_a_step_of_their_own_are_refused(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(ValueError, match=rf"asks for {engine}, which .* use examples/accelerate/fsdp2\.yaml"):
        distributed.build_accelerator(TrainingArguments(output_dir=str(tmp_path)))


@pytest.mark.parametrize("possible", [True, False])
def test_tf32_is_switched_on_or_refused(possible: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    switched: list[str] = []
    monkeypatch.setattr(distributed, "is_torch_tf32_available", lambda: possible)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", switched.append)
    recipe = TrainingArguments(output_dir=str(tmp_path), tf32=True)
    if possible:
        distributed.build_accelerator(recipe)
        assert switched == ["high"]
    else:
        with pytest.raises(ValueError, match="--tf32 needs an NVIDIA GPU"):
            distributed.build_accelerator(recipe)
        assert not switched
