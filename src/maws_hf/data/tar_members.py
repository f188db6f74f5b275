"""The files in a tar shard, none of which may take more memory than an image file may.

A header of a few hundred bytes claims any length: a sparse file is zeros where the archive has nothing, and a
compressed archive is a thousand times its size. `datasets` reads what is claimed.
"""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os.path import basename, splitext
from typing import Any, BinaryIO

from datasets import DatasetBuilder
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from datasets.utils.file_utils import xopen

from maws_hf.processing.decode import DEFAULT_LIMITS

__all__ = ["bound_members"]


def bound_members(builder: DatasetBuilder, extensions: tuple[str, ...]) -> DatasetBuilder:
    """A builder of tar shards reads only plain archives and files of bounded length; others stay as they are.

    To be called before it makes a data set, for which it reads the first samples; changed in place.

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
    file counts as missing.

    Raises:
        tarfile.TarError: the archive is damaged, compressed, or holds a sparse file.
    """
    told = False
    with xopen(path, "rb", block_size=0) as file, _open_plain(file) as archive:  # 0: streamed, where it is remote
        for member in _headers(archive):
            if not member.isreg() or basename(member.name).startswith((".", "__")):
                continue
            if member.issparse():
                raise tarfile.ReadError(f"{member.name} is a sparse file of {member.size} bytes: pack it as it is")
            content = archive.extractfile(member)
            if member.size <= DEFAULT_LIMITS.max_bytes:
                yield member.name, content
            elif splitext(member.name)[1].lower() in extensions:
                yield member.name, io.BytesIO(content.read(DEFAULT_LIMITS.max_bytes + 1))
            elif not told:
                told = True
                warnings.warn(
                    f"{path}: {member.name} has {member.size} bytes, more than {DEFAULT_LIMITS.max_bytes}: it counts "
                    "as missing, like any other of this shard that is as long",
                    stacklevel=2,
                )
            archive.members = []  # it would keep all it has passed


def _open_plain(file: BinaryIO) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r|")
    except tarfile.ReadError as error:
        raise tarfile.ReadError(f"{error}; is it compressed? Then unpack it") from error


def _headers(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    try:
        yield from archive
    except ValueError as error:  # of numbers in a header that are none
        raise tarfile.ReadError(f"a header is damaged: {error}") from error
