import numpy as np
import torch

from maws_hf.losses import masked_pixel_loss, normalize_patches


def test_loss_equals_the_closed_form_in_float64():
    rng = np.random.default_rng(0)
    predictions, targets = rng.normal(size=(2, 3, 5, 12))
    normalized = (targets - targets.mean(-1, keepdims=True)) / np.sqrt(targets.var(-1, ddof=1, keepdims=True) + 1e-6)
    for norm_pix, wanted in ((True, normalized), (False, targets)):
        expected = ((predictions - wanted) ** 2).mean(-1).mean()
        loss = masked_pixel_loss(torch.tensor(predictions), torch.tensor(targets), norm_pix)
        assert abs(loss.item() - expected) < 1e-6


def test_bfloat16_predictions_are_compared_in_float32():
    predictions = torch.full((1, 1, 4), 1.0078125, dtype=torch.bfloat16)  # exact in bfloat16, its square is not
    loss = masked_pixel_loss(predictions, torch.zeros(1, 1, 4), norm_pix=False)
    assert loss.dtype == torch.float32
    assert loss.item() == 1.0078125**2


def test_a_flat_patch_normalizes_to_zero_not_to_infinity():
    assert torch.equal(normalize_patches(torch.full((1, 1, 12), 0.7)), torch.zeros(1, 1, 12))
