"""Objectives that are not the paper's: part of the hidden patches, and CrossMAE's decoder."""

import pytest
import torch
from reference_cross_mae import decode_cross, decode_self
from tiny import tiny_config

from maws_hf import MawsMAEForPreTraining
from maws_hf.losses import masked_pixel_loss
from maws_hf.masking import num_kept_patches, split_by_noise

CROSS = {"decoder_attention": "cross"}
INTER_BLOCK = {"decoder_attention": "cross", "decoder_inter_block_attention": True}
PARTLY = {"prediction_ratio": 0.4}
ARMS = [PARTLY, CROSS, {**CROSS, **PARTLY}, INTER_BLOCK, {**INTER_BLOCK, **PARTLY}]


def arm_name(fields: dict) -> str:
    return "-".join(f"{name.removeprefix('decoder_')}={value}" for name, value in fields.items())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.rand(2, 24, generator=torch.Generator().manual_seed(1))


def build(**fields) -> MawsMAEForPreTraining:
    """Every weight random, so that no term of a formula is 0 or 1."""
    torch.manual_seed(0)
    model = MawsMAEForPreTraining(tiny_config(image_size=(32, 48), **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


# ---------------------------------------------------------------- what is computed


@pytest.mark.parametrize("fields", ARMS, ids=arm_name)
def test_predictions_and_gradients_equal_a_plain_float64_decoder(fields: dict, images, noise):
    model = build(**fields).double()
    outputs = model(images, noise=noise)
    kept, hidden = split_by_noise(noise, 6)
    ids = hidden[:, : outputs.logits.shape[1]]
    encoded = model.vit(images, ids_keep=kept, output_hidden_states=True)
    weights = {**dict(model.decoder.named_parameters()), **dict(model.decoder.named_buffers())}
    rows = []
    for image in range(2):
        tokens = encoded.last_hidden_state[image]
        if fields.get("decoder_attention") != "cross":
            rows.append(decode_self(weights, tokens, kept[image], ids[image], heads=3, depth=2))
        elif "feature_weights" in weights:
            layers = [state[image] for state in encoded.hidden_states]
            rows.append(decode_cross(weights, layers, ids[image], heads=3, depth=2))
        else:
            rows.append(decode_cross(weights, [tokens], ids[image], heads=3, depth=2))
    expected = torch.stack(rows)
    torch.testing.assert_close(outputs.logits, expected, rtol=0, atol=1e-10)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours = torch.autograd.grad((outputs.logits * probe).sum(), trained)
    theirs = torch.autograd.grad((expected * probe).sum(), trained)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("given_as", ["noise", "mask"])
def test_to_predict_everything_is_what_it_was_bit_for_bit(given_as: str, images, noise):
    model = build()
    kept, hidden = split_by_noise(noise, num_kept_patches(24, 0.75))
    if given_as == "mask":
        kept, hidden = kept.sort().values, hidden.sort().values
    predictions = model.decoder(model.vit(images, ids_keep=kept).last_hidden_state, kept, hidden, (4, 6))
    expected = masked_pixel_loss(predictions, model.target_pixels(images, hidden))
    mask = torch.zeros(2, 24, dtype=torch.bool).scatter_(1, hidden, True)
    state = torch.get_rng_state()
    outputs = model(images, noise=noise) if given_as == "noise" else model(images, bool_masked_pos=mask)
    assert torch.equal(torch.get_rng_state(), state), "a random number was drawn"
    assert torch.equal(outputs.loss, expected)
    assert torch.equal(outputs.logits, predictions)
    assert torch.equal(outputs.ids_predicted, outputs.ids_mask)


@pytest.mark.parametrize("fields", [CROSS, INTER_BLOCK], ids=arm_name)
def test_a_patch_is_read_out_whatever_else_is_predicted(fields: dict, images, noise):
    model = build(**fields)
    whole = model(images, noise=noise)
    part = model(images, noise=noise, prediction_ratio=0.4)
    assert part.logits.shape[1] == 7
    torch.testing.assert_close(part.logits, whole.logits[:, :7], rtol=0, atol=1e-6)


def test_in_a_decoder_of_self_attention_it_is_not(images, noise):
    model = build()
    whole = model(images, noise=noise).logits[:, :7]
    assert (model(images, noise=noise, prediction_ratio=0.4).logits - whole).abs().max() > 1e-3


@pytest.mark.parametrize("fields", [CROSS, INTER_BLOCK], ids=arm_name)
def test_attention_backends_agree(fields: dict, images, noise):
    model = build(**fields)
    losses = {}
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        assert model.decoder.layers[0].cross_attention.config._attn_implementation == backend
        losses[backend] = model(images, noise=noise).loss
    torch.testing.assert_close(losses["eager"], losses["sdpa"], rtol=1e-6, atol=0)


# ---------------------------------------------------------------- what is predicted


def test_the_mask_says_what_was_hidden_and_the_ids_what_was_predicted(images, noise):
    whole, part = build()(images, noise=noise), build(**PARTLY)(images, noise=noise)
    assert torch.equal(part.mask, whole.mask)
    assert torch.equal(part.ids_mask, whole.ids_mask)
    assert torch.equal(part.ids_keep, whole.ids_keep)
    assert part.ids_predicted.shape == (2, 7)  # 0.4 of 18 is 7.2
    assert part.logits.shape == (2, 7, 192)
    assert part.mask.gather(1, part.ids_predicted).all()
    model = build(**PARTLY)
    targets = model.target_pixels(images, part.ids_predicted)
    assert torch.equal(part.loss, masked_pixel_loss(part.logits, targets))


def test_of_an_explicit_mask_each_sample_draws_its_own_part_by_the_generators_rules(images):
    model = build(**PARTLY).eval()
    mask = torch.arange(24).expand(2, 24) >= 6
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, again, other = (
        model(images, bool_masked_pos=mask, generator=torch.Generator().manual_seed(seed)).ids_predicted
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert first.sort().values.tolist() != other.sort().values.tolist()
    assert first[0].sort().values.tolist() != first[1].sort().values.tolist()
    model(images, bool_masked_pos=mask)
    assert not torch.equal(torch.get_rng_state(), state), "without one, torch's own generator draws"


@pytest.mark.parametrize("explicit", [False, True])
def test_every_hidden_patch_is_predicted_equally_often(explicit: bool):
    model = MawsMAEForPreTraining(tiny_config(prediction_ratio=0.5, num_hidden_layers=0, decoder_num_hidden_layers=0))
    images = torch.zeros(4000, 3, 32, 32, dtype=torch.uint8)
    mask = (torch.arange(16) >= 4).expand(4000, 16) if explicit else None
    outputs = model(images, bool_masked_pos=mask, generator=torch.Generator().manual_seed(0))
    hidden = outputs.mask.sum(0)
    predicted = torch.zeros(4000, 16).scatter_(1, outputs.ids_predicted, 1.0).sum(0)
    rates = predicted[hidden > 0] / hidden[hidden > 0]
    assert (rates - 0.5).abs().max() < 5 * (0.25 / 3000) ** 0.5
    assert outputs.ids_predicted.shape == (4000, 6)


def test_at_least_one_patch_is_predicted(images):
    assert build(prediction_ratio=0.001)(images).logits.shape[1] == 1


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5])
def test_a_share_that_is_none_is_refused(ratio: float, images):
    with pytest.raises(ValueError, match=f"prediction_ratio={ratio} is not possible"):
        build()(images, prediction_ratio=ratio)
    with pytest.raises(ValueError, match=f"prediction_ratio={ratio} is not possible"):
        tiny_config(prediction_ratio=ratio)


@pytest.mark.parametrize("fields", [{**CROSS, **PARTLY}, PARTLY], ids=arm_name)
def test_a_reconstruction_shows_everything_hidden(fields: dict, images, noise):
    model = build(**fields)
    result = model.reconstruct(images, noise=noise)
    hidden = result.mask.view(2, 1, 4, 6).repeat_interleave(8, 2).repeat_interleave(8, 3).bool().expand(-1, 3, -1, -1)
    assert result.mask.sum(1).tolist() == [18, 18]
    unpainted = (result.reconstruction == result.masked)[hidden]  # of 18 patches, 11 would have stayed grey
    assert unpainted.float().mean() < 0.2
    torch.testing.assert_close(result.loss, model.eval()(images, noise=noise, prediction_ratio=1.0).loss)


# ---------------------------------------------------------------- training, saving


@pytest.mark.parametrize("fields", ARMS, ids=arm_name)
def test_every_trainable_parameter_gets_a_gradient_and_checkpointing_the_same(fields: dict, images, noise):
    model = build(**fields).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(images, noise=noise).loss.backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_inter_block_attention_leaves_the_encoders_last_norm_alone_after_loading_too(tmp_path, images):
    model = build(**INTER_BLOCK)
    model.save_pretrained(tmp_path)
    loaded = MawsMAEForPreTraining.from_pretrained(tmp_path)
    assert loaded.config.decoder_inter_block_attention
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    for one in (model, loaded):
        assert not any(p.requires_grad for p in one.vit.layernorm.parameters())
    assert all(p.requires_grad for p in build(**CROSS).vit.layernorm.parameters())


@pytest.mark.parametrize(
    ("asked_for", "handed_out"), [(None, []), (False, []), (True, [0, 1, 2]), (0, [0]), ([0, -1], [0, 2])]
)
def test_hidden_states_are_handed_out_as_asked_for(asked_for: object, handed_out: list[int], images, noise):
    states = build(**INTER_BLOCK)(images, noise=noise, output_hidden_states=asked_for).hidden_states
    assert [index for index, state in enumerate(states or ()) if state is not None] == handed_out
    assert all(states[index].shape == (2, 7, 32) for index in handed_out)


def test_weights_of_one_attention_are_never_taken_for_the_other(tmp_path):
    same_width = {"decoder_hidden_size": 32, "decoder_num_attention_heads": 4}
    build(**same_width).save_pretrained(tmp_path)
    saved = build(**same_width)
    loaded, info = MawsMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True, **CROSS)
    assert torch.equal(loaded.vit.layernorm.weight, saved.vit.layernorm.weight)
    assert {name for name in info["missing_keys"] if "layers.0" in name} == {
        f"decoder.layers.0.cross_attention.{part}_proj.{kind}" for part in "qkvo" for kind in ("weight", "bias")
    }
    assert not torch.equal(
        loaded.decoder.layers[0].cross_attention.k_proj.weight, saved.decoder.layers[0].attention.k_proj.weight
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder_attention": "both"}, "decoder_attention='both' is not possible: it must be self .* or cross"),
        ({"decoder_inter_block_attention": True}, "must be False, unless decoder_attention=cross"),
        ({**CROSS, "decoder_num_hidden_layers": 0}, "decoder_num_hidden_layers=0 is not possible"),
    ],
)
def test_decoders_that_cannot_be_are_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


def test_inter_block_weights_start_with_variance_1_over_the_encoders_states():
    torch.manual_seed(0)
    model = MawsMAEForPreTraining(tiny_config(num_hidden_layers=24, decoder_num_hidden_layers=4, **INTER_BLOCK))
    weights = model.decoder.feature_weights
    assert weights.shape == (4, 25)
    assert weights.std().item() == pytest.approx(25**-0.5, rel=0.3)


def test_the_paper_objective_is_the_default():
    config = tiny_config()
    assert (config.prediction_ratio, config.decoder_attention, config.decoder_inter_block_attention) == (
        1.0,
        "self",
        False,
    )
