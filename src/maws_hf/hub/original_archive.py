"""What a checkpoint file says about itself, read without loading it: is it safe to hand to torch or safetensors?

A `.pt` file is a zip archive of raw storages and one pickle, `data.pkl`, that says how tensors are made of them. Here
the archive's directory is compared with the file, and the pickle's opcodes are listed, not run. Whatever the files of
MAE and MAWS do not need is refused.
"""

import io
import json
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from pickletools import genops

import torch

MOST_ENTRIES = 100_000
MOST_DIRECTORY_BYTES = 16 << 20
MOST_PICKLE_BYTES = 64 << 20
MOST_HEADER_BYTES = 16 << 20
MOST_TENSORS = 10_000

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since numpy 2
# What the checkpoints hold: tensors, dictionaries, the arguments of main_pretrain.py, and numbers (of numpy, in files
# of other training scripts). The restricted unpickler knows more than this; none of it is needed.
ALLOWED_GLOBALS = frozenset(
    {
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "collections.OrderedDict",
        "argparse.Namespace",
        *(f"torch.{kind}Storage" for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Bool", "Byte")),
        *(f"{module}.scalar" for module in _NUMPY),
        "numpy.dtype",
        "_codecs.encode",
    }
)
# Opcodes by which later pickle protocols name or call things; torch writes protocol 2, which has no need of them.
_UNKNOWN_CALLS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}


class ConversionError(ValueError):
    """A checkpoint cannot be converted; the message names the file, what is wrong with it, and the way out."""


@dataclass(frozen=True)
class Entry:
    """One file of an archive: its name without the top folder, where its bytes lie, and the CRC-32 they must have."""

    name: str
    start: int
    size: int
    crc32: int


def check_torch_archive(path: Path) -> set[int]:
    """Refuses a `.pt` file that is no plain zip archive of torch, lies about its sizes, or names a foreign global.

    Returns:
        The sizes in bytes of its storages.

    Raises:
        ConversionError: with the reason; for globals, all that are not allowed.
    """
    entries = archive_entries(path)
    pickles = [entry for entry in entries if entry.name == "data.pkl"]
    if len(pickles) != 1:
        raise ConversionError(f"{path} is a zip archive without data.pkl, so no checkpoint that torch.save wrote")
    if any(entry.name == "constants.pkl" or entry.name.startswith("code/") for entry in entries):
        raise ConversionError(f"{path} is a TorchScript program, not a checkpoint: save its state_dict() instead")
    if pickles[0].size > MOST_PICKLE_BYTES:
        raise ConversionError(
            f"{path} has a data.pkl of {pickles[0].size:,} bytes; {MOST_PICKLE_BYTES:,} are the most that is read"
        )
    with path.open("rb") as file:
        file.seek(pickles[0].start)
        foreign = sorted(set(globals_of(file.read(pickles[0].size), path)) - ALLOWED_GLOBALS)
    if foreign:
        raise ConversionError(
            f"{path} needs {', '.join(foreign)}, which no checkpoint of MAE or MAWS does; unpickling it would run "
            "foreign code, so it is not read"
        )
    _same_for_torch_or_error(entries, path)
    return {entry.size for entry in entries if entry.name.startswith("data/")}


def archive_entries(path: Path) -> list[Entry]:
    """The files of a zip archive, after its directory was compared with the bytes there are.

    Raises:
        ConversionError: it is no zip archive; or is compressed, encrypted, truncated, or has its directory elsewhere
            than it says; or its entries overlap, reach beyond the file, have the same name, or are called otherwise at
            their own place.
    """
    _zip_or_error(path)
    try:
        with _Directory(path) as file, zipfile.ZipFile(file) as archive:
            infos, directory = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise ConversionError(f"{path} is no intact zip archive ({error}): download it again") from error
    if (announced := _announced_directory(path)) != directory:
        raise ConversionError(
            f"{path} has a directory at byte {directory:,}, but its end leads to {announced}: others would find other "
            "files in it than were checked"
        )
    if len(infos) > MOST_ENTRIES:
        raise ConversionError(f"{path} has {len(infos):,} entries; {MOST_ENTRIES:,} are the most that is read")
    if len({info.filename.lower() for info in infos}) < len(infos):
        raise ConversionError(f"{path} has two entries of the same name")
    size, end, entries = path.stat().st_size, 0, []
    with path.open("rb") as file:
        for info in sorted(infos, key=lambda info: info.header_offset):
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
                raise ConversionError(
                    f"{path} has a compressed or encrypted entry {info.filename!r}; torch writes none"
                )
            # zipfile counts back from where the directory lies; one that lies too early gives a place below 0.
            start = _start_of(file, info, path) if info.header_offset >= 0 else 0
            if info.header_offset < end or start + info.file_size > size:
                raise ConversionError(
                    f"{path} says that {info.filename!r} has {info.file_size:,} bytes from byte {start:,} on, which "
                    f"overlaps another entry or ends beyond the file's {size:,} bytes"
                )
            end = start + info.file_size
            entries.append(Entry(info.filename.partition("/")[2], start, info.file_size, info.CRC))
    return entries


def globals_of(pickle: bytes, path: Path) -> list[str]:
    """Dotted names of everything that unpickling would import, from the opcodes alone.

    Raises:
        ConversionError: it is no pickle, or calls things in a way that torch never writes.
    """
    found, strings = [], []
    try:
        for opcode, argument, _ in genops(pickle):
            if opcode.name == "GLOBAL":
                found.append(str(argument).replace(" ", "."))
            elif opcode.name in _STRINGS:
                strings.append(argument)
            elif opcode.name in _UNKNOWN_CALLS:
                name = ".".join(strings[-2:]) if opcode.name == "STACK_GLOBAL" else str(argument).replace(" ", ".")
                raise ConversionError(
                    f"{path} needs {name} (by the opcode {opcode.name}, which torch.save does not write); unpickling "
                    "it would run foreign code, so it is not read"
                )
    except (ValueError, IndexError, struct.error) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{path} holds no intact pickle in data.pkl ({error})") from error
    return found


def check_safetensors_header(path: Path) -> None:
    """Refuses a `.safetensors` file whose header is too long, holds too many tensors, or claims more than there is.

    Raises:
        ConversionError: with the reason. What else may be wrong with it, safetensors itself refuses.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(MOST_HEADER_BYTES, size - 8):
            raise ConversionError(
                f"{path} announces a header of {length:,} bytes in a file of {size:,}; at most "
                f"{MOST_HEADER_BYTES:,} are read"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        offsets = [header[name]["data_offsets"] for name in header if name != "__metadata__"]
        claimed = sum(stop - start for start, stop in offsets)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConversionError(f"{path} has no header that safetensors would write ({error!r})") from error
    if len(offsets) > MOST_TENSORS:
        raise ConversionError(f"{path} has {len(offsets):,} tensors; {MOST_TENSORS:,} are the most that is read")
    if claimed > size - 8 - length:
        raise ConversionError(
            f"{path} claims {claimed:,} bytes of tensors where {size - 8 - length:,} follow its header"
        )


class _Directory(io.FileIO):
    """A file for zipfile, which reads a directory at once, however long it claims to be."""

    def read(self, size: int = -1) -> bytes:
        if size > MOST_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size:,} bytes; {MOST_DIRECTORY_BYTES:,} are the most")
        return super().read(size)


def _zip_or_error(path: Path) -> None:
    """No archive without an entry at its beginning and the record of its directory at its end."""
    with path.open("rb") as file:
        begin = file.read(4)
        file.seek(max(path.stat().st_size - 22, 0))
        end = file.read(22)
    if begin != b"PK\x03\x04":
        raise ConversionError(
            f"{path} is no zip archive. If it is a checkpoint of torch before 1.6, it cannot be checked before it is "
            "read; save it again in today's format: python -c \"import torch; torch.save(torch.load('OLD.pth', "
            "map_location='cpu', weights_only=True), 'NEW.pth')\""
        )
    if len(end) < 22 or not end.startswith(b"PK\x05\x06") or end[-2:] != b"\0\0":
        raise ConversionError(
            f"{path} is a zip archive without its directory at the end: it was cut off; get it again"
        )


def _announced_directory(path: Path) -> int | None:
    """Where the end of the archive says that the directory begins; None if its parts are not in their places.

    zipfile reads what lies right before the end, torch's reader what the end leads to.
    """
    size, length = path.stat().st_size, 56 + 20 + 22  # of zip64's record, of what leads to that, and of the old record
    with path.open("rb") as file:
        file.seek(max(size - length, 0))
        end = file.read().rjust(length, b"\0")
    if not end.startswith(b"PK\x06\x07", 56):
        return struct.unpack_from("<I", end, 92)[0]
    leads_there = struct.unpack_from("<Q", end, 64)[0] == size - length and end.startswith(b"PK\x06\x06")
    return struct.unpack_from("<Q", end, 48)[0] if leads_there else None


def _same_for_torch_or_error(entries: list[Entry], path: Path) -> None:
    """What was checked has to be what torch will load."""
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        found = {name: reader.get_record_offset(name) for name in reader.get_all_records()}
    except RuntimeError as error:
        raise ConversionError(f"torch cannot read {path}: {str(error).splitlines()[0]}") from error
    if found != {entry.name: entry.start for entry in entries}:
        raise ConversionError(f"{path} holds other files for torch than for zipfile, which checked it")


def _start_of(file, info: zipfile.ZipInfo, path: Path) -> int:
    """Where an entry's bytes begin, which only its own header says."""
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
        raise ConversionError(f"{path} has no entry at byte {info.header_offset:,}, where its directory says so")
    method, (name_length, extra_length) = struct.unpack("<H", header[8:10])[0], struct.unpack("<HH", header[26:30])
    name = file.read(name_length)
    if method != zipfile.ZIP_STORED or name != info.filename.encode():
        raise ConversionError(f"{path} calls an entry {info.filename!r} in its directory, but {name!r} at its place")
    return info.header_offset + 30 + name_length + extra_length


__all__ = [
    "ALLOWED_GLOBALS",
    "MOST_TENSORS",
    "ConversionError",
    "archive_entries",
    "check_safetensors_header",
    "check_torch_archive",
    "globals_of",
]
