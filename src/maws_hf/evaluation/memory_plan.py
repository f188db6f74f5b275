"""What a training step keeps in the memory of one device, in closed form: what fits, before anything is started.

A step is a row of stages (embedding, blocks, head). Going forward each keeps for the backward pass what autograd saves
there; going backward each gives that back and leaves gradients of its parameters. The peak is the largest sum on the
way: early it is activations, late it is gradients, rarely both.

Counted are tensors. The CUDA context, the workspaces of libraries and what an allocator loses to fragmentation are
not; `RESERVED` of a device's memory is left for them, which is an assumption and no measurement.

Of sharded states it is the first device that counts: where the rows of a tensor do not go round it has the most, and
what is gathered has as many of each (`gathered_size`).

Legend: B images, T tokens, D width, F width of the MLP, P parameters.
"""

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from ..masking import num_kept_patches, num_predicted_patches
from ..models.configuration_limits import MOST_LABELS
from ..models.configuration_maws_vit import MawsViTConfig, as_pair
from ..models.modeling_maws_mae import MawsMAEForPreTraining
from ..models.modeling_maws_vit import MawsViTForImageClassification
from .cross_decoder_memory import cross_block_bytes, cross_bridge_bytes, hidden_state_gradient_bytes
from .text_memory import MOST_TOKENS, image_work_bytes, lit_model_without_memory, text_block_bytes, text_config_of

TASKS = ("mae", "wsp", "finetune", "lit")
_SHARDED = ("mae", "wsp")
RESERVED = 0.08
GIB = 2**30
_LARGEST_BATCH = 1 << 16


@dataclass(frozen=True)
class Setting:
    """One way to train on one kind of device.

    Args:
        batch: images a device and forward pass.
        labels: classes of the head, for `wsp` and `finetune`.
        gpus: processes; their gradients lie in buckets, or with `fsdp` all states are divided among them.
        average: an average of the weights is kept as well.
        accumulation: batches an update. All of them are on the device, and from the second on all gradients.
        reads_ahead: those of the next update are there as well, as on GPUs (`maws_hf.training.prefetch`).
        text_size, text_tokens: of the text tower and of a caption, for `lit`.
    """

    task: str
    batch: int
    labels: int = 1000
    gpus: int = 1
    bf16: bool = False
    checkpointing: bool = False
    fsdp: bool = False
    average: bool = False
    accumulation: int = 1
    reads_ahead: bool = False
    text_size: str = "base"
    text_tokens: int = 64


@dataclass(frozen=True)
class Stage:
    """A part of a step, in bytes but for `parameters`.

    Args:
        saved: kept from the forward pass until this stage's backward pass.
        again: kept from then on if the stage is computed again (checkpointing), while its backward pass runs.
        work: needed besides, for gradients of activations.
        parameters: that the stage trains.
        gathered: of a block with `fsdp`: what is gathered of it while it computes.
    """

    name: str
    saved: float
    again: float
    work: float
    parameters: int
    gathered: int = 0
    in_block: bool = True


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


@dataclass(frozen=True)
class _Model:
    """Sizes of a model, in numbers.

    Args:
        parameters: all there are.
        own, own_trained: that are on the first device.
        block, decoder_block: trained in each, and gathered of each.
        outside: trained ones in no block.
        gathered_outside: what is gathered besides the blocks.
        constants: bytes that every device has whole.
    """

    parameters: int
    own: int
    own_trained: int
    block: tuple[int, int]
    decoder_block: tuple[int, int]
    outside: int
    gathered_outside: int
    constants: int


def _measure_model(config: MawsViTConfig, setting: Setting) -> _Model:
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
    return _Model(
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


def _plan(model: _Model, config: MawsViTConfig, setting: Setting) -> MemoryPlan:
    stages = _STAGES[setting.task](model, config, setting)
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
    _, predicted = _kept_and_predicted(config)
    return 4 * batch * predicted * config.num_channels * torch.Size(as_pair(config.patch_size)).numel()


def _kept_and_predicted(config: MawsViTConfig) -> tuple[int, int]:
    patches = config.grid_size[0] * config.grid_size[1]
    kept = num_kept_patches(patches, config.mask_ratio)
    return kept, num_predicted_patches(patches - kept, config.prediction_ratio)


def _copies(stages: list[Stage], model: _Model, setting: Setting) -> tuple[float, float]:
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


def _first_gathered(stages: list[Stage], model: _Model, setting: Setting) -> float:
    """At the start of a forward pass: what is in no block and the message in which it came, which PyTorch lets go of
    only when the first block has been copied out of its own."""
    return 8 * model.gathered_outside + (4 if setting.bf16 else 8) * _largest_gathered(stages)


def _largest_gathered(stages: list[Stage]) -> int:
    return max((stage.gathered for stage in stages), default=0)


def _gathered(stages: list[Stage], model: _Model, setting: Setting) -> list[tuple[float, float]]:
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


def _block(
    setting: Setting, name: str, tokens: int, queries: int, width: int, mlp: int, heads: int, sizes: tuple[int, int]
) -> Stage:
    """A pre-norm block of which `queries` tokens are computed (`MawsViTLayer`).

    Kept are the inputs of both norms (the residual stream, float32), of all linear layers, of attention and of GELU,
    its own result, and the logsumexp of each row of attention; q, k and v share one input, also under autocast. That
    the first block of MAE's decoder keeps a mask token once for all images, at most 2 % of all, is left out.
    """
    half = 2 if setting.bf16 else 4
    of_tokens = 4 + 3 * half  # x, what q, k and v read, k, v
    of_queries = 2 * half + 4 + half  # q, attended, the second x, what fc1 reads
    if queries < tokens:
        of_queries += half  # the chosen rows of what q reads are copied
    saved = tokens * width * of_tokens + queries * (width * of_queries + 2 * half * mlp) + 4 * queries * heads
    saved += 8 * (tokens + queries)
    work = 4 * queries * width + half * queries * mlp
    only_input = 4 * tokens * width
    batch = setting.batch
    if setting.checkpointing:
        return Stage(name, batch * only_input, batch * (saved - only_input), batch * work, *sizes)
    return Stage(name, batch * saved, 0.0, batch * work, *sizes)


def _label_stages(model: _Model, config: MawsViTConfig, setting: Setting) -> list[Stage]:
    """All patches; the last block computes the class token alone."""
    rows, columns = config.grid_size
    tokens, width, depth = rows * columns + 1, config.hidden_size, config.num_hidden_layers
    pixels = config.num_channels * torch.Size(as_pair(config.image_size)).numel()
    head = width * setting.labels + setting.labels
    embedding = model.outside - head - 2 * width
    half = 2 if setting.bf16 else 4
    stages = [
        Stage(
            "embedding",
            setting.batch * half * pixels,
            0,
            4 * setting.batch * tokens * width,
            embedding,
            in_block=False,
        )
    ]
    for index in range(depth):
        queries = 1 if index == depth - 1 else tokens
        stages.append(
            _block(
                setting,
                f"block {index}",
                tokens,
                queries,
                width,
                config.intermediate_size,
                config.num_attention_heads,
                model.block,
            )
        )
    logits = setting.batch * setting.labels
    saved = setting.batch * width * 2 * half + 4 * logits
    stages.append(
        Stage("head", saved, 0, 4 * logits if setting.task == "finetune" else 0, head + 2 * width, in_block=False)
    )
    return stages


def _mae_stages(model: _Model, config: MawsViTConfig, setting: Setting) -> list[Stage]:
    """The kept patches through the encoder, all through the decoder, the predicted ones through its last block."""
    kept, predicted = _kept_and_predicted(config)
    batch, width, narrow = setting.batch, config.hidden_size, config.decoder_hidden_size
    values = config.num_channels * torch.Size(as_pair(config.patch_size)).numel()
    half = 2 if setting.bf16 else 4
    embedding = values * width + 2 * width
    stages = [Stage("embedding", batch * kept * values * half, 0, 4 * batch * kept * width, embedding, in_block=False)]
    heads = config.num_attention_heads
    for index in range(config.num_hidden_layers):
        block = (kept + 1, kept + 1, width, config.intermediate_size, heads, model.block)
        stage = _block(setting, f"block {index}", *block)
        stages.append(replace(stage, work=stage.work + batch * hidden_state_gradient_bytes(config, kept + 1)))
    rest = model.outside - embedding
    head = narrow * values + values + 2 * narrow
    decoder = _cross_decoder_stages if config.decoder_attention == "cross" else _decoder_stages
    stages += decoder(model, config, setting, rest - head)
    predictions = batch * predicted * values
    # Predictions and normalised targets; `_loss_bytes` has what is there besides while these are made.
    saved = batch * predicted * narrow * (4 + half) + predictions * (8 + (half if setting.bf16 else 0))
    stages.append(Stage("head", saved, 0, 4 * predictions, head, in_block=False))
    return stages


def _decoder_stages(model: _Model, config: MawsViTConfig, setting: Setting, parameters: int) -> list[Stage]:
    """From the encoder's last norm to the decoder's; `parameters` are those in no block."""
    kept, predicted = _kept_and_predicted(config)
    tokens, narrow, depth = kept + 1 + predicted, config.decoder_hidden_size, config.decoder_num_hidden_layers
    bridge = setting.batch * (kept + 1) * config.hidden_size * (6 if setting.bf16 else 8)
    stages = [Stage("bridge", bridge, 0, setting.batch * tokens * narrow * 4, parameters, in_block=False)]
    heads = config.decoder_num_attention_heads
    for index in range(depth):
        queries = predicted if index == depth - 1 else tokens
        block = (tokens, queries, narrow, config.decoder_intermediate_size, heads, model.decoder_block)
        stages.append(_block(setting, f"decoder block {index}", *block))
    return stages


def _cross_decoder_stages(model: _Model, config: MawsViTConfig, setting: Setting, parameters: int) -> list[Stage]:
    kept, predicted = _kept_and_predicted(config)
    batch = setting.batch
    saved, work = cross_bridge_bytes(config, kept + 1, setting.bf16, setting.checkpointing)
    stages = [Stage("bridge", batch * saved, 0, batch * work, parameters, in_block=False)]
    first, rest, work = cross_block_bytes(config, kept + 1, predicted, setting.bf16)
    again = rest if setting.checkpointing else 0
    for index in range(config.decoder_num_hidden_layers):
        sizes = (batch * (first + rest - again), batch * again, batch * work)
        stages.append(Stage(f"decoder block {index}", *sizes, *model.decoder_block))
    return stages


def _text_stages(model: _Model, config: MawsViTConfig, setting: Setting) -> list[Stage]:
    """The text tower; pairs of a batch are few beside it, and the image tower is locked."""
    text = text_config_of(setting.text_size)
    batch, tokens, width = setting.batch, setting.text_tokens, text.hidden_size
    kept, work = text_block_bytes(tokens, text, setting.bf16)
    only_input = 4 * tokens * width
    stages = [Stage("embedding", batch * tokens * 5 * width, 0, batch * only_input, 0, in_block=False)]
    for index in range(text.num_hidden_layers):
        again = batch * (kept - only_input) if setting.checkpointing else 0
        stages.append(Stage(f"block {index}", batch * kept - again, again, batch * work, *model.block))
    stages[0] = replace(stages[0], parameters=model.outside)
    return [*stages, Stage("loss", 4 * batch * (2 * batch + 8 * width), 0, 8 * batch * batch, 0, in_block=False)]


_STAGES = {"mae": _mae_stages, "wsp": _label_stages, "finetune": _label_stages, "lit": _text_stages}

__all__ = ["GIB", "RESERVED", "TASKS", "MemoryPlan", "Setting", "gathered_size", "largest_batch", "plan_memory"]
