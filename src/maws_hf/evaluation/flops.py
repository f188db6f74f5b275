"""What a training step costs, in closed form, and what the machine could do at best.

One multiply-add counts as two operations. Counted are the matrix products (projections, attention, patch embedding,
head); element-wise work is not "useful" in this ledger.
"""

import time

import torch

from ..masking import num_kept_patches
from ..models.configuration_maws_vit import MawsViTConfig, as_pair


def block_flops(tokens: int, width: int, mlp_width: int, queries: int | None = None) -> int:
    """Forward operations of one transformer block of which `queries` (all by default) output tokens are computed."""
    queries = tokens if queries is None else queries
    projections = 2 * tokens * 2 * width * width + 2 * queries * 2 * width * width
    attention = 2 * 2 * queries * tokens * width
    mlp = 2 * queries * 2 * width * mlp_width
    return projections + attention + mlp


def mae_training_flops(config: MawsViTConfig) -> int:
    """Forward and backward operations of one image of `config.image_size` in MAE pre-pretraining.

    The backward pass costs twice the forward pass, except that no gradient flows to the pixels.
    """
    rows, columns = config.grid_size
    patches = rows * columns
    kept = num_kept_patches(patches, config.mask_ratio)
    masked = patches - kept
    patch_height, patch_width = as_pair(config.patch_size)
    pixels = patch_height * patch_width * config.num_channels
    width, decoder_width = config.hidden_size, config.decoder_hidden_size

    embedding = 2 * kept * pixels * width
    encoder = config.num_hidden_layers * block_flops(kept + 1, width, config.intermediate_size)
    bridge = 2 * (kept + 1) * width * decoder_width
    depth = config.decoder_num_hidden_layers
    decoder_mlp = config.decoder_intermediate_size
    decoder = max(depth - 1, 0) * block_flops(patches + 1, decoder_width, decoder_mlp)
    decoder += block_flops(patches + 1, decoder_width, decoder_mlp, queries=masked) if depth else 0
    head = 2 * masked * decoder_width * pixels
    return 2 * embedding + 3 * (encoder + bridge + decoder + head)


def measure_matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Operations a second of a large square matrix product, best of the trials that fit into `seconds`."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    best, deadline = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best
