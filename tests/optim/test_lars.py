import math
from copy import deepcopy

import pytest
import torch

from maws_hf.optim.lars import LARS

MOMENTUM, DECAY, TRUST = 0.8, 0.01, 0.002


def reference_steps(
    weight: list[float],
    gradients: list[list[float]],
    rates: list[float],
    matrix: bool,
    momentum: float = MOMENTUM,
    decay: float = DECAY,
    trust: float = TRUST,
) -> list[float]:
    """MAE's LARS in plain Python, value by value; double precision."""
    velocity = [0.0] * len(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        if matrix:
            gradient = [g + decay * w for g, w in zip(gradient, weight, strict=True)]
            weight_norm = math.sqrt(sum(w * w for w in weight))
            gradient_norm = math.sqrt(sum(g * g for g in gradient))
            ratio = trust * weight_norm / gradient_norm if weight_norm > 0 and gradient_norm > 0 else 1.0
            gradient = [ratio * g for g in gradient]
        velocity = [momentum * v + g for v, g in zip(velocity, gradient, strict=True)]
        weight = [w - rate * v for w, v in zip(weight, velocity, strict=True)]
    return weight


@pytest.mark.parametrize("case", ["matrix", "vector", "zero matrix", "zero gradient"])
def test_twelve_steps_equal_the_reference(case: str):
    generator = torch.Generator().manual_seed(1)
    shape = (6,) if case == "vector" else (2, 3)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    gradients = torch.randn(12, *shape, generator=generator, dtype=torch.float64)
    if case == "zero matrix":
        start.zero_()
    if case == "zero gradient":
        gradients[4:7] = 0
    rates = [0.1 * (step + 1) for step in range(12)]
    weight = start.clone()
    optimizer = LARS([weight], momentum=MOMENTUM, weight_decay=DECAY, trust_coefficient=TRUST)
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(weight.grad, gradient)
    expected = reference_steps(start.flatten().tolist(), gradients.flatten(1).tolist(), rates, matrix=case != "vector")
    torch.testing.assert_close(weight.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


def test_a_matrix_moves_in_proportion_to_its_own_norm_whatever_its_gradient():
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
    for scale in (1e-3, 1e3):
        moved = weight.clone()
        moved.grad = scale * torch.randn(4, 5, generator=torch.Generator().manual_seed(3))
        LARS([moved], lr=2.0).step()
        assert float((moved - weight).norm()) == pytest.approx(2.0 * 0.001 * float(weight.norm()), rel=1e-4)


def test_heads_of_a_stack_have_their_own_ratio_rate_and_velocity():
    generator = torch.Generator().manual_seed(4)
    stack = torch.randn(3, 4, 5, generator=generator) * torch.tensor([0.01, 1.0, 100.0]).view(3, 1, 1)
    alone = [head.clone() for head in stack]
    gradients = torch.randn(5, 3, 4, 5, generator=generator)
    gradient = torch.zeros_like(stack)
    for head in range(3):
        view = stack[head]
        view.grad = gradient[head]
        alone[head] = (view, alone[head])
    rates = [0.1, 1.0, 10.0]
    stacked = LARS([{"params": [view], "lr": rate} for (view, _), rate in zip(alone, rates, strict=True)])
    single = [LARS([weight], lr=rate) for (_, weight), rate in zip(alone, rates, strict=True)]
    before = stack.clone()
    for step in range(5):
        gradient.copy_(gradients[step])
        stacked.step()
        for head, optimizer in enumerate(single):
            alone[head][1].grad = gradients[step, head].clone()
            optimizer.step()
    torch.testing.assert_close(stack, torch.stack([weight for _, weight in alone]), rtol=0, atol=0)
    steps = (stack - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
    assert steps[0] < steps[1] < steps[2]


def test_a_restored_optimizer_goes_on_as_the_first_would_have():
    def step(optimizer: LARS, weight: torch.Tensor, number: int) -> None:
        weight.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(number))
        optimizer.step()

    weight = torch.ones(3, 4)
    first = LARS([weight], lr=1.0)
    step(first, weight, 0)
    copy = weight.clone()
    second = LARS([copy], lr=1.0)
    second.load_state_dict(deepcopy(first.state_dict()))  # which shares its tensors
    step(first, weight, 1)
    step(second, copy, 1)
    assert torch.equal(weight, copy)
    stateless = LARS([fresh := torch.ones(3, 4)], lr=1.0)
    step(stateless, fresh, 1)
    assert not torch.equal(weight, fresh)


def test_a_matrix_whose_gradient_is_zero_stays_and_one_without_a_gradient_is_passed_over():
    for gradient in (torch.zeros(2, 3), None):
        weight = torch.ones(2, 3)
        weight.grad = gradient
        LARS([weight], lr=1.0).step()
        assert torch.equal(weight, torch.ones(2, 3))


def test_more_than_two_axes_are_a_matrix():
    """Of the size that a matrix of the same numbers moves."""
    moved = []
    for shape in ((2, 12), (2, 3, 4)):
        weight = torch.arange(1.0, 25.0).view(shape)
        weight.grad = torch.ones(shape)
        LARS([weight], lr=1.0, weight_decay=0.1).step()
        moved.append(weight.flatten())
    assert torch.equal(*moved)


def test_the_defaults_are_momentum_and_no_decay():
    weight = torch.full((2, 2), 3.0)
    optimizer = LARS([weight], lr=1.0)
    for _ in range(2):
        weight.grad = torch.ones(2, 2)
        optimizer.step()
    expected = reference_steps([3.0] * 4, [[1.0] * 4] * 2, [1.0] * 2, matrix=True, momentum=0.9, decay=0, trust=0.001)
    assert weight.flatten().tolist() == pytest.approx(expected)


def test_without_momentum_every_step_is_that_of_the_first():
    weight = torch.zeros(4)
    optimizer = LARS([weight], lr=0.5, momentum=0.0)
    for _ in range(3):
        weight.grad = torch.ones(4)
        optimizer.step()
    assert torch.equal(weight, torch.full((4,), -1.5))


def test_a_closure_computes_the_gradient_and_its_loss_is_returned():
    weight = torch.full((3,), 2.0, requires_grad=True)

    def closure() -> torch.Tensor:
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert LARS([weight], lr=0.25).step(closure).item() == 12
    assert torch.equal(weight.detach(), torch.ones(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"trust_coefficient": -0.1}, "trust_coefficient is -0.1"),
    ],
)
def test_impossible_settings_are_named(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        LARS([torch.ones(2, 2)], **settings)
