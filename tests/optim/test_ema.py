import pytest
import torch
from torch import nn

from maws_hf.optim.ema import WeightAverage


def test_the_average_follows_the_recurrence_in_float64():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.9)
    expected = model.weight.detach().double()
    for update in range(1, 200):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(model, update)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
        torch.testing.assert_close(average.state_dict()["weight"].double(), expected, rtol=1e-5, atol=1e-5)


def test_the_average_of_a_bfloat16_model_moves():
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    average = WeightAverage(model, decay=0.9999)
    with torch.no_grad():
        model.weight.fill_(2)
    for _ in range(1000):
        average.update(model, updates=10**9)
    assert average.state_dict()["weight"].item() == pytest.approx(2 - 0.9999**1000, rel=1e-4)


def test_frozen_weights_are_left_alone():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    average = WeightAverage(model, decay=0.5)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
        model.bias.add_(1)
    bias = model.bias.clone()
    average.copy_to(model)
    assert torch.equal(model.weight, before)
    assert torch.equal(model.bias, bias)
    assert set(average.state_dict()) == {"weight"}
