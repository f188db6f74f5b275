"""What an adapter leaves as it is, is computed once; the features are those of the whole encoder."""

import pytest
import torch
from peft import LoraConfig
from tiny import tiny_config

from maws_hf import MawsViTModel
from maws_hf.adapters import AdaptFormerConfig, VPTConfig
from maws_hf.training import frozen_prefix
from maws_hf.training.frozen_prefix import TokensBefore, adapted_tail, first_weights

CONFIGS = {
    "lora, all layers": (lambda: LoraConfig(target_modules=["q_proj"], init_lora_weights=False), 0),
    "lora, last layer": (
        lambda: LoraConfig(
            target_modules=["v_proj"], layers_to_transform=[3], layers_pattern="layers", init_lora_weights=False
        ),
        3,
    ),
    "adaptformer, a middle layer": (lambda: AdaptFormerConfig(target_modules=r"layers\.1\.mlp"), 1),
    "shallow vpt": (lambda: VPTConfig(deep=False), 0),
    "deep vpt": (VPTConfig, 0),
}


def encoder() -> MawsViTModel:
    torch.manual_seed(0)
    return MawsViTModel(tiny_config(num_hidden_layers=4)).eval().double()


def test_what_peft_asks_of_transformers_is_not_the_users_concern(recwarn):
    with adapted_tail(encoder(), CONFIGS["lora, last layer"][0]()):
        assert not recwarn.list


@pytest.mark.parametrize("name", CONFIGS)
def test_the_tail_of_the_tokens_is_the_whole_encoder(name):
    make_config, first = CONFIGS[name]
    model = encoder()
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    with adapted_tail(model, make_config()) as tail, torch.no_grad():
        assert tail.first == first
        for parameter in tail.parameters():
            if parameter.requires_grad:
                parameter.normal_()
        expected = model(pixels).pooler_output  # the adapter is in it
        found = tail(TokensBefore(model, first, pixels, batch_size=2).all())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert (model(pixels).pooler_output - expected).abs().max() > 1e-3
        torch.testing.assert_close(model(pixels).pooler_output, encoder()(pixels).pooler_output, rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.state_dict().keys() == encoder().state_dict().keys()


def test_tokens_are_kept_unless_they_are_many(monkeypatch):
    model = encoder()
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    counts = []
    monkeypatch.setattr(model.layers[0], "forward", lambda tokens: counts.append(1) or tokens)
    image = 17 * 32 * 8  # bytes of the tokens of one, of five in all
    for limit, computed in ((5 * image, 3), (4 * image, 6), (0, 6)):
        monkeypatch.setattr(frozen_prefix, "KEPT_BYTES", limit)
        tokens = TokensBefore(model, 1, pixels, batch_size=2)
        counts.clear()
        assert torch.equal(tokens.all(), tokens.all())
        assert len(counts) == computed


def test_nothing_is_dropped_meanwhile_and_afterwards_as_much_as_before():
    model = encoder()
    for training in (True, False):
        model.train(training)
        with adapted_tail(model, CONFIGS["lora, last layer"][0]()):
            assert not any(part.training for part in model.modules())
        assert all(part.training is training for part in model.modules())


def test_first_weights_are_of_the_seed_alone_and_draw_no_number_of_others():
    model, config = encoder(), CONFIGS["lora, all layers"][0]()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, other = first_weights(model, config, 5), first_weights(model, config, 6)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    again = first_weights(model, config, 5)
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert not any(torch.equal(weight, other[name]) for name, weight in first.items())


def test_an_adapter_elsewhere_is_an_error():
    with (
        pytest.raises(ValueError, match="nowhere else"),
        adapted_tail(encoder(), LoraConfig(target_modules=["projection"])),
    ):
        pass
