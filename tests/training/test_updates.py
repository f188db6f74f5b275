"""What an update does to the weights, and what its forward passes draw."""

import math
from pathlib import Path

import pytest
import torch
from line_run import Line, objective, run
from torch import nn
from waiting import no_number_by_index

from maws_hf.training import loop
from maws_hf.training.seeding import seed_for


def test_updates_are_those_of_clipped_adamw_written_out_in_float64(image_shards: Path, tmp_path: Path):
    peak, final, warmup, steps, beta1, beta2, epsilon, limit, decay = 0.05, 0.01, 2, 8, 0.7, 0.8, 0.05, 0.2, 0.6
    means: list[torch.Tensor] = []

    def watched(model: nn.Module, batch: dict) -> torch.Tensor:
        means.append(batch["pixel_values"].cpu().double().mean((1, 2, 3)) / 255)
        return objective(model, batch)

    live: list[tuple[float, float]] = []
    _, model = run(
        image_shards,
        tmp_path,
        watched,
        after_step=lambda step, model: live.append((model.line.weight.item(), model.line.bias.item())),
        max_steps=steps,
        gradient_accumulation_steps=2,
        learning_rate=peak,
        min_learning_rate=final,
        warmup_steps=warmup,
        adam_beta1=beta1,
        adam_beta2=beta2,
        adam_epsilon=epsilon,
        max_grad_norm=limit,
        ema_decay=decay,
    )
    weights = average = torch.tensor([0.5, 0.1], dtype=torch.float64)
    first, second = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for step in range(steps):
        inputs = torch.cat(means[2 * step : 2 * step + 2])
        slope = 2 * (weights[0] * inputs + weights[1] - 1)
        gradient = torch.stack([(slope * inputs).mean(), slope.mean()])
        gradient = gradient * min(1.0, limit / float(gradient.norm()))
        first, second = beta1 * first + (1 - beta1) * gradient, beta2 * second + (1 - beta2) * gradient**2
        cosine = final + (peak - final) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
        rate = peak * step / warmup if step < warmup else cosine
        moved = (first / (1 - beta1 ** (step + 1))) / ((second / (1 - beta2 ** (step + 1))).sqrt() + epsilon)
        weights = weights - rate * moved
        share = min(decay, (1 + step + 1) / (10 + step + 1))
        average = share * average + (1 - share) * weights
        assert live[step] == pytest.approx(tuple(weights.tolist()), abs=1e-5)
    assert (model.line.weight.item(), model.line.bias.item()) == pytest.approx(tuple(average.tolist()), abs=1e-5)


def test_an_update_does_not_wait_before_all_of_it_is_given_to_the_device(image_shards, tmp_path, monkeypatch):
    updates: list[int] = []
    step = torch.optim.AdamW.step

    def updated(*arguments, **options):
        updates.append(1)
        return step(*arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", updated)
    monkeypatch.setattr(torch.Tensor, "__setitem__", no_number_by_index)
    monkeypatch.setattr(loop, "wait_for", lambda numbers: updates.append(0) or numbers.tolist())
    run(image_shards, tmp_path, max_steps=2)
    assert updates == [1, 0, 1, 0]


def test_a_group_learns_with_its_own_share_of_the_rate(image_shards: Path, tmp_path: Path, monkeypatch):
    rates: list[list[float]] = []
    step = torch.optim.AdamW.step

    def noted(optimizer: torch.optim.AdamW, *args, **more):
        rates.append([group["lr"] for group in optimizer.param_groups])
        return step(optimizer, *args, **more)

    def quarter_for_the_weight(model: Line) -> list[dict]:
        of_weight = {"params": [model.line.weight], "param_names": ["line.weight"], "lr_scale": 0.25}
        return [of_weight, {"params": [model.line.bias], "param_names": ["line.bias"]}]

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    run(image_shards, tmp_path, groups=quarter_for_the_weight, max_steps=3, warmup_steps=2, learning_rate=0.8)
    assert rates == [[0.0, 0.0], [0.1, 0.4], [0.2, 0.8]]


def test_each_forward_pass_draws_by_seed_step_and_micro_batch(image_shards: Path, tmp_path: Path):
    drawn: list[float] = []

    def draw(model: nn.Module, batch: dict) -> torch.Tensor:
        drawn.append(torch.rand(()).item())
        return objective(model, batch)

    run(image_shards, tmp_path, draw, max_steps=2, gradient_accumulation_steps=3, seed=7)
    expected = []
    for step in range(2):
        for micro_step in range(3):
            torch.manual_seed(seed_for("step", 7, 0, step, micro_step))
            expected.append(torch.rand(()).item())
    assert drawn == expected


def test_parts_of_a_seed_are_told_apart():
    assert len({seed_for("step", 1, 23, 4), seed_for("step", 12, 3, 4), seed_for("step", 1, 2, 34)}) == 3
