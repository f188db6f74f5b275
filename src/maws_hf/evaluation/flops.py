"""The ledger of training operations, in closed form (the x axis of the paper's Figure 5), and a machine's best rate.

One multiply-add counts as two operations. Counted are the matrix products (projections, attention, patch embedding,
head); element-wise work is not "useful" in this ledger.
"""

import time

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig

from ..kernels.linear import product, suits_onednn
from ..masking import num_kept_patches, num_predicted_patches
from ..models.configuration_maws_vit import MawsViTConfig, as_pair


def block_flops(tokens: int, width: int, mlp_width: int, queries: int | None = None) -> int:
    """Forward operations of one transformer block of which `queries` (all by default) output tokens are computed."""
    queries = tokens if queries is None else queries
    projections = 2 * tokens * 2 * width * width + 2 * queries * 2 * width * width
    attention = 2 * 2 * queries * tokens * width
    mlp = 2 * queries * 2 * width * mlp_width
    return projections + attention + mlp


def cross_block_flops(queries: int, tokens: int, width: int, token_width: int, mlp_width: int) -> int:
    """Forward operations of one block of CrossMAE's decoder: `queries` that attend to `tokens` of another width."""
    projections = 2 * queries * 2 * width * width + 2 * tokens * 2 * token_width * width
    attention = 2 * 2 * queries * tokens * width
    mlp = 2 * queries * 2 * width * mlp_width
    return projections + attention + mlp


def encoder_flops(config: MawsViTConfig, *, class_token_only: bool = False) -> int:
    """Forward operations of the encoder on one image of `config.image_size`, without the patch embedding."""
    tokens, depth = config.grid_size[0] * config.grid_size[1] + 1, config.num_hidden_layers
    block = (tokens, config.hidden_size, config.intermediate_size)
    last = block_flops(*block, queries=1 if class_token_only else None)
    return (depth - 1) * block_flops(*block) + last if depth else 0


def embedding_flops(config: MawsViTConfig, patches: int) -> int:
    """Forward operations of embedding so many patches; no gradient flows on to the pixels, so training costs twice."""
    patch_height, patch_width = as_pair(config.patch_size)
    return 2 * patches * patch_height * patch_width * config.num_channels * config.hidden_size


def mae_training_flops(config: MawsViTConfig) -> int:
    """Forward and backward operations of one image of `config.image_size` in MAE pre-pretraining.

    The backward pass costs twice the forward pass, except that no gradient flows to the pixels. Of the config's
    `prediction_ratio` and `decoder_attention`, what they save is saved here too. Not so what the images of a batch
    share, query, key and value of the mask tokens in the first decoder block: of many 1.2 % for ViT-B.
    """
    rows, columns = config.grid_size
    kept = num_kept_patches(rows * columns, config.mask_ratio)
    predicted = num_predicted_patches(rows * columns - kept, config.prediction_ratio)
    encoder = config.num_hidden_layers * block_flops(kept + 1, config.hidden_size, config.intermediate_size)
    decoder = (_cross_decoder_flops if config.decoder_attention == "cross" else _decoder_flops)(
        config, kept, predicted
    )
    patch_height, patch_width = as_pair(config.patch_size)
    head = 2 * predicted * config.decoder_hidden_size * patch_height * patch_width * config.num_channels
    return 2 * embedding_flops(config, kept) + 3 * (encoder + decoder + head)


def _decoder_flops(config: MawsViTConfig, kept: int, predicted: int) -> int:
    width, depth = config.decoder_hidden_size, config.decoder_num_hidden_layers
    block = (kept + 1 + predicted, width, config.decoder_intermediate_size)
    blocks = (depth - 1) * block_flops(*block) + block_flops(*block, queries=predicted) if depth else 0
    return 2 * (kept + 1) * config.hidden_size * width + blocks


def _cross_decoder_flops(config: MawsViTConfig, kept: int, predicted: int) -> int:
    width, depth, tokens = config.decoder_hidden_size, config.decoder_num_hidden_layers, kept + 1
    mixtures = 0
    if config.decoder_inter_block_attention:
        mixtures = 2 * depth * (config.num_hidden_layers + 1) * tokens * config.hidden_size
    block = cross_block_flops(predicted, tokens, width, config.hidden_size, config.decoder_intermediate_size)
    return mixtures + depth * block


def wsp_training_flops(config: MawsViTConfig, num_labels: int | None = None) -> int:
    """Forward and backward operations of one image of `config.image_size` in weakly supervised pretraining.

    All patches, the last block for the class token only, one linear layer to `num_labels` classes (the config's).
    """
    patches = config.grid_size[0] * config.grid_size[1]
    head = 2 * config.hidden_size * (config.num_labels if num_labels is None else num_labels)
    return 2 * embedding_flops(config, patches) + 3 * (encoder_flops(config, class_token_only=True) + head)


def image_tower_flops(config: MawsViTConfig) -> int:
    """Forward operations of the class token's feature of one image of `config.image_size`."""
    patches = config.grid_size[0] * config.grid_size[1]
    return embedding_flops(config, patches) + encoder_flops(config, class_token_only=True)


def lit_training_flops(
    vision_config: MawsViTConfig,
    text_config: PreTrainedConfig,
    *,
    text_tokens: int,
    projection_dim: int,
    cached_features: bool = False,
) -> int:
    """Forward and backward operations of one image-caption pair in LiT: the image tower is locked, the text tower not.

    The image tower runs forward only, and nothing of it is counted twice; its projection is trained, and no gradient
    flows on from it. Looking up word embeddings is no matrix product. The similarities of the pairs of a batch are
    left out: for ViT-B and XLM-R base in batches of 32,768 pairs of 18 tokens 0.7 % of the rest, 3 % with cached
    features; less in larger models and for longer captions.

    Args:
        text_config: with `hidden_size`, `num_hidden_layers` and `intermediate_size`, as XLM-RoBERTa's.
        text_tokens: of the caption, padding included where it is computed.
        projection_dim: of the common space.
        cached_features: the image tower has run before, and costs nothing here.
    """
    image = 0 if cached_features else image_tower_flops(vision_config)
    image_projection = 2 * vision_config.hidden_size * projection_dim
    text = text_config.num_hidden_layers * block_flops(
        text_tokens, text_config.hidden_size, text_config.intermediate_size
    )
    text_projection = 2 * text_config.hidden_size * projection_dim
    return image + 2 * image_projection + 3 * (text + text_projection)


def measure_matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Operations a second of a large square matrix product as the models' layers compute it, best of the trials that
    fit into `seconds`."""
    side = 8192 if device.type == "cuda" else 1024
    # Random, as a GPU needs less power for equal numbers and then runs faster; drawn without touching anybody's seed.
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, device=device, dtype=dtype, generator=generator) for _ in range(2))
    multiply = product if suits_onednn(left, right) else F.linear
    best, deadline = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        multiply(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best
