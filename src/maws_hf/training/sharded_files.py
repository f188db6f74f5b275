"""Tensors of a checkpoint that no process holds whole.

Each process writes the rows it has into one file, `shard-00002-of-00008.safetensors`; which rows of how many they are
stands in the file's header. Of several copies of a model only the first is written. A reader asks for any rows and
gets them from whichever files have them, so a run may continue on another number of processes. Checkpoints of whole
tensors are read the same way.

A tensor's name here begins with what it is: `weights/`, `optimizer/` (then `parameter name|state name`) or `average/`.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ..optim.ema import WeightAverage
from .checkpoint import CheckpointError, named_members, vouch_for
from .sharding import own_part, own_place, own_rows

WEIGHTS, OPTIMIZER, AVERAGE = "weights/", "optimizer/", "average/"
_WHOLE_FILES = {"model*.safetensors": WEIGHTS, "optimizer.safetensors": OPTIMIZER, "average.safetensors": AVERAGE}
_SHARD_NAME = re.compile(r"shard-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class _Part:
    """Rows `start` to `stop` of a tensor; `name` is its own in the file."""

    file: Any
    name: str
    start: int
    stop: int


def training_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None
) -> dict[str, Tensor]:
    """Everything of a run that is a tensor, under its name in a checkpoint; nothing is copied or gathered."""
    tensors = {WEIGHTS + name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name, parameter in named_members(optimizer):
        for key, value in optimizer.state[parameter].items():
            tensors[f"{OPTIMIZER}{name}|{key}"] = torch.as_tensor(value).detach()
    if average is not None:
        tensors |= {AVERAGE + name: tensor for name, tensor in average.state_dict().items()}
    return tensors


def write_shard(tensors: Mapping[str, Tensor], directory: Path, part: int, parts: int) -> Path:
    """Writes this process' rows, its part of so many; what every process has whole is written with the first part."""
    contents, rows = {}, {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor) and part:
            continue
        start, stop = own_rows(tensor)
        if stop > start or not isinstance(tensor, DTensor):
            contents[name] = own_part(tensor).detach().contiguous().cpu()
            rows[name] = {"shape": list(tensor.shape), "start": start}
    path = directory / f"shard-{part:05d}-of-{parts:05d}.safetensors"
    save_file(contents, path, metadata={"rows": json.dumps(rows)})
    return path


class CheckpointTensors:
    """Reads the tensors of a checkpoint folder, of shards or whole, row by row. A context manager.

    Args:
        directory: the checkpoint, or where `weight_files` lie.
        weight_files: all there is to read, if it is no checkpoint but a model's weights.

    Raises:
        CheckpointError: a file cannot be read, is missing, or the shards leave rows out or have them twice.
    """

    def __init__(self, directory: Path, weight_files: Sequence[Path] | None = None):
        self.directory = directory
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._parts: dict[str, list[_Part]] = {}
        self._files = ExitStack()
        try:
            if weight_files is None:
                self._open()
            for path in weight_files or ():
                self._open_whole(path, WEIGHTS)
            for name, parts in self._parts.items():
                self._check_rows(name, parts)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            self._files.close()
            raise CheckpointError(f"{directory} cannot be read ({type(error).__name__}: {error})") from error
        except CheckpointError:
            self._files.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.close()

    def names(self, kind: str) -> set[str]:
        """Of the tensors of a kind (`weights/`, ...), without the kind."""
        return {name.removeprefix(kind) for name in self.shapes if name.startswith(kind)}

    def dtype(self, name: str) -> torch.dtype:
        part = self._parts[name][0]
        return self._rows(part, part.start, part.start).dtype if self.shapes[name] else self.read(name).dtype

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` (all by default) on the CPU; only these are read."""
        shape = self.shapes[name]
        if not shape:
            part = self._parts[name][0]
            return part.file.get_tensor(part.name).clone()  # kept as it is, it would keep the whole file mapped
        stop = shape[0] if stop is None else stop
        found = [
            self._rows(part, max(start, part.start), min(stop, part.stop))
            for part in self._parts[name]
            if part.start < stop and start < part.stop
        ]
        if not found:
            part = self._parts[name][0]
            return self._rows(part, part.start, part.start)
        return found[0] if len(found) == 1 else torch.cat(found)

    def _rows(self, part: _Part, start: int, stop: int) -> Tensor:
        return part.file.get_slice(part.name)[start - part.start : stop - part.start]

    def _open(self) -> None:
        shards = sorted(self.directory.glob("shard-*.safetensors"))
        if shards:
            self._check_complete(shards)
            for path in shards:
                file = self._files.enter_context(safe_open(path, "pt"))
                for name, rows in json.loads(file.metadata()["rows"]).items():
                    self._add(name, tuple(rows["shape"]), file, name, rows["start"])
        for pattern, kind in _WHOLE_FILES.items():
            for path in sorted(self.directory.glob(pattern)) if not shards else []:
                self._open_whole(path, kind)

    def _open_whole(self, path: Path, kind: str) -> None:
        file = self._files.enter_context(safe_open(path, "pt"))
        for name in file.keys():  # noqa: SIM118 - an open file is no mapping
            self._add(kind + name, tuple(file.get_slice(name).get_shape()), file, name, 0)

    def _add(self, name: str, shape: tuple[int, ...], file: Any, own_name: str, start: int) -> None:
        local = tuple(file.get_slice(own_name).get_shape())
        if local[1:] != shape[1:] or len(local) != len(shape) or self.shapes.setdefault(name, shape) != shape:
            raise CheckpointError(f"{self.directory}: the shards disagree about the shape of {name}")
        self._parts.setdefault(name, []).append(_Part(file, own_name, start, start + (local[0] if local else 1)))

    def _check_complete(self, shards: list[Path]) -> None:
        matches = [_SHARD_NAME.fullmatch(path.name) for path in shards]
        count = int(matches[0][2]) if matches[0] else 0
        names = {f"shard-{rank:05d}-of-{count:05d}.safetensors" for rank in range(count)}
        if {path.name for path in shards} != names:
            raise CheckpointError(f"{self.directory} holds {len(shards)} shards that are not the {count} of one save")

    def _check_rows(self, name: str, parts: list[_Part]) -> None:
        parts.sort(key=lambda part: part.start)
        expected = 0
        for part in parts:
            if part.start != expected:
                raise CheckpointError(f"{self.directory}: {name} lacks rows or has them twice at row {expected}")
            expected = part.stop
        if expected != (self.shapes[name] or (1,))[0]:
            raise CheckpointError(f"{self.directory}: {name} lacks rows from {expected} on")


def holds_shards(directory: Path) -> bool:
    return any(directory.glob("shard-*.safetensors"))


def save_training(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    directory: Path,
) -> None:
    """Writes this process' file and vouches for it, and the first process the model's config. Nothing is gathered.

    Of several copies of the model, the processes of the first write.
    """
    # Of a tensor that is shared out: fixed positions are whole on each process.
    place = own_place(max(model.parameters(), key=lambda weight: isinstance(weight, DTensor)))
    if place.copy > 0:
        return
    vouch_for(write_shard(training_tensors(model, optimizer, average), directory, place.part, place.parts))
    if place.part == 0:
        save_config(model, directory)


def save_config(model: PreTrainedModel, directory: Path) -> None:
    """As `save_pretrained` writes it; there the class that FSDP has made of the model's would be named too."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    config.save_pretrained(directory)


def load_weights(model: nn.Module, tensors: CheckpointTensors) -> None:
    """Reads each process' rows of the weights, strictly.

    Raises:
        CheckpointError: naming the first tensor that is missing, unknown or has another shape.
    """
    state = model.state_dict()
    _compare_names(tensors.names(WEIGHTS), set(state), str(tensors.directory))
    for name, target in state.items():
        _fill(target, tensors, WEIGHTS + name)


def load_moments(optimizer: torch.optim.Optimizer, average: WeightAverage | None, tensors: CheckpointTensors) -> None:
    """Reads each process' rows of the optimizer's state and of the averaged weights; errors as `load_weights`."""
    _load_optimizer(optimizer, tensors)
    if average is not None:
        _load_average(average, tensors)


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: CheckpointTensors) -> None:
    members = dict(named_members(optimizer))
    found: dict[str, list[str]] = {}
    for name in tensors.names(OPTIMIZER):
        parameter_name, _, key = name.rpartition("|")
        found.setdefault(parameter_name, []).append(key)
    was_saved = holds_shards(tensors.directory) or (tensors.directory / "optimizer.safetensors").exists()
    if was_saved and not found:
        return  # saved before any update was made: all had been refused
    _compare_names(set(found), set(members), f"the optimizer's state in {tensors.directory}")
    on_device = optimizer.param_groups[0].get("fused") or optimizer.param_groups[0].get("capturable")
    for name, parameter in members.items():
        state = {}
        for key in found[name]:
            full_name = f"{OPTIMIZER}{name}|{key}"
            if tensors.shapes[full_name]:
                state[key] = torch.empty_like(parameter.detach(), dtype=tensors.dtype(full_name))
                _fill(state[key], tensors, full_name)
            else:
                counter = tensors.read(full_name)
                state[key] = counter.to(parameter.device) if on_device else counter
        optimizer.state[parameter] = state


def _load_average(average: WeightAverage, tensors: CheckpointTensors) -> None:
    if not tensors.names(AVERAGE):
        raise CheckpointError(
            f"{tensors.directory} holds no average of the weights: continue without --ema_decay, or choose another "
            "--output_dir"
        )
    state = average.state_dict()
    _compare_names(tensors.names(AVERAGE), set(state), f"the average of the weights in {tensors.directory}")
    for name, target in state.items():
        _fill(target, tensors, AVERAGE + name)


def _compare_names(found: set[str], expected: set[str], where: str) -> None:
    """Raises CheckpointError naming the first tensor that is missing or unknown."""
    for names, verdict in ((expected - found, "lacks"), (found - expected, "holds the unknown")):
        if names:
            raise CheckpointError(
                f"{where} {verdict} {min(names)!r} (and {len(names) - 1} more); resume with the model options that "
                "wrote the checkpoint, or choose another --output_dir"
            )


@torch.no_grad()
def _fill(target: Tensor, tensors: CheckpointTensors, name: str) -> None:
    if tuple(target.shape) != tensors.shapes[name]:
        raise CheckpointError(
            f"{tensors.directory}: {name} has shape {tensors.shapes[name]}, the model's {tuple(target.shape)}; resume "
            "with the model options that wrote the checkpoint, or choose another --output_dir"
        )
    own_part(target).copy_(tensors.read(name, *own_rows(target)))


__all__ = [
    "AVERAGE",
    "OPTIMIZER",
    "WEIGHTS",
    "CheckpointTensors",
    "holds_shards",
    "load_moments",
    "load_weights",
    "save_config",
    "save_training",
    "training_tensors",
    "write_shard",
]
