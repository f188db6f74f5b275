import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from line_run import objective, run
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig

from maws_hf.training.interruption import GracefulStop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_only_noted(number: int):
    before = signal.getsignal(number)
    with GracefulStop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_a_second_interrupt_interrupts():
    with GracefulStop():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


SIGNALLED_WHILE_FORKING = """
import multiprocessing, os, signal, sys
from pathlib import Path
import line_run
from torch.utils.data._utils import signal_handling

number, shards, output_dir = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
multiprocessing.set_start_method("fork")
signalled = []

def once() -> None:
    if not signalled:
        signalled.append(os.getpid())
        os.kill(os.getpid(), number)

def of_torch_then_again() -> None:
    of_torch()
    os.kill(os.getpid(), number)

os.register_at_fork(after_in_parent=once, after_in_child=lambda: os.kill(os.getpid(), number))
of_torch = signal_handling._set_worker_signal_handlers
signal_handling._set_worker_signal_handlers = of_torch_then_again  # what a worker does before it calls us
outcome, _ = line_run.run(shards, output_dir, dataloader_num_workers=2)
assert signalled
print(outcome.exit_code, outcome.step)
"""


of_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers die of SIGTERM")


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=of_linux), signal.SIGINT])
def test_a_signal_to_the_group_while_workers_are_forked_is_not_lost(number: int, image_shards: Path, tmp_path: Path):
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    finished = subprocess.run(
        [sys.executable, "-c", SIGNALLED_WHILE_FORKING, str(int(number)), str(image_shards), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.stdout.split() == [str(128 + number), "1"], finished.stderr
    assert finished.stderr.count("finishing this step, then saving") == 1, "workers say it, too"
    assert "Exception ignored" not in finished.stderr


@pytest.mark.parametrize(("patience", "told"), [(None, "in 30 s"), ("900", "in 900 s")])
def test_how_long_the_launcher_waits_is_told(patience: str | None, told: str, monkeypatch, capfd):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with GracefulStop():
        os.kill(os.getpid(), signal.SIGTERM)
    assert "launcher" not in capfd.readouterr().err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    if patience:
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", patience)
    with GracefulStop():
        os.kill(os.getpid(), signal.SIGTERM)
    said = capfd.readouterr().err
    asked_for = "shutdown_timeout" in LaunchConfig.__dataclass_fields__  # by newer versions of torch
    assert (told if asked_for else "in 30 s") in said
    assert ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600" in said) == asked_for


def test_the_end_of_the_launcher_counts_as_sigterm():
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with GracefulStop(launcher.pid) as stop:
        assert not stop.requested
        launcher.communicate(b"\n")
        assert stop.requested
        assert stop.exit_code == 128 + signal.SIGTERM


def test_a_run_that_is_interrupted_keeps_its_live_weights(image_shards: Path, tmp_path: Path):
    calls: list[int] = []

    def interrupted(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        if calls.append(1) or len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return objective(model, batch)

    outcome, model = run(image_shards, tmp_path, interrupted, ema_decay=0.9)
    assert (outcome.step, outcome.exit_code) == (4, 128 + signal.SIGTERM)
    saved = load_file(tmp_path / "checkpoints" / "step-00000004" / "model.safetensors")
    assert torch.equal(model.line.weight, saved["line.weight"])
