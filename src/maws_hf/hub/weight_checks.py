"""Whether the weight files of a release are whole: every tensor once, finite, of the dtype that the config names."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from .staging import CONFIG, SHARDS, WEIGHT_INDEX, WEIGHTS

Problem = tuple[str, str]  # file, what is wrong with it
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MOST_TENSORS = 100_000
_CHUNK = 1 << 24  # elements looked at together
_SLOW = 200_000_000
_SHOWN = 5


def weight_problems(folder: Path, config: Mapping[str, Any]) -> Iterator[Problem]:
    """Reads every tensor of `folder`, one at a time."""
    shards = sorted(path.name for path in folder.glob(SHARDS))
    single = (folder / WEIGHTS).is_file()
    names = [WEIGHTS] if single else shards
    if not names:
        yield WEIGHTS, "is missing, and so are shards of it"
    if single and shards:
        yield shards[0], f"lies beside {WEIGHTS}: only one of both is read"
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    tensors: dict[str, list[str]] = {}
    if broken := [name for name in names if not (folder / name).is_file()]:
        yield from ((name, "is no file, or a link that leads nowhere") for name in broken)
        names = [name for name in names if name not in broken]
    total = sum((folder / name).stat().st_size for name in names)
    with tqdm(total=total, desc="Weights", unit="B", unit_scale=True, disable=total < _SLOW) as progress:
        for name in names:
            found: list[str] = []
            yield from ((name, problem) for problem in _file_problems(folder / name, dtype, found, progress))
            tensors[name] = found
    index = folder / WEIGHT_INDEX
    if index.is_file() or (shards and not single):
        yield from ((WEIGHT_INDEX, problem) for problem in _index_problems(index, tensors))


def tensor_problems(path: Path) -> Iterator[str]:
    """What is wrong with one safetensors file, of whatever dtype: it does not open, or holds a number that is none."""
    with tqdm(disable=True) as progress:
        yield from _file_problems(path, "", [], progress)


def _file_problems(path: Path, dtype: str, found: list[str], progress: tqdm) -> Iterator[str]:
    broken, others, right = [], Counter(), 0
    try:
        with safe_open(path, framework="pt") as file:
            found.extend(file.keys())
            if len(found) > _MOST_TENSORS:
                yield f"holds {len(found)} tensors, more than any model of ours"
                return
            for name in found:
                stored = _FLOATS.get(file.get_slice(name).get_dtype())
                # Logit scales stay in float32 beside towers of half precision.
                right += stored == dtype
                if dtype and stored and stored != dtype:
                    others[stored] += 1
                tensor = file.get_tensor(name)
                if not _is_finite(tensor):
                    broken.append(name)
                progress.update(tensor.numel() * tensor.element_size())
    except SafetensorError as error:
        yield f"is not a whole safetensors file ({error})"
        return
    if not found:
        yield "holds no tensor"
    if broken:
        yield f"holds NaN or infinity in {_listed(broken)}"
    for stored, count in others.items():
        if stored == "float32" and right > count:
            continue
        yield f"holds {count} tensors of {stored}, but {CONFIG} says dtype {dtype}"


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    wide = tensor.element_size() >= 2
    return all((c if wide else c.float()).isfinite().all().item() for c in tensor.flatten().split(_CHUNK))


def _index_problems(index: Path, tensors: Mapping[str, list[str]]) -> Iterator[str]:
    try:
        listed = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        if not all(isinstance(shard, str) for shard in listed.values()):
            raise TypeError("a shard's name is no text")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        yield f"is missing or no index of shards ({error!r})"
        return
    if absent := sorted({*listed.values()} - {*tensors}):
        yield f"names shards that are not there: {_listed(absent)}"
    if unused := sorted({*tensors} - {*listed.values()}):
        yield f"does not name {_listed(unused)}"
    counts = Counter(name for names in tensors.values() for name in names)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        yield f"more than one shard holds {_listed(twice)}"
    where = {name: shard for shard, names in tensors.items() for name in names}
    if lost := sorted(name for name in listed if where.get(name) != listed[name] and listed[name] in tensors):
        yield f"names a shard without it for {_listed(lost)}"
    if extra := sorted({*where} - {*listed}):
        yield f"does not list {_listed(extra)}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


__all__ = ["Problem", "tensor_problems", "weight_problems"]
