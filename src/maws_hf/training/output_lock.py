"""One run at a time in an output folder."""

import os
import warnings
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError as error:  # whose name alone would tell nobody what to do
    raise ImportError("maws_hf trains on Linux and macOS: on Windows run it in WSL 2") from error


def lock_output(output_dir: Path) -> IO[str]:
    """Claims `output_dir` for this process until it ends, however it ends; keep the returned file open.

    A record lock: the kernel drops it with the process, and data workers do not inherit it.

    Raises:
        ValueError: if another process trains there; names its process id.
    """
    file = (output_dir / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # systems differ in which
        file.seek(0)
        holder = file.read().strip() or "unknown"
        raise ValueError(
            f"process {holder} is training in {output_dir}: stop it (kill {holder}), or choose another --output_dir"
        ) from error
    except OSError as error:
        warnings.warn(
            f"the file system of {output_dir} has no locks ({error.strerror}): whether another run trains there is "
            "not checked",
            stacklevel=2,
        )
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
