import pytest
import torch
from tiny import tiny_config

from maws_hf import MawsMAEForPreTraining
from maws_hf.evaluation.reconstruction import reconstruction_losses


@pytest.fixture(scope="module")
def trained() -> tuple[MawsMAEForPreTraining, torch.Tensor]:
    """A model that has learned one thing: where on a fixed picture each patch lies."""
    torch.manual_seed(0)
    model = MawsMAEForPreTraining(tiny_config(image_size=16, patch_size=4))
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8).repeat(16, 1, 1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        model(images).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, images


def test_a_trained_model_beats_the_patch_mean_and_needs_its_positions(trained):
    model, images = trained
    tables = [model.vit.embeddings.position_embeddings.clone(), model.decoder.position_embeddings.clone()]
    losses = reconstruction_losses(model, images, torch.rand(16, 16))
    assert losses["loss"] < 0.5 * losses["patch_mean_loss"]
    assert losses["shuffled_positions_loss"] > 2 * losses["loss"]
    assert losses["patch_mean_loss"] == pytest.approx(47 / 48, abs=1e-3)  # unbiased variance of 48 values
    assert 0.8 < losses["patch_colour_loss"] < losses["patch_mean_loss"]  # noise: a patch's colour says little
    assert torch.equal(model.vit.embeddings.position_embeddings, tables[0])
    assert torch.equal(model.decoder.position_embeddings, tables[1])


def test_the_own_colour_of_flat_patches_explains_them(trained):
    model, _ = trained
    flat = torch.tensor([200, 30, 90], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    assert reconstruction_losses(model, flat, torch.rand(2, 16))["patch_colour_loss"] < 1e-6


def test_the_patch_mean_of_plain_pixels_is_their_variance(trained):
    model, images = trained
    model.config.norm_pix_loss = False
    try:
        losses = reconstruction_losses(model, images, torch.rand(16, 16))
    finally:
        model.config.norm_pix_loss = True
    pixels = model.vit.embeddings.normalize(images[:1], channel_dim=1).unfold(2, 4, 4).unfold(3, 4, 4)
    variance = pixels.permute(0, 2, 3, 1, 4, 5).flatten(3).var(-1, correction=0).mean()
    assert losses["patch_mean_loss"] == pytest.approx(variance.item(), rel=0.15)  # a random three quarters of it


def test_a_model_that_predicts_a_part_is_judged_on_every_hidden_patch(trained, monkeypatch):
    model, images = trained
    noise = torch.rand(16, 16)
    expected = reconstruction_losses(model, images, noise)
    monkeypatch.setattr(model.config, "prediction_ratio", 0.25)
    assert reconstruction_losses(model, images, noise) == pytest.approx(expected)


def test_dropout_is_off_meanwhile():
    torch.manual_seed(0)
    model = MawsMAEForPreTraining(tiny_config(hidden_dropout_prob=0.5)).train()
    images, noise = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), torch.rand(2, 16)
    losses = reconstruction_losses(model, images, noise)
    assert model.training
    assert losses == reconstruction_losses(model.eval(), images, noise)


def test_the_positions_of_patches_are_shuffled_and_that_of_the_class_token_stays(trained):
    model, images = trained
    tables = [model.vit.embeddings.position_embeddings, model.decoder.position_embeddings]
    seen = []
    hook = model.register_forward_pre_hook(lambda *_: seen.append([table.detach().clone() for table in tables]))
    try:
        reconstruction_losses(model, images, torch.rand(16, 16))
    finally:
        hook.remove()
    for whole, shuffled in zip(*seen, strict=True):
        assert torch.equal(shuffled[:, 0], whole[:, 0])
        assert not torch.equal(shuffled, whole)
        assert sorted(shuffled[0].tolist()) == sorted(whole[0].tolist())
