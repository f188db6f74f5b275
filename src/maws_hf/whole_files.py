"""Files that are whole or not there: written beside and renamed, so that neither kill nor reader meets half of one.

What a killed process has left behind is known by its name, which ends in `TEMPORARY_SUFFIX`.
"""

import contextlib
import glob
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".part"
_LONGEST_NAME = 200  # bytes of a name that are kept; file systems have room for 255, with what is added
_ABANDONED_AFTER = 3600  # seconds; whoever is at work writes more often
# Host, process and token, as `temporary_beside` gives them: what others call .part is not ours to remove.
_WRITER = re.compile(rf"\.([0-9a-f]{{8}})-(\d{{1,9}})-[0-9a-f]{{8}}{re.escape(TEMPORARY_SUFFIX)}$")


def temporary_beside(path: Path) -> Path:
    """Where to write what will take the place of `path`, a file or a folder: hidden, on the same disk.

    Another name at each call, for several may write the same: threads, or hosts and containers that share a disk, of
    whose processes many have the same number.
    """
    writer = f"{_here()}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{_shortened(path.name)}.{writer}{TEMPORARY_SUFFIX}")


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Removes what killed processes have left in a folder, of all that was written there or of one name.

    Others may be at work in the same folder. Those of this host are asked for; of what others have left, only what
    nobody has written to for an hour is taken for abandoned.
    """
    pattern = "*" if name is None else glob.escape(_shortened(name))
    for leftover in folder.glob(f".{pattern}.*{TEMPORARY_SUFFIX}"):
        writer = _WRITER.search(leftover.name)
        with contextlib.suppress(FileNotFoundError):  # finished, or removed by another
            if writer is None or not _is_abandoned(leftover, host=writer[1], process=int(writer[2])):
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink()


def _is_abandoned(temporary: Path, *, host: str, process: int) -> bool:
    if host == _here() and process != os.getpid():  # our own number may have been another's before
        return not _is_running(process)
    written = max(path.lstat().st_mtime for path in (temporary, *temporary.rglob("*")))
    return written < time.time() - _ABANDONED_AFTER


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@cache
def _here() -> str:
    """Differs where a process number means another process: on another host, in another container, after a reboot."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # Linux has these
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:8]


def _shortened(name: str) -> str:
    kept = os.fsencode(name)
    return name if len(kept) <= _LONGEST_NAME else kept[:_LONGEST_NAME].decode(errors="ignore")


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


__all__ = [
    "TEMPORARY_SUFFIX",
    "moved_to",
    "remove_leftovers",
    "sha256_of",
    "temporary_beside",
    "to_json",
    "write_atomically",
]
