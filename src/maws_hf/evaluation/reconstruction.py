"""Is a masked autoencoder any good? Its loss beside those of predictions that need no understanding."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..losses import normalize_patches
from ..models.modeling_maws_mae import MawsMAEForPreTraining


@torch.no_grad()
def reconstruction_losses(model: MawsMAEForPreTraining, pixel_values: Tensor, noise: Tensor) -> dict[str, float]:
    """Four losses on the same images and masks, on every hidden patch whatever the `prediction_ratio`; dropout off.

    Args:
        pixel_values: `(B, C, H, W)`, uint8 or normalised float.
        noise: `(B, patches)`, draws the masks.

    Returns:
        `loss`: the model's. `patch_mean_loss`: of predicting every masked patch by the mean of all its values; with
        `norm_pix_loss` that is (values - 1) / values for a patch of more than one colour. `patch_colour_loss`: by its
        own mean colour, a much harder rival: it is told three numbers about the very pixels that are hidden.
        `shuffled_positions_loss`: the model's with the rows of both position tables permuted; a model that ignores
        where a patch lies would not notice.
    """
    was_training = model.training
    model.eval()
    try:
        outputs = model(pixel_values, noise=noise, prediction_ratio=1.0)
        with _shuffled_positions(model):
            shuffled = model(pixel_values, noise=noise, prediction_ratio=1.0).loss
    finally:
        model.train(was_training)
    targets = model.target_pixels(pixel_values, outputs.ids_mask)
    if model.config.norm_pix_loss:
        targets = normalize_patches(targets)
    colours = targets.unflatten(-1, (-1, model.config.num_channels)).mean(dim=-2, keepdim=True)
    colour_error = targets.unflatten(-1, (-1, model.config.num_channels)) - colours
    return {
        "loss": float(outputs.loss),
        "patch_mean_loss": float((targets - targets.mean(dim=-1, keepdim=True)).square().mean()),
        "patch_colour_loss": float(colour_error.square().mean()),
        "shuffled_positions_loss": float(shuffled),
    }


@contextmanager
def _shuffled_positions(model: MawsMAEForPreTraining) -> Iterator[None]:
    tables = (model.vit.embeddings.position_embeddings, model.decoder.position_embeddings)
    originals = [table.detach().clone() for table in tables]
    generator = torch.Generator().manual_seed(0)
    try:
        for table, original in zip(tables, originals, strict=True):
            order = torch.randperm(table.shape[1] - 1, generator=generator).to(table.device)
            table.data[:, 1:] = original[:, 1:][:, order]
        yield
    finally:
        for table, original in zip(tables, originals, strict=True):
            table.data.copy_(original)
