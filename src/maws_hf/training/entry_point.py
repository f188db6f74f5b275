"""How a command starts and ends."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def run_script(main: Callable[[], int]) -> None:
    """Exits with `main`'s code; what is wrong with options, data or disk is one line, not a traceback.

    `MAWS_HF_TRACEBACK=1` in the environment shows the traceback all the same.
    """
    try:
        code = main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        ours = type(error).__module__.startswith("maws_hf") or _is_lost_worker(error)
        if os.environ.get("MAWS_HF_TRACEBACK") or not (ours or isinstance(error, ValueError | OSError | ImportError)):
            raise
        hint = "" if ours else " (MAWS_HF_TRACEBACK=1 shows where)"
        sys.exit(f"{Path(sys.argv[0]).name}: error: {_one_line(error)}{hint}")
    sys.exit(code)


def _is_lost_worker(error: Exception) -> bool:
    """Torch raises a RuntimeError wherever the main process is at work when one of its workers dies, also within an
    update. A moment before, fetching a tensor from the dead worker fails in its connection."""
    if isinstance(error, ConnectionError | EOFError):
        modules = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
        return "multiprocessing.resource_sharer" in modules
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def _one_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        return f'{text}: pip install -e ".[dev]" in the folder of maws_hf installs all that its commands need'
    if _is_lost_worker(error):
        return (
            f"a process that reads data was killed ({text.splitlines()[0].strip().rstrip('.')}); if memory ran out, "
            "give fewer --dataloader_num_workers or, in training, a smaller --shuffle_block_size. The same command "
            "continues"
        )
    if text.startswith("Caught ") and "worker process" in text:
        # A data worker's error arrives with the worker's traceback before it.
        text = text.splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")
    return " ".join(text.split())
