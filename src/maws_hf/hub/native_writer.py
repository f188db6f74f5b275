"""Write tensors as safetensors shards, in pieces that never lie in memory as a whole.

The files are those that `save_pretrained` writes, byte for byte; but there a shard is put together in memory first.
"""

import json
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

SHARD_BYTES = 2_000_000_000
CHUNK = 1 << 20  # elements
# In the order in which safetensors puts them into a file.
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

Content = tuple[torch.dtype, tuple[int, ...], Callable[[], Tensor]]


def write_shards(
    tensors: Mapping[str, Content],
    folder: Path,
    *,
    parameters: int,
    shard_bytes: int = SHARD_BYTES,
    written: Callable[[Tensor], object] = lambda chunk: None,
) -> dict[str, int]:
    """Writes `model.safetensors`, or `model-00001-of-00003.safetensors` and so on with their index.

    Args:
        tensors: by name: dtype, shape, and a function that gives the tensor when its turn has come.
        folder: there already.
        parameters: of the model, for the index; buffers, which are tensors as well, are none.
        shard_bytes: most bytes a shard, unless one tensor has more.
        written: called with each chunk of a tensor once it is in its file.

    Returns:
        For each tensor with values that are not finite, how many; the files are worthless then.
    """
    shards = _shards(tensors, shard_bytes)
    total = sum(_bytes(tensors[name]) for name in tensors)
    weight_map, not_finite = {}, {}
    for index, names in enumerate(shards, start=1):
        many = len(shards) > 1
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors" if many else "model.safetensors"
        weight_map |= dict.fromkeys(names, file)
        not_finite |= _write_shard(folder / file, {name: tensors[name] for name in names}, written)
    if len(shards) > 1:
        index = {
            "metadata": {"total_parameters": parameters, "total_size": total},
            "weight_map": dict(sorted(weight_map.items())),
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return not_finite


def _shards(tensors: Mapping[str, Content], shard_bytes: int) -> list[list[str]]:
    """The tensors' names, dealt as `save_pretrained` deals them: by name, layer 2 before layer 10."""
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name in sorted(tensors, key=_counting):
        content = tensors[name]
        if shards[-1] and _bytes(content) > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= _bytes(content)
    return shards


def _counting(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (sys.maxsize, part) for part in name.split(".")]


def _write_shard(path: Path, tensors: Mapping[str, Content], written: Callable[[Tensor], object]) -> dict[str, int]:
    order = sorted(tensors, key=lambda name: (list(_NAMES).index(tensors[name][0]), name))
    not_finite = {}
    with path.open("wb") as file:
        file.write(_header(tensors, order))
        for name in order:
            for chunk in _chunks(tensors[name][2]()):
                bad = chunk.numel() - int(torch.isfinite(chunk).sum())
                if bad:
                    not_finite[name] = not_finite.get(name, 0) + bad
                file.write(memoryview(chunk.view(torch.uint8).numpy()))
                written(chunk)
        file.flush()
        os.fsync(file.fileno())
    return not_finite


def _header(tensors: Mapping[str, Content], order: Sequence[str]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in order:
        dtype, shape, _ = tensors[name]
        stop = start + _bytes(tensors[name])
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Flat parts of a tensor; only one whose rows do not follow each other in memory is copied, whole."""
    flat = tensor.contiguous().reshape(-1)
    for start in range(0, flat.numel(), CHUNK):
        yield flat[start : start + CHUNK]


def _bytes(content: Content) -> int:
    dtype, shape, _ = content
    return torch.Size(shape).numel() * dtype.itemsize
