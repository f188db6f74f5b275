"""How a command starts and ends."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from .lost_workers import is_lost_worker, what_was_lost


def run_script(main: Callable[[], int]) -> None:
    """Exits with `main`'s code; what is wrong with options, data or disk is one line, not a traceback.

    `MAWS_HF_TRACEBACK=1` in the environment shows the traceback all the same.
    """
    try:
        code = main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        ours = type(error).__module__.startswith("maws_hf") or is_lost_worker(error)
        if os.environ.get("MAWS_HF_TRACEBACK") or not (ours or isinstance(error, ValueError | OSError | ImportError)):
            raise
        hint = "" if ours else " (MAWS_HF_TRACEBACK=1 shows where)"
        sys.exit(f"{Path(sys.argv[0]).name}: error: {_one_line(error)}{hint}")
    sys.exit(code)


def from_here(path: str | os.PathLike[str]) -> str:
    """A file's path from the working directory, as a shell takes it, so that an environment need not be activated."""
    relative = os.path.relpath(path)
    return shlex.quote(relative if os.sep in relative else os.path.join(os.curdir, relative))


def _one_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        return f'{text}: pip install -e ".[dev]" in the folder of maws_hf installs all that its commands need'
    if is_lost_worker(error):
        return what_was_lost(error)
    if text.startswith("Caught ") and "worker process" in text:
        # A data worker's error arrives with the worker's traceback before it.
        text = text.splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")
    return " ".join(text.split())
