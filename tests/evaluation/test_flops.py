import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from maws_hf import MawsMAEForPreTraining, MawsViTConfig
from maws_hf.evaluation.flops import mae_training_flops, measure_matmul_peak


def test_the_closed_form_equals_what_torch_counts():
    config = MawsViTConfig(
        image_size=(32, 48),
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        decoder_hidden_size=24,
        decoder_num_hidden_layers=3,
        decoder_num_attention_heads=3,
        decoder_intermediate_size=56,
    )
    model = MawsMAEForPreTraining._from_config(config, attn_implementation="eager")  # sdpa is not in torch's table
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(3, 3, 32, 48, dtype=torch.uint8)).loss.backward()
    assert counter.get_total_flops() == 3 * mae_training_flops(config)


@pytest.mark.parametrize(("size", "original"), [("vit_b16", 58.456), ("vit_l16", 124.2), ("vit_h14", 291.0)])
def test_the_papers_sizes_cost_a_little_less_than_the_original(size: str, original: float):
    # The original embeds every patch and computes its last decoder block and head for every token.
    assert 0.97 * original < mae_training_flops(MawsViTConfig.from_size(size)) / 1e9 < 0.996 * original


def test_the_peak_is_a_plausible_rate():
    assert 1e9 < measure_matmul_peak(torch.device("cpu"), torch.float32, seconds=0.05) < 1e14
