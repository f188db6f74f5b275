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


def test_the_end_of_the_launcher_counts_as_sigterm():
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with GracefulStop(launcher.pid) as stop:
        assert not stop.requested
        launcher.communicate(b"\n")
        assert stop.requested
        assert stop.exit_code == 128 + signal.SIGTERM
