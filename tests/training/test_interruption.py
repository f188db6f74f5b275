import os
import signal
import subprocess
import sys

import pytest

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
    assert told in said
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600" in said


def test_the_end_of_the_launcher_counts_as_sigterm():
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with GracefulStop(launcher.pid) as stop:
        assert not stop.requested
        launcher.communicate(b"\n")
        assert stop.requested
        assert stop.exit_code == 128 + signal.SIGTERM
