"""A training step on many GPUs: a row of stages and their messages, by the formulas in simulate_weak_scaling.py."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maws_hf import MawsMAEForPreTraining, MawsViTConfig, MawsViTForImageClassification
from maws_hf.evaluation.flops import block_flops, embedding_flops
from maws_hf.evaluation.memory_plan import gathered_size
from maws_hf.masking import num_kept_patches
from maws_hf.models.configuration_maws_vit import as_pair

WAYS = ("DDP", "FSDP2", "HSDP")
TASKS = ("mae", "wsp")


@dataclass(frozen=True)
class Cluster:
    """Links in bytes a second, latencies of a hop in seconds.

    Args:
        per_node: GPUs of a node.
        rings: network cards of a node that a message among all GPUs is spread over.
    """

    nvlink: float = 450e9
    network: float = 50e9
    inside: float = 2e-6
    between: float = 5e-6
    per_node: int = 8
    rings: int = 8

    def nodes(self, gpus: int) -> int:
        """Raises ValueError: the last node would not be full."""
        if gpus > self.per_node and gpus % self.per_node:
            raise ValueError(f"{gpus} GPUs do not fill nodes of {self.per_node}")
        return max(1, gpus // self.per_node)

    def one_way(self, size: float, gpus: int) -> float:
        """Seconds of an all-gather or a reduce-scatter of `size` bytes in all."""
        nodes = self.nodes(gpus)
        hops = (gpus - nodes) * self.inside + (nodes - 1) * self.between
        return (gpus - 1) / gpus * size / self._speed(nodes) + hops

    def all_reduce(self, size: float, gpus: int) -> float:
        nodes = self.nodes(gpus)
        if gpus == 1:
            return 0.0
        hops = (gpus // nodes - 1) * self.inside + math.ceil(math.log2(nodes)) * self.between
        return min(2 * self.one_way(size, gpus), 2 * size / self._speed(nodes) + 2 * hops)

    def all_reduce_of_peers(self, size: float, nodes: int) -> float:
        """One GPU of each node, over its own card."""
        return replace(self, per_node=1, rings=1, nvlink=math.inf).all_reduce(size, nodes)

    def _speed(self, nodes: int) -> float:
        return self.nvlink if nodes == 1 else min(self.nvlink, self.rings * self.network)


@dataclass(frozen=True)
class Stage:
    """A part of the model: operations an image, and the parameters whose gradients it leaves.

    Args:
        tensors: parameters, on any device; of a block without its norms.
        norms: those of the norms, which are gathered with those of all blocks.
    """

    tensors: Sequence[Tensor]
    forward: float
    backward: float
    in_block: bool
    norms: Sequence[Tensor] = ()

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in (*self.tensors, *self.norms))


def stages_of(task: str, config: MawsViTConfig, labels: int = 28_000) -> list[Stage]:
    """Embedding, blocks, head, in the order of the forward pass; as in `flops`, which adds them up.

    Raises:
        ValueError: the task is unknown.
    """
    if task not in TASKS:
        raise ValueError(f"the task {task!r} is unknown; there are {', '.join(TASKS)}")
    config = copy.deepcopy(config)
    config.num_labels = labels
    with torch.device("meta"):
        model = MawsMAEForPreTraining(config) if task == "mae" else MawsViTForImageClassification(config)
    patches = config.grid_size[0] * config.grid_size[1]
    kept = num_kept_patches(patches, config.mask_ratio) if task == "mae" else patches
    width, mlp = config.hidden_size, config.intermediate_size
    embedding = embedding_flops(config, kept)
    stages = [Stage(_trained(model.vit.embeddings), embedding, embedding, in_block=False)]
    for index, layer in enumerate(model.vit.layers):
        last = task == "wsp" and index == len(model.vit.layers) - 1
        stages.append(_block(layer, block_flops(kept + 1, width, mlp, queries=1 if last else None)))
    if task == "wsp":
        head = 2.0 * width * labels
    else:
        narrow, narrow_mlp = config.decoder_hidden_size, config.decoder_intermediate_size
        masked = patches - kept
        bridge = 2.0 * (kept + 1) * width * narrow
        stages.append(Stage(_trained(model.decoder.embed), bridge, 2 * bridge, in_block=False))
        for index, layer in enumerate(model.decoder.layers):
            last = index == len(model.decoder.layers) - 1
            forward = block_flops(patches + 1, narrow, narrow_mlp, queries=masked if last else None)
            stages.append(_block(layer, forward))
        head = 2.0 * masked * narrow * config.num_channels * torch.Size(as_pair(config.patch_size)).numel()
    before = {tensor for stage in stages for tensor in (*stage.tensors, *stage.norms)}
    rest = [tensor for tensor in _trained(model) if tensor not in before]
    return [*stages, Stage(rest, head, 2 * head, in_block=False)]


def _block(layer: torch.nn.Module, forward: float) -> Stage:
    norms = [*layer.layernorm_before.parameters(), *layer.layernorm_after.parameters()]
    others = [tensor for tensor in _trained(layer) if all(tensor is not norm for norm in norms)]
    return Stage(others, forward, 2 * forward, in_block=True, norms=norms)


def _trained(module: torch.nn.Module) -> list[Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@dataclass
class Lane:
    """Work that goes one after the other: a GPU's kernels, or the messages of a link."""

    free: float = 0.0
    busy: float = 0.0

    def run(self, ready: float, seconds: float) -> float:
        """When work is done that may begin at `ready`."""
        self.free = max(self.free, ready) + seconds
        self.busy += seconds
        return self.free


@dataclass(frozen=True)
class Step:
    """Seconds; `compute` and `messages` are what either would take alone."""

    seconds: float
    compute: float
    messages: float

    @property
    def efficiency(self) -> float:
        return self.compute / self.seconds


def simulate(
    stages: Sequence[Stage],
    way: str,
    gpus: int,
    cluster: Cluster,
    *,
    images: int,
    rate: float,
    overlap: bool = True,
    checkpointing: bool = False,
    bucket: float = 25e6,
) -> Step:
    """One training step on each of `gpus`.

    Args:
        images: of each GPU.
        rate: operations a second of a GPU.
        overlap: messages pass while the GPU computes; otherwise everything waits for everything.
        checkpointing: blocks are computed again before their backward pass.
        bucket: bytes of gradients that DDP sends together.
    """
    forward = [images * stage.forward / rate for stage in stages]
    backward = [images * stage.backward / rate for stage in stages]
    if checkpointing:
        again = zip(backward, forward, stages, strict=True)
        backward = [seconds + (first if stage.in_block else 0.0) for seconds, first, stage in again]
    if way == "DDP":
        step = _replicated(stages, forward, backward, lambda size: cluster.all_reduce(size, gpus), bucket)
    else:
        step = _sharded(stages, forward, backward, way, gpus, cluster)
    return step if overlap else replace(step, seconds=step.compute + step.messages)


def _replicated(
    stages: Sequence[Stage],
    forward: list[float],
    backward: list[float],
    all_reduce: Callable[[float], float],
    bucket: float,
) -> Step:
    gpu, link = Lane(), Lane()
    gpu.run(0.0, sum(forward))
    waiting = 0.0
    for stage, seconds in zip(reversed(stages), reversed(backward), strict=True):
        done = gpu.run(0.0, seconds)
        waiting += 4.0 * stage.parameters
        while waiting >= bucket:
            link.run(done, all_reduce(bucket))
            waiting -= bucket
    if waiting:
        link.run(gpu.free, all_reduce(waiting))
    return Step(max(gpu.free, link.free), gpu.busy, link.busy)


def _sharded(
    stages: Sequence[Stage], forward: list[float], backward: list[float], way: str, gpus: int, cluster: Cluster
) -> Step:
    """All stages that are no block are one group: gathered first, scattered last. So are the norms of all blocks,
    which come after the first block and go before the last, as `shard_model` has it for bfloat16."""
    group = min(gpus, cluster.per_node) if way == "HSDP" else gpus
    nodes = gpus // group
    gpu, link, network = Lane(), Lane(), Lane()
    rest = gathered_size((tensor for stage in stages if not stage.in_block for tensor in stage.tensors), group)
    norms = gathered_size((norm for stage in stages for norm in stage.norms), group)

    def scatter(numbers: int, ready: float) -> None:
        done = link.run(ready, cluster.one_way(4.0 * numbers, group))
        if nodes > 1:
            network.run(done, cluster.all_reduce_of_peers(4.0 * numbers / group, nodes))

    def gather_block(stage: Stage, ready: float) -> float:
        return link.run(ready, cluster.one_way(2.0 * gathered_size(stage.tensors, group), group))

    for is_backward, order, times in ((False, [*stages], forward), (True, [*reversed(stages)], backward[::-1])):
        root = link.run(gpu.free, cluster.one_way(4.0 * rest, group))
        blocks = [stage for stage in order if stage.in_block]
        gathered = [gather_block(blocks[0], gpu.free)] if blocks else []
        if norms:
            gathered[0] = link.run(gpu.free, cluster.one_way(4.0 * norms, group))
        for stage, seconds in zip(order, times, strict=True):
            if not stage.in_block:
                gpu.run(root, seconds)
                continue
            ready = gathered.pop()
            blocks.pop(0)
            start = max(gpu.free, ready, root)
            if blocks:  # on its way while this one computes
                gathered.append(gather_block(blocks[0], start))
            done = gpu.run(start, seconds)
            if is_backward and norms and not blocks:
                scatter(norms, done)
            if is_backward:
                scatter(gathered_size(stage.tensors, group), done)
    scatter(rest, gpu.free)
    return Step(max(gpu.free, link.free, network.free), gpu.busy, link.busy + network.busy)
