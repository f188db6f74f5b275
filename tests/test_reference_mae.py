"""The float64 reference is itself checked against the recorded numbers of the original (`golden/README.md`)."""

from pathlib import Path

import pytest
import torch
from reference_mae import reference_mae, resample_table, sincos_table
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def original():
    return load_file(GOLDEN / "mae_tiny.safetensors")


def weights_of(original):
    return {name.removeprefix("weight/"): value for name, value in original.items() if name.startswith("weight/")}


def run(original, weights, norm_pix):
    return reference_mae(
        weights,
        original["images"],
        original["noise"],
        patch_size=8,
        heads=4,
        decoder_heads=3,
        norm_pix=norm_pix,
    )


@pytest.mark.parametrize("kind", ["norm_pix", "plain"])
def test_the_reference_gives_the_original_loss_predictions_and_mask(original, kind):
    result = run(original, weights_of(original), norm_pix=kind == "norm_pix")
    assert abs(result["loss"].item() - original[f"loss/{kind}"].item()) <= 1e-6
    torch.testing.assert_close(result["pred"], original["pred"].double(), rtol=0, atol=2e-6)
    assert torch.equal(result["mask"], original["mask"].double())


@pytest.mark.parametrize("kind", ["norm_pix", "plain"])
def test_the_reference_gives_the_original_gradient_of_every_trainable_parameter(original, kind):
    weights = {name: value.double().requires_grad_() for name, value in weights_of(original).items()}
    run(original, weights, norm_pix=kind == "norm_pix")["loss"].backward()
    trainable = weights.keys() - {"pos_embed", "decoder_pos_embed"}
    assert {name for name in original if name.startswith(f"grad/{kind}/")} == {f"grad/{kind}/{n}" for n in trainable}
    for name in trainable:
        expected = original[f"grad/{kind}/{name}"].double()
        torch.testing.assert_close(weights[name].grad, expected, rtol=0, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("width", "side"), [(32, 4), (24, 3)])
def test_the_reference_position_table_is_the_original_one(original, width, side):
    expected = original[f"sincos/dim{width}_grid{side}"].double()
    torch.testing.assert_close(sincos_table(width, side, side)[0], expected, rtol=0, atol=6e-8)


@pytest.mark.parametrize("grid", [(6, 6), (3, 5)])
def test_the_reference_resampling_is_that_of_timm(grid):
    timm = load_file(GOLDEN / "timm_vit_tiny.safetensors")
    expected = timm[f"pos_embed/{grid[0]}x{grid[1]}"].double()
    resampled = resample_table(timm["weight/pos_embed"], (4, 4), grid)
    torch.testing.assert_close(resampled, expected, rtol=0, atol=1e-6)
