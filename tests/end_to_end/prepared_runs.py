"""Runs of the example scripts in processes that need not import anything, for tests that start many."""

import multiprocessing
import os
import runpy
import signal
import sys
from contextlib import suppress
from pathlib import Path

from runs import ROOT


def _run_script(arguments: list[str], output: Path, environment: dict[str, str], start_method: str) -> None:
    os.setsid()
    os.environ.update(environment)
    multiprocessing.set_start_method(start_method, force=True)
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(ROOT)
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


class Prepared:
    """A run in a process that is forked from one that has imported everything; to `runs.py` it is a `Popen`.

    Args:
        environment: variables that are read after everything has been imported.
        start_method: how it starts data workers; by default as any process here.
    """

    def __init__(
        self, arguments: list[str], output: Path, environment: dict[str, str], start_method: str | None = None
    ):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["maws_hf.training.loop", "maws_hf.training.pairs", "maws_hf.visualization"])
        self.output = output
        start_method = start_method or multiprocessing.get_start_method()
        self.process = context.Process(target=_run_script, args=(arguments[1:], output, environment, start_method))
        self.process.start()
        self.pid = self.process.pid
        self.terminate = self.process.terminate

    def kill(self) -> None:
        """It and its workers, if it still runs."""
        if self.process.is_alive():
            with suppress(ProcessLookupError):  # it has no group yet
                os.killpg(self.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    poll = returncode.fget

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.process.join(timeout)
        return self.output.read_text(encoding="utf-8"), None
