"""One pass over a checkpoint: its digests, and whether an archive's entries still are what was saved.

A file may be 26 GB, so it is read once for all of them. torch itself never looks at the checksums: it would load a
weight whose bits have flipped.
"""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from .original_archive import ConversionError, Entry, archive_entries

PROGRESS_FROM = 200_000_000  # bytes
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Digests:
    """
    Args:
        sha256, md5: of the whole file; md5 only to compare with what was published.
        damaged: names of an archive's entries that do not have the checksum its directory gives them.
        has_checksums: False for an archive that was saved without them, by `set_crc32_options(False)` of torch, and
            for what is no archive.
    """

    sha256: str
    md5: str
    damaged: list[str]
    has_checksums: bool


def digests_of(file: Path) -> Digests:
    """All digests of a file, under a progress bar if it is large."""
    entries = _entries(file)
    size, position, sums = file.stat().st_size, 0, _Checksums(entries)
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with (
        file.open("rb") as content,
        tqdm(total=size, desc="sha256", unit="B", unit_scale=True, leave=False, disable=size < PROGRESS_FROM) as bar,
    ):
        while block := content.read(_BLOCK):
            sha256.update(block)
            md5.update(block)
            sums.update(block, position)
            position += len(block)
            bar.update(len(block))
    # Without checksums torch writes 0 for each, which of bytes at random one in four billion has.
    has_checksums = any(entry.crc32 for entry in entries)
    return Digests(sha256.hexdigest(), md5.hexdigest(), sums.wrong() if has_checksums else [], has_checksums)


def _entries(file: Path) -> list[Entry]:
    """None of what is no sound archive: whoever reads it says why, once it is known to be the file that was meant."""
    if file.suffix == ".safetensors":
        return []
    try:
        return archive_entries(file)
    except ConversionError:
        return []


class _Checksums:
    """The CRC-32 of each entry, from the file's blocks in their order; entries are sorted and do not overlap."""

    def __init__(self, entries: Sequence[Entry]):
        self.entries, self.found, self.first = entries, [0] * len(entries), 0

    def update(self, block: bytes, position: int) -> None:
        """Takes a block that begins at this byte of the file."""
        view, end = memoryview(block), position + len(block)
        for number in range(self.first, len(self.entries)):
            start, stop = self.entries[number].start, self.entries[number].start + self.entries[number].size
            if start >= end:
                break
            part = view[max(start - position, 0) : max(stop - position, 0)]
            self.found[number] = zlib.crc32(part, self.found[number])
            self.first = number + 1 if stop <= end else number

    def wrong(self) -> list[str]:
        """Names of the entries that differ from their directory, once all blocks were taken."""
        return [entry.name for entry, crc32 in zip(self.entries, self.found, strict=True) if entry.crc32 != crc32]


__all__ = ["Digests", "digests_of"]
