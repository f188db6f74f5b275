import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import XLMRobertaConfig, XLMRobertaModel

from maws_hf import MawsMAEForPreTraining, MawsViTConfig, MawsViTForImageClassification
from maws_hf.evaluation import flops
from maws_hf.evaluation.flops import (
    lit_training_flops,
    mae_training_flops,
    measure_matmul_peak,
    wsp_training_flops,
)


def small_config(**overrides) -> MawsViTConfig:
    fields = {
        "image_size": (32, 48),
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "decoder_hidden_size": 24,
        "decoder_num_hidden_layers": 3,
        "decoder_num_attention_heads": 3,
        "decoder_intermediate_size": 56,
    }
    return MawsViTConfig(**{**fields, **overrides})


INTER_BLOCK = {"decoder_attention": "cross", "decoder_inter_block_attention": True}


@pytest.mark.parametrize(
    "decoder", [{}, {"decoder_attention": "cross"}, INTER_BLOCK, {"decoder_num_hidden_layers": 0}]
)
@pytest.mark.parametrize("prediction_ratio", [1.0, 0.4])
def test_the_closed_form_of_mae_equals_what_torch_counts(decoder: dict, prediction_ratio: float):
    config = small_config(prediction_ratio=prediction_ratio, **decoder)
    model = MawsMAEForPreTraining._from_config(config, attn_implementation="eager")  # sdpa is not in torch's table
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(3, 3, 32, 48, dtype=torch.uint8)).loss.backward()
    # Three images share the query, key and value of a mask token at each of 24 positions; the form is that of one.
    masked = 18 if prediction_ratio == 1.0 else 7
    shared = 0 if decoder else 3 * (3 * 2 * 24 * 24) * (3 * masked - 24)
    assert counter.get_total_flops() == 3 * mae_training_flops(config) - shared


@pytest.mark.parametrize("depth", [2, 0])
def test_the_closed_form_of_wsp_equals_what_torch_counts(depth: int):
    config = small_config(num_labels=17, num_hidden_layers=depth)
    model = MawsViTForImageClassification._from_config(config, attn_implementation="eager")
    labels = torch.tensor([[1, 2], [3, -100], [4, 5]])
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(3, 3, 32, 48, dtype=torch.uint8), labels=labels, skip_logits=True).loss.backward()
    assert counter.get_total_flops() == 3 * wsp_training_flops(config)


def test_the_closed_form_of_lit_equals_what_torch_counts():
    vision_config = small_config(num_labels=0)
    text_config = XLMRobertaConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=64
    )
    image_tower = MawsViTForImageClassification._from_config(vision_config, attn_implementation="eager")
    text_tower = XLMRobertaModel._from_config(text_config, attn_implementation="eager", add_pooling_layer=False)
    projections = [torch.nn.Linear(width, 20, bias=False) for width in (32, 24)]
    images, captions = torch.zeros(3, 3, 32, 48, dtype=torch.uint8), torch.full((3, 11), 5)
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            image_features = image_tower(images).logits
        text_features = text_tower(captions).last_hidden_state[:, 0]
        (projections[0](image_features).sum() + projections[1](text_features).sum()).backward()
    ours = lit_training_flops(vision_config, text_config, text_tokens=11, projection_dim=20)
    assert counter.get_total_flops() == 3 * ours
    cached = lit_training_flops(vision_config, text_config, text_tokens=11, projection_dim=20, cached_features=True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        image_tower(images)
    assert counter.get_total_flops() == 3 * (ours - cached)


@pytest.mark.parametrize(("size", "counted"), [("vit_b16", 98.2), ("vit_l16", 356.7), ("vit_6.5b14", 9781.6)])
def test_wsp_costs_what_was_counted_for_the_papers_sizes(size: str, counted: float):
    # GFLOP of the encoder with 28,000 classes, whose patch embedding was counted three times instead of twice.
    assert wsp_training_flops(MawsViTConfig.from_size(size), 28_000) / 1e9 == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    ("shortcut", "share"),
    [
        ({"prediction_ratio": 0.5}, 0.784),
        ({"decoder_attention": "cross"}, 0.822),
        ({"decoder_attention": "cross", "prediction_ratio": 0.3333}, 0.598),
    ],
)
def test_what_other_objectives_cost_beside_the_papers_at_vit_b16(shortcut: dict, share: float):
    # By hand, in GFLOP: 57.14 for the paper's objective; 44.82, 46.96 and 34.16.
    plain = mae_training_flops(MawsViTConfig.from_size("vit_b16"))
    assert mae_training_flops(MawsViTConfig.from_size("vit_b16", **shortcut)) / plain == pytest.approx(
        share, abs=0.001
    )


@pytest.mark.parametrize(("size", "original"), [("vit_b16", 58.456), ("vit_l16", 124.2), ("vit_h14", 291.0)])
def test_the_papers_sizes_cost_a_little_less_than_the_original(size: str, original: float):
    # The original embeds every patch and computes its last decoder block and head for every token.
    assert 0.97 * original < mae_training_flops(MawsViTConfig.from_size(size)) / 1e9 < 0.996 * original


def test_the_peak_is_a_plausible_rate():
    assert 1e9 < measure_matmul_peak(torch.device("cpu"), torch.float32, seconds=0.05) < 1e14


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_measured_on_random_numbers_which_nobody_else_draws(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    operands = []

    monkeypatch.setattr(flops, "product", lambda left, right: operands.extend([left, right]))
    monkeypatch.setattr(flops, "suits_onednn", lambda left, right: True)
    state = torch.get_rng_state()
    measure_matmul_peak(torch.device("cpu"), dtype, seconds=0.001)
    assert torch.equal(torch.get_rng_state(), state)
    left, right = (operand.float() for operand in operands[:2])
    for operand in (left, right):
        assert operand.mean().abs() < 0.01
        assert operand.std() == pytest.approx(1.0, abs=0.01)
    assert not torch.equal(left, right)
