"""Read the tensors of an original checkpoint, mapped and not copied, without trusting the file."""

import argparse
import mmap
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from .original_archive import (
    MOST_TENSORS,
    ConversionError,
    archive_entries,
    check_safetensors_header,
    check_torch_archive,
)

OLDEST_TORCH = (2, 10)  # CVE-2026-24747: before it, a crafted file corrupts memory even with weights_only=True
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


@dataclass(frozen=True)
class OriginalCheckpoint:
    """
    Args:
        tensors: of the model, by original name; wrappers' prefixes are stripped. They are the mapped file: reading one
            reads from the disk.
        arguments: plain values of the training script's `args`, if the file has them.
        left_out: what else is in the file, in words.
    """

    tensors: dict[str, Tensor]
    arguments: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def read_original(path: Path) -> OriginalCheckpoint:
    """Maps a `.pt`, `.pth` or `.safetensors` file and checks every tensor before one byte of it is used.

    No code in the file can run: a file that names any global beyond tensors, dictionaries, `argparse.Namespace` and
    numbers is refused before it is loaded, and loading is torch's restricted one.

    Raises:
        ConversionError: the file is not what it should be; see also `original_archive`.
    """
    path = Path(path)
    _torch_or_error()
    if path.suffix == ".safetensors":
        content, storages = _load_safetensors(path), None
    else:
        storages = check_torch_archive(path)
        content = _load_torch(path)
    state, others = _state_of(content, path)
    _check_tensors(state, storages, path)
    if storages is not None:
        state = _mapped(state, path)
    arguments = others.get("args")
    values = vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    return OriginalCheckpoint(
        _without_prefixes(state, path),
        {name: value for name, value in values.items() if isinstance(value, str | int | float | bool)},
        [f"{name} ({_in_words(value)})" for name, value in others.items()],
    )


def _torch_or_error() -> None:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        raise ConversionError(
            f"torch {torch.__version__} is too old to read files of others safely: pip install 'torch>=2.10'"
        )


def _load_torch(path: Path) -> Any:
    """What the file holds, with tensors that have a shape and a place in the file but no data yet.

    torch's own mapping is a private, writable one, which the kernel grants only if the file would fit in memory.
    """
    scalars = [np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType, np.dtypes.Int32DType]
    scalar = np._core.multiarray.scalar if hasattr(np, "_core") else np.core.multiarray.scalar
    both = [(scalar, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]
    try:
        with FakeTensorMode(), torch.serialization.safe_globals([argparse.Namespace, np.dtype, *scalars, *both]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch's unpickler and reader raise whatever a damaged file leads them to
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ConversionError(f"torch cannot read {path}: {reason}") from error


def _mapped(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same tensors as views of the file, mapped for reading only."""
    entries = {entry.start: entry for entry in archive_entries(path)}
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    views = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage()._checkpoint_offset
        first, count = tensor.storage_offset() * tensor.element_size(), tensor.numel()
        entry = entries.get(place)
        if entry is None or first + count * tensor.element_size() > entry.size:
            raise ConversionError(f"{path}: tensor {name} lies in no entry of the archive")
        if count == 0:
            views[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")  # and nobody writes
            flat = torch.frombuffer(content, dtype=tensor.dtype, count=count, offset=place + first)
        views[name] = flat.as_strided(tensor.shape, tensor.stride())
    return views


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    check_safetensors_header(path)
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ConversionError(f"safetensors cannot read {path}: {error}") from error


def _state_of(content: Any, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's tensors, and what lies beside them in the file."""
    others: dict[str, Any] = {}
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        others = {str(name): value for name, value in content.items() if name != "model"}
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise ConversionError(f"{path} holds {_in_words(content)}, not a dictionary of tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ConversionError(
                f"{path} holds {_in_words(value)} as {name!r}; expected a dictionary of tensors by name, or one with "
                "that dictionary as 'model'"
            )
    return dict(content), others


def _check_tensors(tensors: Mapping[str, Tensor], storages: set[int] | None, path: Path) -> None:
    """Refuses what is not plain memory of the file, before anything of that size is allocated.

    Args:
        storages: sizes in bytes of those in the file; None if its reader has compared them.
    """
    size = path.stat().st_size
    if len(tensors) > MOST_TENSORS:
        raise ConversionError(f"{path} has {len(tensors):,} tensors; {MOST_TENSORS:,} are the most that is read")
    for name, tensor in tensors.items():
        what = f"{path}: tensor {name}"
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ConversionError(f"{what} is {tensor.layout} on {tensor.device}; expected a plain tensor on the CPU")
        if tensor.dtype not in DTYPES:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ConversionError(f"{what} is {str(tensor.dtype).removeprefix('torch.')}; expected one of {names}")
        if not _is_dense(tensor):
            raise ConversionError(
                f"{what} of shape {tuple(tensor.shape)} has strides {tensor.stride()}: it claims {tensor.numel():,} "
                "elements that share memory or lie apart, so it is not read"
            )
        stored = tensor.untyped_storage().nbytes()
        if storages is not None and stored not in storages:
            raise ConversionError(f"{what} claims a storage of {stored:,} bytes; the file has none of that size")
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > size:
        raise ConversionError(f"{path} claims {claimed:,} bytes of tensors, more than the file's {size:,}")


def _is_dense(tensor: Tensor) -> bool:
    """Whether each element has its own place and none is left out between, in any order of the axes."""
    step = 1
    for stride, side in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if side == 1:
            continue
        if stride != step:
            return tensor.numel() == 0
        step *= side
    return True


def _without_prefixes(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    stripped: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        while name.startswith(_PREFIXES):
            name = name.partition(".")[2]
        if name in stripped:
            raise ConversionError(f"{path} has {name} twice, with and without a wrapper's prefix")
        stripped[name] = tensor.detach()
    return stripped


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dictionary of {len(value)}"
    if isinstance(value, int | float | str | None):
        return f"{value}"[:40]
    return "a Tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"


__all__ = ["OriginalCheckpoint", "read_original"]
