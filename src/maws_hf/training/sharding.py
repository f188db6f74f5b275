"""Models too large for one device: parameters, gradients and moments are sharded over the processes (FSDP2).

Accelerate's config decides (`distributed_type: FSDP` with `fsdp_version: 2`, as in examples/accelerate/fsdp2.yaml);
the rest is PyTorch's `fully_shard`. Not Accelerate's `prepare`, which wants whole weights on at least one process: a
new model is built without memory, and each process draws or reads its own rows only.

Every weight is split along its first axis. While a block computes, its weights are gathered; they are gone again
before the next block's. Outside of a forward or backward pass no process holds a whole block.

A gather takes as many rows of a weight from each process, padded where there are fewer: a table whose first axis is 1
comes as often as there are processes. An autoencoder's positions, which nobody trains, are therefore left whole.

Over many machines, gathering takes as long as the slow links between them need for a message to go round. Hybrid
sharding keeps it inside a machine: each holds a copy of the model, sharded over its own processes, and only gradients
are summed across (`parallelism_config_dp_replicate_size` of Accelerate's config, as in examples/accelerate/hsdp.yaml).
"""

import os
import warnings
from types import MethodType
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ..models.maws_mae_cross_decoder import MawsMAECrossLayer
from ..models.modeling_maws_vit import MawsViTLayer, MawsViTPreTrainedModel
from .initial_weights import draw_weights

# Of Accelerate's fsdp_config: what would save memory there, and what is to be done here.
_NOT_HERE = {
    "OFFLOAD_PARAMS": "but weights and moments stay on the devices: leave it out, and take more devices",
    "ACTIVATION_CHECKPOINTING": "which the scripts decide: leave it out, and add --gradient_checkpointing",
}
_BLOCKS = (MawsViTLayer, MawsMAECrossLayer)


class Start(Protocol):
    """Weights that a run begins with, which are read row by row."""

    names: set[str]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor: ...


def sharding_wanted() -> bool:
    """Whether this run's launcher asks for sharded parameters, and there is a group of processes to share them.

    The group may be a single process: Accelerate would otherwise shard the model itself, its own way.

    Raises:
        ValueError: it asks for what would end in other weights: the first FSDP, or models that transformers loads on
            the first process only; or for memory that would not be saved, because the model is split here and not by
            Accelerate.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError(
            "the accelerate config asks for FSDP version 1; put `fsdp_version: 2` into its fsdp_config, or use "
            "examples/accelerate/fsdp2.yaml"
        )
    if os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false").lower() == "true":
        raise ValueError(
            "the accelerate config lets only the first process load weights; put `fsdp_cpu_ram_efficient_loading: "
            "false` into its fsdp_config, or use examples/accelerate/fsdp2.yaml"
        )
    for option, advice in _NOT_HERE.items():
        if os.environ.get(f"FSDP_{option}", "false").lower() == "true":
            raise ValueError(f"the accelerate config asks for `fsdp_{option.lower()}: true`, {advice}")
    return dist.is_available() and dist.is_initialized()


def copies_wanted(processes: int) -> int:
    """How many copies of the model the launcher asks for, each sharded over its part of so many processes.

    Raises:
        ValueError: the processes do not make so many equal parts of at least two; or parallelism of other kinds is
            asked for, which the models do not have.
    """
    wanted = {
        name: int(os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}_SIZE", "1"))
        for name in ("dp_replicate", "dp_shard", "tp", "cp", "sp")
    }
    for name in ("tp", "cp", "sp"):
        if wanted[name] > 1:
            raise ValueError(
                f"the accelerate config asks for `parallelism_config_{name}_size: {wanted[name]}`; models are split "
                "over dp_replicate and dp_shard only: leave it out"
            )
    copies, parts = wanted["dp_replicate"], wanted["dp_shard"]
    if max(copies, parts) > 1 and (parts < 2 or copies * parts != processes):
        raise ValueError(
            f"the accelerate config asks for parallelism_config_dp_replicate_size: {copies}, which are copies of the "
            f"model, and parallelism_config_dp_shard_size: {parts}, the processes that share one: at least 2, and "
            f"together as many as there are, {processes}"
        )
    return copies


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def shard_model(
    model: PreTrainedModel, device: torch.device, seed: int, *, bf16: bool = False, copies: int = 1
) -> None:
    """Splits the model over all processes, in place, on this one's `device`. Called by every process.

    With several `copies` each is split over equally many processes; the first ranks hold the first copy.

    Weights without memory (of a model under construction) are read from its start if that has them (`start_from`), and
    else drawn as `draw_weights` draws them for a whole model; others keep their values. With `bf16`, the matrices of
    blocks are gathered in bfloat16, and everything computes under autocast with the numbers of a data-parallel run;
    weights, the sum of gradients over processes, and moments are float32 either way.

    Raises:
        ValueError: the model is no MAWS vision model, or compiled.
    """
    if not isinstance(model, MawsViTPreTrainedModel):
        raise ValueError(
            f"{type(model).__name__} is not trained with sharded parameters (FSDP): use "
            "examples/accelerate/multi_gpu.yaml"
        )
    if getattr(model, "_compiled_call_impl", None) is not None:
        raise ValueError("--torch_compile does not go with sharded parameters (FSDP); leave it out")
    given = _take_values(model)
    mesh = _mesh(device, copies)
    whole = MixedPrecisionPolicy(cast_forward_inputs=False)
    halved = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    blocks = [module for module in model.modules() if isinstance(module, _BLOCKS)]
    if bf16:  # autocast would round the weights of linear layers as well, but leaves those of norms as they are
        # So small that they are gathered at once, and stay from the first block to the last: a group for each block
        # would double the number of messages. Not kept for the backward pass, for the reason that the root is not.
        norms = [norm for block in blocks for norm in (block.layernorm_before, block.layernorm_after)]
        fully_shard(norms, mesh=mesh, reshard_after_forward=True, mp_policy=whole)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=halved if bf16 else whole)
    positions = model.base_model.embeddings.position_embeddings
    constant = set() if positions.requires_grad else {positions}
    if given is None:
        positions.data = positions.data.to(device)  # as is done with all that is not ignored
    # The root too gives its weights back after a forward pass without a backward one: a picture drawn between two
    # updates must not leave plain tensors behind where the optimizer and the checkpoint expect their own rows.
    fully_shard(model, mesh=mesh, reshard_after_forward=True, mp_policy=whole, ignored_params=constant)
    # Of the predictions, which nobody changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    if given is not None:
        model.to_empty(device=device)
        _fill(model, seed, given)
    if bf16:
        _autocast(model, device)


def start_from(model: PreTrainedModel, start: "Start") -> None:
    """Lets `shard_model` read the weights that `start` has; a part that gets its own values before keeps them."""
    model.start_of_shards = start


def rebind_groups(groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups made before the model was sharded, with the parameters of the same names that it has now."""
    parameters = dict(model.named_parameters())
    return [{**group, "params": [parameters[name] for name in group["param_names"]]} for group in groups]


class Place(NamedTuple):
    """Which part of a model a process holds, of how many, and of which copy of it."""

    part: int
    parts: int
    copy: int


def own_place(tensor: Tensor) -> Place:
    """Of this process, in a tensor of the model."""
    if not isinstance(tensor, DTensor):
        return Place(0, 1, 0)
    mesh = tensor.device_mesh
    along_parts = mesh.ndim - 1
    copy = mesh.get_local_rank(0) if along_parts else 0
    return Place(mesh.get_local_rank(along_parts), mesh.size(along_parts), copy)


def own_rows(tensor: Tensor) -> tuple[int, int]:
    """First row of this process and the one behind its last; all rows of a tensor that is not sharded."""
    if not isinstance(tensor, DTensor):
        return 0, len(tensor) if tensor.dim() else 1
    length, place = tensor.shape[0], own_place(tensor)
    each = -(-length // place.parts)  # as PyTorch splits them
    start = min(place.part * each, length)
    return start, min(start + each, length)


def own_part(tensor: Tensor) -> Tensor:
    """The values that lie on this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_norm(norm: Tensor) -> Tensor:
    """A norm over tensors of all processes as a plain scalar, on all of them the same to the last bit."""
    if not isinstance(norm, DTensor):
        return norm
    whole, mesh = norm.full_tensor(), norm.device_mesh
    if mesh.ndim > 1:  # each copy of the model has added up its own parts, in an order of its own
        dist.broadcast(whole, group=mesh.get_group(0), group_src=0)
    return whole


@torch.no_grad()
def copy_rows(target: Tensor, values: Tensor) -> None:
    """Copies this process' rows of `values`, which are whole."""
    start, stop = own_rows(target)
    own_part(target).copy_(values[start:stop] if target.dim() else values)


def _mesh(device: torch.device, copies: int) -> DeviceMesh:
    processes = dist.get_world_size()
    if copies == 1:
        return init_device_mesh(device.type, (processes,))
    return init_device_mesh(device.type, (copies, processes // copies), mesh_dim_names=("dp_replicate", "dp_shard"))


def _take_values(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """Of a model that is partly without memory: the values that are there, so that nothing is left but shapes."""
    members = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if not any(member.is_meta for member in members.values()):
        return None
    given = {name: member.detach() for name, member in members.items() if not member.is_meta}
    model.to("meta")
    return given


@torch.no_grad()
def _fill(model: PreTrainedModel, seed: int, given: dict[str, Tensor]) -> None:
    start: Start | None = vars(model).pop("start_of_shards", None)
    members = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    new = set(members) - set(given) - (start.names if start else set())
    for name in sorted(set(members) - new):
        if name in given:
            copy_rows(members[name], given[name])
        else:
            own_part(members[name]).copy_(start.read(name, *own_rows(members[name])))
    draw_weights(model, seed, keep=lambda name, values: copy_rows(members[name], values), only=new)


def _autocast(model: PreTrainedModel, device: torch.device) -> None:
    forward = torch.autocast(device.type, dtype=torch.bfloat16)(type(model).forward)
    model.forward = MethodType(convert_outputs_to_fp32(forward), model)


__all__ = [
    "Place",
    "Start",
    "copies_wanted",
    "copy_rows",
    "is_sharded",
    "own_part",
    "own_place",
    "own_rows",
    "rebind_groups",
    "shard_model",
    "sharding_wanted",
    "start_from",
    "whole_norm",
]
