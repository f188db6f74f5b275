"""What a training step keeps in the memory of one device, in closed form: what fits, before anything is started.

A step is a row of stages (embedding, blocks, head). Going forward each keeps for the backward pass what autograd saves
there; going backward each gives that back and leaves gradients of its parameters. The peak is the largest sum on the
way: early it is activations, late it is gradients, rarely both.

Counted are tensors. The CUDA context, the workspaces of libraries and what an allocator loses to fragmentation are
not; `RESERVED` of a device's memory is left for them, which is an assumption and no measurement.

Of sharded states it is the first device that counts: where the rows of a tensor do not go round it has the most, and
what is gathered has as many of each (`gathered_size`).
"""

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from ..models.configuration_limits import MOST_LABELS
from ..models.configuration_maws_vit import MawsViTConfig, as_pair
from ..models.modeling_maws_mae import MawsMAEForPreTraining
from ..models.modeling_maws_vit import MawsViTForImageClassification
from .memory_stages import ModelSizes, Setting, Stage, kept_and_predicted, stages_of
from .text_memory import MOST_TOKENS, image_work_bytes, lit_model_without_memory

TASKS = ("mae", "wsp", "finetune", "lit")
_SHARDED = ("mae", "wsp")
RESERVED = 0.08
GIB = 2**30
_LARGEST_BATCH = 1 << 16


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device.

    `peak` is less than the sum of the parts: activations and gradients are not whole at the same time.
    """

    parameters: int
    weights: float
    moments: float
    average: float
    gradients: float
    copies: float
    activations: float
    logits: float
    inputs: float
    peak: float

    @property
    def standing(self) -> float:
        """What is there between two steps."""
        return self.weights + self.moments + self.average

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def plan_memory(config: MawsViTConfig, setting: Setting) -> MemoryPlan:
    """The memory of one device in a training step with AdamW.

    Raises:
        ValueError: the task is unknown, or never runs like that: sharded, with so many labels or tokens.
    """
    return _plan(_measure_model(config, setting), config, setting)


def largest_batch(config: MawsViTConfig, setting: Setting, memory: float) -> int:
    """The most images a device at which the peak stays within `memory` bytes less `RESERVED`; 0 if none does."""
    model = _measure_model(config, setting)

    def fits(batch: int) -> bool:
        plan = _plan(model, config, replace(setting, batch=batch))
        return plan.peak <= memory * (1 - RESERVED)

    low, high = 0, 1
    while high < _LARGEST_BATCH and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def gathered_size(parameters: Iterable[Tensor], shards: int) -> int:
    """Numbers that so many devices gather: of each tensor as many rows from all, padded where it has fewer."""
    size = 0
    for parameter in parameters:
        rows = (*parameter.shape, 1)[0]
        size += -(-rows // shards) * shards * (parameter.numel() // rows)
    return size


def _measure_model(config: MawsViTConfig, setting: Setting) -> ModelSizes:
    _refuse_what_no_run_does(setting)
    config = copy.deepcopy(config)
    config.num_labels = setting.labels
    model = _without_memory(config, setting)
    shards = setting.gpus if setting.fsdp else 1
    encoder = model.text_model.encoder.layer if setting.task == "lit" else model.vit.layers
    blocks = [encoder, *([model.decoder.layers] if setting.task == "mae" else [])]
    in_blocks = {parameter for layers in blocks for parameter in layers.parameters()}
    whole = set()
    if setting.fsdp and setting.task == "mae":
        whole = {model.vit.embeddings.position_embeddings}  # see `shard_model`
    sharded = [parameter for parameter in model.parameters() if parameter not in whole]
    trained = [parameter for parameter in sharded if parameter.requires_grad]
    return ModelSizes(
        parameters=sum(p.numel() for p in model.parameters()),
        own=gathered_size(sharded, shards) // shards,
        own_trained=gathered_size(trained, shards) // shards,
        block=_block_size(encoder, shards),
        decoder_block=_block_size(model.decoder.layers, shards) if setting.task == "mae" else (0, 0),
        outside=sum(p.numel() for p in trained if p not in in_blocks),
        gathered_outside=gathered_size((p for p in sharded if p not in in_blocks), shards),
        constants=sum(tensor.nbytes for tensor in (*model.buffers(), *whole)),
    )


def _refuse_what_no_run_does(setting: Setting) -> None:
    if setting.task not in TASKS:
        raise ValueError(f"the task {setting.task!r} is unknown; there are {', '.join(TASKS)}")
    if setting.fsdp and setting.task not in _SHARDED:
        raise ValueError(f"the task {setting.task!r} is not trained with sharded parameters (FSDP); leave it out")
    if setting.labels > MOST_LABELS:
        raise ValueError(f"{setting.labels:,} labels are not possible: {MOST_LABELS:,} are the most")
    if setting.task == "lit" and setting.accumulation > 1:
        raise ValueError("the task 'lit' is not trained with gradient accumulation: its loss is of a whole batch")
    if setting.task == "lit" and setting.text_tokens > MOST_TOKENS:
        raise ValueError(f"{setting.text_tokens:,} tokens are more than the {MOST_TOKENS} that the text tower reads")


def _without_memory(config: MawsViTConfig, setting: Setting) -> nn.Module:
    if setting.task == "lit":
        return lit_model_without_memory(config, setting.text_size)
    with torch.device("meta"):
        return MawsMAEForPreTraining(config) if setting.task == "mae" else MawsViTForImageClassification(config)


def _block_size(layers: nn.ModuleList, shards: int) -> tuple[int, int]:
    parameters = list(layers[0].parameters()) if len(layers) else []
    return gathered_size(parameters, 1), gathered_size(parameters, shards)


def _plan(model: ModelSizes, config: MawsViTConfig, setting: Setting) -> MemoryPlan:
    stages = stages_of(model, config, setting)
    shards = setting.gpus if setting.fsdp else 1
    weights = 4 * model.own + model.constants
    moments = 8 * model.own_trained
    average = 4 * model.own_trained if setting.average else 0.0
    always_whole = setting.accumulation > 1 or (setting.gpus > 1 and not setting.fsdp)  # all gradients, in buckets
    copies, late_copies = _copies(stages, model, setting)
    gathered = _gathered(stages, model, setting) if setting.fsdp else [(late_copies, late_copies)] * len(stages)
    batches = setting.accumulation * (2 if setting.reads_ahead else 1)
    inputs = batches * setting.batch * _sample_bytes(config, setting)
    if setting.task == "mae":
        inputs += _loss_bytes(config, setting.batch)
    gradients = 4 * model.own_trained
    held, left = sum(stage.saved for stage in stages), 0.0
    peak = copies + held + (gradients if always_whole else 0)
    if setting.fsdp:
        peak = max(peak, _first_gathered(stages, model, setting) + (gradients if always_whole else 0))
    if setting.task == "lit":
        peak = max(peak, copies + setting.batch * image_work_bytes(config, setting.bf16))
    for stage, (computing, reducing) in zip(reversed(stages), reversed(gathered), strict=True):
        peak = max(peak, computing + held + stage.again + stage.work + (gradients if always_whole else left))
        held -= stage.saved
        left += 4 * stage.parameters / shards
        peak = max(peak, reducing + held + (gradients if always_whole else left))
    logits = setting.batch * setting.labels * 4.0 if setting.task in ("wsp", "finetune") else 0.0
    return MemoryPlan(
        parameters=model.parameters,
        weights=weights,
        moments=moments,
        average=average,
        gradients=gradients,
        copies=max(copies, *(computing for computing, _ in gathered)),
        activations=sum(stage.saved for stage in stages) - logits + max(stage.again for stage in stages),
        logits=logits,
        inputs=inputs,
        peak=weights + moments + average + inputs + peak,
    )


def _sample_bytes(config: MawsViTConfig, setting: Setting) -> int:
    """An image of uint8 with what belongs to it: token ids and their mask, soft targets, or 16 indices of labels."""
    besides = {"mae": 0, "lit": 16 * setting.text_tokens, "finetune": 4 * setting.labels, "wsp": 8 * 16}
    return config.num_channels * torch.Size(as_pair(config.image_size)).numel() + besides[setting.task]


def _loss_bytes(config: MawsViTConfig, batch: int) -> int:
    """`mse_loss` returns a scalar in a buffer of all squared differences, which lives as long as the loss."""
    _, predicted = kept_and_predicted(config)
    return 4 * batch * predicted * config.num_channels * torch.Size(as_pair(config.patch_size)).numel()


def _copies(stages: list[Stage], model: ModelSizes, setting: Setting) -> tuple[float, float]:
    """Weights that exist twice, at the end of the forward pass and during the backward pass.

    Autocast keeps what it has rounded to bfloat16 while it is active, and autograd what linear layers need again; a
    block that is computed again rounds its weights again. Sharded weights are gathered (`_gathered`, going back).
    """
    if setting.fsdp:
        # What is in no block, and besides it the message in which it has just come, or a block and the next one.
        rest, block = model.gathered_outside, _largest_gathered(stages)
        rounded = 2 * model.outside if setting.bf16 else 0
        return 4 * rest + max(4 * rest, (4 if setting.bf16 else 8) * block) + rounded, 0.0
    if not setting.bf16:
        return 0.0, 0.0
    blocks = [stage.parameters for stage in stages if stage.in_block]
    everything = 2.0 * (sum(blocks) + model.outside)
    late = 2.0 * (max(blocks, default=0) + model.outside)
    return everything, late if setting.checkpointing else everything


def _first_gathered(stages: list[Stage], model: ModelSizes, setting: Setting) -> float:
    """At the start of a forward pass: what is in no block and the message in which it came, which PyTorch lets go of
    only when the first block has been copied out of its own."""
    return 8 * model.gathered_outside + (4 if setting.bf16 else 8) * _largest_gathered(stages)


def _largest_gathered(stages: list[Stage]) -> int:
    return max((stage.gathered for stage in stages), default=0)


def _gathered(stages: list[Stage], model: ModelSizes, setting: Setting) -> list[tuple[float, float]]:
    """Of sharded weights and gradients what is whole on each device, while a stage's backward pass computes and while
    its gradients are divided among the devices.

    The weights of a block and of the next one, already on its way; its gradients; those of the block before, in
    float32, until they are summed; and what is in no block, with its gradients, from the first stage to the last.
    Gradients are as many as are trained until they are put into the message that divides them.
    """
    size = 2 if setting.bf16 else 4
    always = 4 * model.gathered_outside + (6 if setting.bf16 else 4) * model.outside
    nothing = Stage("", 0, 0, 0, 0, in_block=False)
    found = []
    for following, stage, before in zip([nothing, *stages], stages, [*stages[1:], nothing], strict=False):
        trained = stage.parameters if stage.in_block else 0
        computing = size * (stage.gathered + trained + following.gathered) + 4 * before.gathered
        reducing = 4 * (stage.gathered + trained) + size * following.gathered
        found.append((always + computing, always + reducing))
    return found


__all__ = ["GIB", "RESERVED", "TASKS", "MemoryPlan", "gathered_size", "largest_batch", "plan_memory"]
