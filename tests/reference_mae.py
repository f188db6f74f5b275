"""A second, plain implementation of the masked autoencoder in float64, to compare the fast one with.

Nothing is shared with the package and nothing is optimised: every patch is embedded, hidden ones are dropped after
that, every token is decoded, and the loss is picked out at the end. Weights come as a dict in the names of the
original (`facebookresearch/mae`, `models_mae.py`); results are differentiable with respect to them.
"""

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def sincos_table(width: int, rows: int, columns: int) -> Tensor:
    """Fixed positions `(1, 1 + rows * columns, width)`, one number at a time; the class token's row is zero."""
    quarter = width // 4
    table = [[0.0] * width]
    for row in range(rows):
        for column in range(columns):
            entry = []
            for coordinate in (column, row):
                angles = [coordinate / 10000 ** (index / quarter) for index in range(quarter)]
                entry += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            table.append(entry)
    return torch.tensor([table], dtype=torch.float64)


def _resize_matrix(old: int, new: int) -> Tensor:
    """`(new, old)` weights of antialiased bicubic resizing along one axis (Keys' kernel with a = -0.5)."""

    def cubic(x: float) -> float:
        x = abs(x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    step = old / new
    stretch = max(step, 1.0)  # when shrinking, the kernel widens to cover every old sample
    matrix = []
    for index in range(new):
        centre = (index + 0.5) * step
        row = [cubic((sample + 0.5 - centre) / stretch) for sample in range(old)]
        matrix.append([value / sum(row) for value in row])
    return torch.tensor(matrix, dtype=torch.float64)


def resample_table(table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """A position table `(1, 1 + rows * columns, D)` on another grid; the class token's row stays."""
    table = table.double()
    patches = table[0, 1:].reshape(*old_grid, -1)
    by_row, by_column = (_resize_matrix(old, new) for old, new in zip(old_grid, new_grid, strict=True))
    patches = torch.einsum("ir,jc,rcd->ijd", by_row, by_column, patches)
    return torch.cat([table[:, :1], patches.reshape(1, new_grid[0] * new_grid[1], -1)], dim=1)


def _norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred**2).mean(dim=-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _block(weights: Weights, name: str, x: Tensor, heads: int, eps: float) -> Tensor:
    """One pre-norm transformer block on the tokens `(T, D)` of one image."""
    query, key, value = _linear(weights, f"{name}.attn.qkv", _norm(weights, f"{name}.norm1", x, eps)).chunk(3, dim=1)
    width = x.shape[1] // heads
    attended = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].T / math.sqrt(width)
        weight = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
        attended.append(weight @ value[:, part])
    x = x + _linear(weights, f"{name}.attn.proj", torch.cat(attended, dim=1))
    hidden = _linear(weights, f"{name}.mlp.fc1", _norm(weights, f"{name}.norm2", x, eps))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + _linear(weights, f"{name}.mlp.fc2", hidden)


def _blocks(weights: Weights, prefix: str, x: Tensor, heads: int, eps: float) -> Tensor:
    depth = len({name.split(".")[1] for name in weights if name.startswith(f"{prefix}.")})
    for index in range(depth):
        x = _block(weights, f"{prefix}.{index}", x, heads, eps)
    return x


def _patches(image: Tensor, patch_size: tuple[int, int]) -> list[Tensor]:
    """Patches `(C, patch height, patch width)` of one image, row by row."""
    height, width = patch_size
    return [
        image[:, top : top + height, left : left + width]
        for top in range(0, image.shape[1], height)
        for left in range(0, image.shape[2], width)
    ]


def _is_kept(noise: Tensor, mask_ratio: float) -> list[bool]:
    """The patches with the `int(L * (1 - mask_ratio))` smallest values."""
    kept = int(len(noise) * (1 - mask_ratio))
    return [sum(other < own for other in noise.tolist()) < kept for own in noise.tolist()]


def reference_mae(
    weights: Weights,
    images: Tensor,
    noise: Tensor,
    *,
    patch_size: int | tuple[int, int],
    heads: int,
    decoder_heads: int,
    norm_pix: bool,
    mask_ratio: float = 0.75,
    eps: float = 1e-6,
) -> dict[str, Tensor]:
    """The masked autoencoder's loss and what leads to it.

    Args:
        weights: original names; `pos_embed` and `decoder_pos_embed` already on the images' grid.
        images: `(B, C, H, W)`, normalised.
        noise: `(B, L)`, no two values equal.

    Returns:
        `loss` (), `pred` `(B, L, patch height * patch width * C)` and `mask` `(B, L)` (1 = hidden), in raster order.
    """
    patch_size = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
    weights = {name: weight.double() for name, weight in weights.items()}
    filters = weights["patch_embed.proj.weight"]
    predictions, losses, masks = [], [], []
    for image, image_noise in zip(images.double(), noise.double(), strict=True):
        patches = _patches(image, patch_size)
        tokens = torch.stack([(filters * patch).sum(dim=(1, 2, 3)) for patch in patches])
        tokens = tokens + weights["patch_embed.proj.bias"] + weights["pos_embed"][0, 1:]
        kept = _is_kept(image_noise, mask_ratio)
        class_token = (weights["cls_token"] + weights["pos_embed"][:, :1])[0]
        visible = torch.cat([class_token, tokens[torch.tensor(kept)]])
        encoded = _norm(weights, "norm", _blocks(weights, "blocks", visible, heads, eps), eps)

        encoded = _linear(weights, "decoder_embed", encoded)
        visible_tokens = iter(encoded[1:])
        sequence = [encoded[0]] + [next(visible_tokens) if keep else weights["mask_token"][0, 0] for keep in kept]
        decoded = torch.stack(sequence) + weights["decoder_pos_embed"][0]
        decoded = _blocks(weights, "decoder_blocks", decoded, decoder_heads, eps)
        prediction = _linear(weights, "decoder_pred", _norm(weights, "decoder_norm", decoded, eps))[1:]

        for patch, guess, keep in zip(patches, prediction, kept, strict=True):
            target = patch.permute(1, 2, 0).flatten()
            if norm_pix:
                centred = target - target.mean()
                variance = (centred**2).sum() / (len(target) - 1)
                target = centred / (variance + 1e-6).sqrt()
            if not keep:
                losses.append(((guess - target) ** 2).mean())
        predictions.append(prediction)
        masks.append([0.0 if keep else 1.0 for keep in kept])
    return {
        "loss": torch.stack(losses).mean(),
        "pred": torch.stack(predictions),
        "mask": torch.tensor(masks, dtype=torch.float64),
    }
