"""The grid of patches that an image is cut into: its positions, and reading chosen patches. Pure functions.

Legend: B images, C channels, (H, W) pixels, K chosen patches, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_position_table(width: int, grid_size: tuple[int, int]) -> Tensor:
    """Fixed 2-D sine-cosine table of the original MAE (`util/pos_embed.py`), with a zero row for the class token.

    The first half of the width encodes the column, the second half the row; each half is sines, then cosines, of
    frequencies 10000^(-i / (width / 4)). Computed in float64.

    Args:
        width: D, a multiple of 4.
        grid_size: patches (rows, columns).

    Returns:
        `(1, 1 + rows * columns, D)` float32.
    """
    rows, columns = (torch.arange(side, dtype=torch.float64, device="cpu") for side in grid_size)
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width / 4))

    def encode(positions: Tensor) -> Tensor:
        angles = positions.flatten()[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    row_of_patch, column_of_patch = torch.meshgrid(rows, columns, indexing="ij")
    patches = torch.cat([encode(column_of_patch), encode(row_of_patch)], dim=1)
    return F.pad(patches, (0, 0, 1, 0)).float()[None]


def resample_position_table(table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Fits a position table to another grid: antialiased bicubic in float32, as timm's `resample_abs_pos_embed`.

    Args:
        table: `(1, 1 + old rows * old columns, D)`; the class token's row is kept as it is.

    Returns:
        `(1, 1 + new rows * new columns, D)` in the table's dtype; the table itself if the grids are equal.
    """
    if old_grid == new_grid:
        return table
    patches = table[:, 1:].float().unflatten(1, old_grid).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=new_grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def gather_patches(pixel_values: Tensor, ids: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Reads chosen patches straight from the image, in any dtype, without laying out the others.

    Args:
        pixel_values: `(B, C, H, W)`.
        ids: `(B, K)` patch indices in raster order.
        patch_size: pixels (height, width).

    Returns:
        `(B, K, patch height, patch width, C)`: the pixel order of the original MAE's `patchify`.
    """
    patch_height, patch_width = patch_size
    rows, columns = pixel_values.shape[2] // patch_height, pixel_values.shape[3] // patch_width
    patches = pixel_values.unflatten(3, (columns, patch_width)).unflatten(2, (rows, patch_height))
    patches = patches.permute(0, 2, 4, 3, 5, 1)  # B, rows, columns, patch height, patch width, C
    images = torch.arange(ids.shape[0], device=ids.device)[:, None]
    return patches[images, ids.div(columns, rounding_mode="floor"), ids.remainder(columns)]


__all__ = ["gather_patches", "resample_position_table", "sincos_position_table"]
