"""Give the memory of a mapped file back while it is read through, so that reading 26 GB does not need 26 GB."""

import ctypes
import mmap
from pathlib import Path

from torch import Tensor

_MAPS = Path("/proc/self/maps")
_MADV_DONTNEED = 4


class MappedFile:
    """Where a file lies in this process' memory, as the kernel tells; nowhere on systems that do not tell."""

    def __init__(self, path: Path):
        self.ranges: list[tuple[int, int]] = []
        if not _MAPS.exists():
            return
        name = str(path.resolve())
        for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] == name:
                start, stop = (int(bound, 16) for bound in fields[0].split("-"))
                self.ranges.append((start, stop))

    def give_back(self, tensor: Tensor) -> None:
        """Lets the kernel drop the pages of a contiguous tensor that was only read; they can be read again.

        Nothing happens to a tensor outside the file: dropping its pages would be losing it.
        """
        start = tensor.data_ptr()
        stop = start + tensor.numel() * tensor.element_size()
        if not any(low <= start and stop <= high for low, high in self.ranges):
            return
        start, stop = start // mmap.PAGESIZE * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_DONTNEED)


__all__ = ["MappedFile"]
