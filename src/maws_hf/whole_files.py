"""Files that are whole or not there: written beside and renamed, so that neither kill nor reader meets half of one.

What a killed process has left behind is known by its name, which ends in `TEMPORARY_SUFFIX`.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".part"


def temporary_beside(path: Path) -> Path:
    """Where this process writes what will take the place of `path`, a file or a folder: hidden, on the same disk."""
    return path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step: a reader, or a kill, sees the old file or the new one.

    Raises:
        OSError: if the disk refuses, with the name of `path`; the old file is intact.
    """
    temporary = temporary_beside(path)
    with moved_to(path, temporary), temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def moved_to(path: Path, temporary: Path) -> Iterator[None]:
    """Around the writing of `temporary`, which then takes the place of `path`; if it fails, it is removed.

    Raises:
        OSError: if the disk refuses. A full one does not say which file; the error does, by the name that users know.
    """
    try:
        yield
        temporary.replace(path)
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise  # of another file, which was to be read
        if error.errno is None:
            raise OSError(f"{path} cannot be written: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def to_json(content: Any) -> bytes:
    """As a file that people read, too: indented, with its letters as they are."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def sha256_of(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["TEMPORARY_SUFFIX", "moved_to", "sha256_of", "temporary_beside", "to_json", "write_atomically"]
