"""Two real processes over gloo give the loss and the gradients of one with all the pairs."""

from pathlib import Path

import pytest
import torch
from contrastive_probe import NO_DROPOUT, PAIRS
from launching import launch
from safetensors.torch import load_file
from tiny_lit import padded, random_captions, random_images, tiny_lit

PROBE = Path(__file__).with_name("contrastive_probe.py")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contrastive")
    launch(PROBE, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_two_ranks_equal_one_process_with_all_pairs(two_ranks: Path, chunks: int):
    model = tiny_lit(NO_DROPOUT).double().train()
    loss = model(**padded(random_captions(PAIRS)), pixel_values=random_images(PAIRS), return_loss=True).loss
    loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = load_file(two_ranks / f"chunks-{chunks}.safetensors")
    assert abs(found.pop("loss") - loss.detach()) <= 1e-12
    assert found.keys() == expected.keys()
    assert {"logit_scale", "visual_projection.weight", "text_projection.weight"} <= found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-14, msg=name)


@pytest.mark.slow
def test_the_loss_of_each_rank_alone_would_be_another(two_ranks: Path):
    model = tiny_lit(NO_DROPOUT).double()
    captions, images = random_captions(PAIRS), random_images(PAIRS)
    half = PAIRS // 2
    with torch.no_grad():
        alone = [
            model(**padded(captions[part]), pixel_values=images[part], return_loss=True).loss
            for part in (slice(half), slice(half, None))
        ]
    assert abs(load_file(two_ranks / "chunks-1.safetensors")["loss"] - sum(alone) / 2) > 0.1
