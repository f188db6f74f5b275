"""A training step as a row of stages: embedding, blocks, head, and what each keeps and needs, in closed form.

Legend: B images, T tokens, D width, F width of the MLP, P parameters.
"""

from dataclasses import dataclass, replace

import torch

from ..masking import num_kept_patches, num_predicted_patches
from ..models.configuration_maws_vit import MawsViTConfig, as_pair
from .cross_decoder_memory import cross_block_bytes, cross_bridge_bytes, hidden_state_gradient_bytes
from .text_memory import text_block_bytes, text_config_of


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
class ModelSizes:
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


def stages_of(model: ModelSizes, config: MawsViTConfig, setting: Setting) -> list[Stage]:
    """In the order of the forward pass."""
    return _STAGES[setting.task](model, config, setting)


def kept_and_predicted(config: MawsViTConfig) -> tuple[int, int]:
    patches = config.grid_size[0] * config.grid_size[1]
    kept = num_kept_patches(patches, config.mask_ratio)
    return kept, num_predicted_patches(patches - kept, config.prediction_ratio)


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


def _label_stages(model: ModelSizes, config: MawsViTConfig, setting: Setting) -> list[Stage]:
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


def _mae_stages(model: ModelSizes, config: MawsViTConfig, setting: Setting) -> list[Stage]:
    """The kept patches through the encoder, all through the decoder, the predicted ones through its last block."""
    kept, predicted = kept_and_predicted(config)
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


def _decoder_stages(model: ModelSizes, config: MawsViTConfig, setting: Setting, parameters: int) -> list[Stage]:
    """From the encoder's last norm to the decoder's; `parameters` are those in no block."""
    kept, predicted = kept_and_predicted(config)
    tokens, narrow, depth = kept + 1 + predicted, config.decoder_hidden_size, config.decoder_num_hidden_layers
    bridge = setting.batch * (kept + 1) * config.hidden_size * (6 if setting.bf16 else 8)
    stages = [Stage("bridge", bridge, 0, setting.batch * tokens * narrow * 4, parameters, in_block=False)]
    heads = config.decoder_num_attention_heads
    for index in range(depth):
        queries = predicted if index == depth - 1 else tokens
        block = (tokens, queries, narrow, config.decoder_intermediate_size, heads, model.decoder_block)
        stages.append(_block(setting, f"decoder block {index}", *block))
    return stages


def _cross_decoder_stages(model: ModelSizes, config: MawsViTConfig, setting: Setting, parameters: int) -> list[Stage]:
    kept, predicted = kept_and_predicted(config)
    batch = setting.batch
    saved, work = cross_bridge_bytes(config, kept + 1, setting.bf16, setting.checkpointing)
    stages = [Stage("bridge", batch * saved, 0, batch * work, parameters, in_block=False)]
    first, rest, work = cross_block_bytes(config, kept + 1, predicted, setting.bf16)
    again = rest if setting.checkpointing else 0
    for index in range(config.decoder_num_hidden_layers):
        sizes = (batch * (first + rest - again), batch * again, batch * work)
        stages.append(Stage(f"decoder block {index}", *sizes, *model.decoder_block))
    return stages


def _text_stages(model: ModelSizes, config: MawsViTConfig, setting: Setting) -> list[Stage]:
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

__all__ = ["ModelSizes", "Setting", "Stage", "kept_and_predicted", "stages_of"]
