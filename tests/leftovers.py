"""Temporary files as others leave them."""

from pathlib import Path

import pytest

from maws_hf import whole_files
from maws_hf.whole_files import temporary_beside

KILLED = 999_999_999  # more than any system counts to


def temporary_of(path: Path, *, process: int = KILLED, host: str | None = None) -> Path:
    """What `temporary_beside(path)` is to another process, of this host if no other is named."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.getpid", lambda: process)
        if host is not None:
            patch.setattr(whole_files, "_here", lambda: host)
        return temporary_beside(path)
