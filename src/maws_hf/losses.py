"""Training objectives, computed in float32 whatever the model's precision."""

import torch
import torch.nn.functional as F
from torch import Tensor


def normalize_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Each patch by the mean and unbiased variance of its own values, channels together (MAE, section 3).

    Args:
        patches: `(..., values)`.
        eps: added to the variance, as in the original MAE's `forward_loss`.
    """
    patches = patches.float()
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + eps).sqrt()


def masked_pixel_loss(predictions: Tensor, targets: Tensor, norm_pix: bool = True) -> Tensor:
    """Mean squared error on the masked patches (MAWS section 3; MAE `forward_loss`).

    Every sample hides equally many patches, so the mean over all values equals the original's mean over the pixels of
    a patch followed by the mean over the masked patches.

    Args:
        predictions: `(B, M, values)`, one row a masked patch.
        targets: `(B, M, values)`, the pixels of the same patches.
        norm_pix: compare with patches normalised by `normalize_patches`.

    Returns:
        A float32 scalar.
    """
    targets = normalize_patches(targets) if norm_pix else targets.float()
    return F.mse_loss(predictions.float(), targets)
