"""Adapters on few images: the encoder stays, the seed decides, and what can be learnt is learnt."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_config
from torch import Tensor

from maws_hf import MawsViTForImageClassification
from maws_hf.evaluation.features import model_digest
from maws_hf.evaluation.linear_heads import LinearHead
from maws_hf.training.few_shot_adapters import RECIPES, predict, train_adapter

HEAD = LinearHead(torch.zeros(2, 32), torch.zeros(2))


def classifier() -> MawsViTForImageClassification:
    torch.manual_seed(0)
    return MawsViTForImageClassification(tiny_config(num_labels=2, drop_path_rate=0.5)).eval()


def stripes(count: int) -> tuple[Tensor, Tensor]:
    """Upright or lying stripes, which stay what they are when mirrored."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 2
    pattern = (torch.arange(32) // 4 % 2 * 200)[None, :].expand(32, 32)
    pictures = torch.stack([pattern if label else pattern.T for label in labels])[:, None].expand(-1, 3, -1, -1)
    return (pictures + torch.randint(0, 50, pictures.shape, generator=generator)).to(torch.uint8), labels


@pytest.mark.parametrize("method", RECIPES)
def test_a_pattern_is_learnt_and_the_encoder_stays(method):
    base = classifier()
    digest = model_digest(base.vit)
    pixels, labels = stripes(12)
    recipe = replace(RECIPES[method], epochs=60)
    adapted = train_adapter(base, HEAD, pixels, labels, recipe, seed=0)
    new_pixels, new_labels = stripes(20)
    assert (predict(adapted, new_pixels).argmax(dim=1) == new_labels).all()
    assert not adapted.training
    adapted.unload()
    assert model_digest(base.vit) == digest


@pytest.mark.parametrize("method", RECIPES)
def test_the_seed_decides_everything(method):
    pixels, labels = stripes(6)
    recipe = replace(RECIPES[method], epochs=2)
    first, again, other = (
        predict(train_adapter(classifier(), HEAD, pixels, labels, recipe, seed=seed), pixels) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_starts_from_the_given_head():
    pixels, labels = stripes(4)
    head = LinearHead(torch.randn(2, 32), torch.randn(2))
    base = classifier()
    recipe = replace(RECIPES["adaptformer"], epochs=1, learning_rate=0.0)
    adapted = train_adapter(base, head, pixels, labels, recipe, seed=0)
    with torch.inference_mode():
        expected = head.scores(classifier().vit(pixels).pooler_output)
    torch.testing.assert_close(predict(adapted, pixels), expected, rtol=0, atol=1e-5)
