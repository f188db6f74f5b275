import pytest
import torch
from tiny import tiny_config

from maws_hf import MawsMAEForPreTraining
from maws_hf.models.patch_grid import resample_position_table


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> MawsMAEForPreTraining:
    torch.manual_seed(0)
    return MawsMAEForPreTraining(tiny_config())


def test_masks_differ_between_samples_and_hide_three_quarters(model, images):
    outputs = model(images)
    assert outputs.mask.sum(1).tolist() == [18, 18]
    assert not torch.equal(outputs.mask[0], outputs.mask[1])
    assert outputs.logits.shape == (2, 18, 8 * 8 * 3)
    assert outputs.ids_keep.shape == (2, 6)


def test_noise_generator_and_explicit_mask_choose_the_mask(model, images):
    noise = torch.rand(2, 24)
    by_noise = model(images, noise=noise)
    again = model(images, noise=noise)
    assert torch.equal(by_noise.loss, again.loss)
    by_mask = model(images, bool_masked_pos=by_noise.mask.bool())
    assert torch.equal(by_mask.mask, by_noise.mask)
    # The order of the tokens differs, the objective does not.
    assert by_mask.loss.item() == pytest.approx(by_noise.loss.item(), abs=1e-6)

    first, second, third = (model(images, generator=torch.Generator().manual_seed(seed)).mask for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_a_generator_leaves_the_global_one_alone(model, images):
    model.eval()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model(images, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["noise", "bool_masked_pos"])
def test_a_mask_of_the_wrong_shape_is_refused(name: str, model, images):
    with pytest.raises(ValueError, match=rf"{name} has shape \(2, 16\); expected .* \(2, 24\)"):
        model(images, **{name: torch.rand(2, 16)})


def test_every_trainable_parameter_gets_a_gradient(model, images):
    model(images).loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_positions_matter_to_untrained_predictions(model, images):
    # With zero position tables every masked patch of an image would get the same prediction.
    predictions = model(images).logits
    assert (predictions[:, 0] - predictions[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_any_decoder_depth(depth: int, images):
    model = MawsMAEForPreTraining(tiny_config(decoder_num_hidden_layers=depth))
    assert torch.isfinite(model(images).loss)


def test_mask_tokens_are_projected_once_for_all_images():
    torch.manual_seed(0)
    model = MawsMAEForPreTraining(tiny_config(decoder_num_hidden_layers=3)).double()
    decoder, shapes = model.decoder, []
    decoder.position_embeddings.normal_()  # the row of the class token begins as zeros
    for layer in decoder.layers:
        layer.attention.k_proj.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[:-1]))
    encoded = torch.randn(2, 1 + 4, model.config.hidden_size, dtype=torch.float64, requires_grad=True)
    ids = torch.stack([torch.randperm(16), torch.randperm(16)])
    ids_keep, ids_mask = ids[:, :4], ids[:, 4:]
    predictions = decoder(encoded, ids_keep, ids_mask, (4, 4))
    assert shapes == [(2 * 5 + 16,), (2, 17), (2, 17)]

    # As the original does it: every token of every image by itself.
    class_position, patch_positions = decoder.position_embeddings[0].split([1, 16])
    embedded, masked = decoder.embed(encoded), decoder.mask_token + patch_positions[ids_mask]
    tokens = [embedded[:, :1] + class_position, embedded[:, 1:] + patch_positions[ids_keep], masked]
    tokens = torch.cat(tokens, dim=1)
    for layer in decoder.layers:
        tokens = layer(tokens)
    expected = decoder.head(decoder.layernorm(tokens[:, 5:]))
    torch.testing.assert_close(predictions, expected, rtol=1e-12, atol=1e-12)
    trained, weights = [encoded, *decoder.parameters()], torch.randn_like(expected)
    found, true = (torch.autograd.grad(output, trained, weights) for output in (predictions, expected))
    torch.testing.assert_close(found, true, rtol=1e-10, atol=1e-12)


def test_reconstruct_keeps_visible_patches_and_returns_pictures(model, images):
    model.train()
    result = model.reconstruct(images, generator=torch.Generator().manual_seed(0))
    assert model.training
    assert torch.equal(result.original, images / 255)
    visible = (
        (1 - result.mask).view(2, 1, 4, 6).repeat_interleave(8, 2).repeat_interleave(8, 3).bool().expand(-1, 3, -1, -1)
    )
    for picture in (result.masked, result.reconstruction):
        assert picture.shape == images.shape
        assert 0 <= picture.min() <= picture.max() <= 1
        assert torch.equal(picture[visible], result.original[visible])
    assert not torch.equal(result.reconstruction[~visible], result.original[~visible])
    hidden = result.masked[~visible].view(2, 3, -1)
    assert torch.allclose(hidden, torch.tensor(model.config.image_mean)[None, :, None].expand_as(hidden))


@pytest.mark.parametrize("decoder_attention", ["self", "cross"])
def test_a_decoder_of_another_grid_reads_the_resampled_table(decoder_attention: str):
    torch.manual_seed(0)
    of_small, of_large = (
        MawsMAEForPreTraining(tiny_config(image_size=size, decoder_attention=decoder_attention)).decoder
        for size in (32, [48, 64])
    )
    table = of_small.position_embeddings.normal_()
    resampled = resample_position_table(table, (4, 4), (6, 8))
    of_large.load_state_dict({**of_small.state_dict(), "position_embeddings": resampled})
    ids = torch.stack([torch.randperm(48) for _ in range(2)])
    inputs = torch.randn(2, 13, 32), ids[:, :12], ids[:, 12:], (6, 8)
    torch.testing.assert_close(of_small(*inputs), of_large(*inputs))


def test_single_vectors_start_with_the_configured_deviation():
    torch.manual_seed(0)
    model = MawsMAEForPreTraining(tiny_config(hidden_size=512, decoder_hidden_size=480, initializer_range=0.05))
    for token in (model.vit.embeddings.cls_token, model.decoder.mask_token):
        assert token.std().item() == pytest.approx(0.05, rel=0.15)


def test_targets_of_a_bfloat16_model_are_float32(model, images):
    ids = torch.tensor([[0, 5], [9, 23]])
    expected = model.target_pixels(images, ids)
    targets = model.to(torch.bfloat16).target_pixels(images, ids)
    assert targets.dtype == torch.float32
    assert torch.equal(targets, expected)


def predict_perfectly(model: MawsMAEForPreTraining, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def perfect(encoded, ids_keep, ids_mask, grid):
        targets = model.target_pixels(pixels, ids_mask)
        if not model.config.norm_pix_loss:
            return targets
        return (targets - targets.mean(-1, keepdim=True)) / (targets.var(-1, keepdim=True) + 1e-6).sqrt()

    monkeypatch.setattr(model.decoder, "forward", perfect)


def test_a_nearly_flat_patch_gets_its_own_contrast_back(model, monkeypatch):
    pixels = 1e-3 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    predict_perfectly(model, pixels, monkeypatch)
    result = model.reconstruct(pixels)
    torch.testing.assert_close(result.reconstruction, result.original, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("as_float", [True, False])
def test_a_perfect_prediction_reconstructs_the_original(norm_pix_loss: bool, as_float: bool, images, monkeypatch):
    model = MawsMAEForPreTraining(tiny_config(norm_pix_loss=norm_pix_loss))
    pixels = model.vit.embeddings.normalize(images, channel_dim=1) if as_float else images
    predict_perfectly(model, pixels, monkeypatch)
    result = model.reconstruct(pixels)
    assert result.loss.item() < 1e-10
    assert torch.allclose(result.reconstruction, images / 255, atol=1e-5)


def test_reconstruct_leaves_each_module_in_its_mode(model, images):
    model.train()
    model.vit.eval()
    model.config.return_dict = False
    assert model.reconstruct(images).loss.isfinite()
    assert model.training
    assert model.decoder.layers[0].training
    assert not any(module.training for module in model.vit.modules())


@pytest.mark.parametrize("attention", ["self", "cross"])
def test_another_size_is_stored_as_images_of_it_were_met_before(images, tmp_path, attention):
    model = MawsMAEForPreTraining(tiny_config(decoder_attention=attention))
    noise = torch.rand(2, 24)
    before, features = model(images, noise=noise), model.vit(images).pooler_output
    model.set_image_size((32, 48))
    after = model(images, noise=noise)
    assert torch.equal(after.loss, before.loss)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(model.vit(images).pooler_output, features)
    assert not model.vit.embeddings.position_embeddings.requires_grad

    model.save_pretrained(tmp_path)
    again = MawsMAEForPreTraining.from_pretrained(tmp_path)
    assert again.config.image_size == (32, 48)
    assert again.decoder.position_embeddings.shape == (1, 25, again.config.decoder_hidden_size)
    assert torch.equal(again(images, noise=noise).loss, before.loss)


def test_a_size_that_is_no_multiple_of_the_patch_leaves_the_model_as_it_was(model):
    with pytest.raises(ValueError, match="multiples of"):
        model.set_image_size(50)
    assert model.config.image_size == 32
    assert model.decoder.position_embeddings.shape == (1, 17, 24)
