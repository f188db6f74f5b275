"""Which patches the encoder sees: noise or an explicit mask -> kept and masked patch indices.

Legend: B images, L patches an image, K kept, M = L - K masked, R of them predicted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def num_kept_patches(num_patches: int, mask_ratio: float) -> int:
    """K for L patches: `int(L * (1 - mask_ratio))`, truncated as in the original MAE (`models_mae.py`).

    Raises:
        ValueError: if that leaves nothing to see or nothing to predict.
    """
    kept = int(num_patches * (1 - mask_ratio))
    if not 0 < kept < num_patches:
        raise ValueError(
            f"mask_ratio={mask_ratio} keeps {kept} of {num_patches} patches; at least one must be kept and one "
            "masked: use a larger image, a smaller patch_size or another mask_ratio"
        )
    return kept


def num_predicted_patches(num_masked: int, prediction_ratio: float) -> int:
    """R for M hidden patches: the nearest whole number to `M * prediction_ratio`, at least one."""
    return max(1, round(num_masked * prediction_ratio))


def draw_noise(shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Uniform in [0, 1), float32, drawn on the generator's device; without one by torch's own there."""
    if generator is None:  # compilers take no generator, not even None, with a shape that changes
        return torch.rand(shape, device=device)
    return torch.rand(shape, generator=generator, device=generator.device).to(device)


def split_by_noise(noise: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
    """Keeps the K patches with the smallest noise; one mask a sample.

    Args:
        noise: `(B, L)`, any real numbers.
        num_kept: K.

    Returns:
        `ids_keep` `(B, K)` and `ids_mask` `(B, M)`: patch indices in ascending order of their noise. This shuffled
        order is the order of the encoder's tokens and of the decoder's predictions.
    """
    ids_shuffle = noise.argsort(dim=1)
    return ids_shuffle[:, :num_kept], ids_shuffle[:, num_kept:]


def split_by_mask(bool_masked_pos: Tensor) -> tuple[Tensor, Tensor]:
    """Keeps the patches where an explicit mask is false (0), each group in raster order.

    Args:
        bool_masked_pos: `(B, L)`, true (1) where a patch is hidden; equally many in every sample.

    Returns:
        `ids_keep` `(B, K)` and `ids_mask` `(B, M)`.

    Raises:
        ValueError: if samples hide different numbers of patches, or all, or none.
    """
    masked = bool_masked_pos.to(torch.bool)
    counts = masked.sum(dim=1)
    num_masked = int(counts[0])
    if not bool((counts == num_masked).all()):
        raise ValueError(
            f"bool_masked_pos hides between {int(counts.min())} and {int(counts.max())} patches a sample; it must "
            "hide equally many in every sample"
        )
    num_patches = masked.shape[1]
    if not 0 < num_masked < num_patches:
        raise ValueError(
            f"bool_masked_pos hides {num_masked} of {num_patches} patches; at least one must be kept and one masked"
        )
    ids = masked.to(torch.uint8).argsort(dim=1, stable=True)
    return ids[:, : num_patches - num_masked], ids[:, num_patches - num_masked :]


def shuffle_ids(ids: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """`(B, M)` indices, each row in a random order of its own, drawn on the generator's device."""
    return ids.gather(1, draw_noise(ids.shape, ids.device, generator).argsort(dim=1))


def mask_from_ids(ids_mask: Tensor, num_patches: int) -> Tensor:
    """`(B, M)` indices -> `(B, L)` float mask in raster order, 1 where a patch is hidden."""
    mask = torch.zeros(ids_mask.shape[0], num_patches, device=ids_mask.device)
    return mask.scatter(1, ids_mask, 1.0)  # in place it would not pass torch.func's vmap
