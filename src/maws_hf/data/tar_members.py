"""The files in a tar shard, none of which may take more memory than an image file may.

A header of a few hundred bytes claims any length: a sparse file is zeros where the archive has nothing, and a
compressed archive is a thousand times its size. `datasets` reads what is claimed.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os.path import basename, splitext
from typing import Any, BinaryIO

from datasets import DatasetBuilder
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from datasets.utils.file_utils import xopen

from maws_hf.data.undecodable import Undecodable
from maws_hf.processing.decode import DEFAULT_LIMITS

__all__ = ["bound_members"]

_COMPRESSED = (".bz2", ".gz", ".gzip", ".xz")  # what `datasets` would decompress
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstandard


def bound_members(builder: DatasetBuilder, extensions: tuple[str, ...]) -> DatasetBuilder:
    """A builder of tar shards reads only plain archives and files of bounded length; others stay as they are.

    To be called before it makes a data set, for which it reads the first samples, and after
    [`take_broken_members_for_missing`], which has a word for files that are not read; changed in place.

    Args:
        extensions: of images, with the dot and in lower case.
    """
    if isinstance(builder, WebDataset):
        read = vars(builder).get("_get_pipeline_from_tar", WebDataset._get_pipeline_from_tar)
        builder._get_pipeline_from_tar = _BoundedMembers(read, extensions)
    return builder


@dataclass(frozen=True)
class _BoundedMembers:
    """Makes samples by `read(path, members)`, of members that are read here."""

    read: Callable[[str, Any], Iterator[dict[str, Any]]]
    extensions: tuple[str, ...]

    def __call__(self, path: str, _: Any) -> Iterator[dict[str, Any]]:
        return self.read(path, _members(path, self.extensions))


def _members(path: str, extensions: tuple[str, ...]) -> Iterator[tuple[str, BinaryIO]]:
    """Names and contents. Of an image that is too long there is as much as the decoder needs to refuse it; another
    file, or one that is compressed in itself, is there in name only.

    Raises:
        tarfile.TarError: the archive is damaged, compressed, or holds a sparse file.
    """
    with (
        xopen(path, "rb", block_size=0) as file,  # 0: streamed, where it is remote
        tarfile.open(fileobj=_Plain(file), mode="r|") as archive,
    ):
        for member in _headers(archive):
            if not member.isreg() or basename(member.name).startswith((".", "__")):
                continue
            if member.issparse():
                raise tarfile.ReadError(f"{member.name} is a sparse file of {member.size} bytes: pack it as it is")
            stem, extension = splitext(member.name)
            content = archive.extractfile(member)
            if extension.lower() in _COMPRESSED:
                yield stem, _Unread(f"it is a {extension} file: pack it uncompressed")
            elif member.size <= DEFAULT_LIMITS.max_bytes:
                yield member.name, content
            elif extension.lower() in extensions:
                yield member.name, io.BytesIO(content.read(DEFAULT_LIMITS.max_bytes + 1))
            else:
                yield member.name, _Unread(f"its {member.size} bytes are more than {DEFAULT_LIMITS.max_bytes}")
            archive.members = []  # it would keep all it has passed


@dataclass(frozen=True)
class _Unread:
    reason: str

    def read(self) -> Undecodable:
        return Undecodable(self.reason)


class _Plain:
    """A file that does not begin as compressed ones do; a remote one cannot be read twice."""

    def __init__(self, file: BinaryIO):
        self.file, self.head = file, file.read(8)
        if self.head.startswith(_MAGIC):
            raise tarfile.ReadError("it is compressed: unpack it")

    def read(self, size: int) -> bytes:
        head, self.head = self.head[:size], self.head[size:]
        return head + self.file.read(size - len(head))


def _headers(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    try:
        yield from archive
    except ValueError as error:  # of numbers in a header that are none
        raise tarfile.ReadError(f"a header is damaged: {error}") from error
