"""Adapters trained together: each is what it would be alone, and what can be learnt is learnt."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from tiny import tiny_config
from torch import Tensor

from maws_hf import MawsViTModel
from maws_hf.evaluation.features import model_digest
from maws_hf.evaluation.linear_heads import LinearHead
from maws_hf.optim.schedules import warmup_cosine
from maws_hf.training import few_shot_adapters
from maws_hf.training.few_shot_adapters import (
    HEAD,
    RECIPES,
    AdapterRecipe,
    Member,
    long_enough,
    predict,
    train_members,
)
from maws_hf.training.frozen_prefix import TokensBefore, adapted_tail, first_weights

LAYERS = 3
# Members of unlike images, rates, decays and seeds; the last has fewer images than a batch.
ROWS = [torch.arange(8), torch.arange(2, 11), torch.tensor([1, 5, 6])]
RATES = [1e-3, 1e-2, 3e-3]
DECAYS = [1e-3, 0.1, 0.0]


def encoder() -> MawsViTModel:
    torch.manual_seed(0)
    return MawsViTModel(tiny_config(num_hidden_layers=LAYERS, drop_path_rate=0.5)).eval()


def pictures(count: int) -> tuple[Tensor, Tensor]:
    """Upright or lying stripes, which stay what they are when mirrored."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 2
    pattern = (torch.arange(32) // 4 % 2 * 200)[None, :].expand(32, 32)
    stripes = torch.stack([pattern if label else pattern.T for label in labels])[:, None].expand(-1, 3, -1, -1)
    return (stripes + torch.randint(0, 50, stripes.shape, generator=generator)).to(torch.uint8), labels


def members(model: MawsViTModel, recipe: AdapterRecipe) -> list[Member]:
    generator = torch.Generator().manual_seed(2)
    return [
        Member(
            rows,
            rate,
            decay,
            LinearHead(torch.randn(2, 32, generator=generator), torch.randn(2, generator=generator)),
            first_weights(model, recipe.config(LAYERS), seed),
            seed,
        )
        for seed, (rows, rate, decay) in enumerate(zip(ROWS, RATES, DECAYS, strict=True))
    ]


def both_sides(model: MawsViTModel, first: int, pixels: Tensor) -> Tensor:
    return torch.stack([TokensBefore(model, first, side).all() for side in (pixels, pixels.flip(-1))], dim=1)


def trained_alone(
    model: MawsViTModel, pixels: Tensor, labels: Tensor, member: Member, recipe: AdapterRecipe
) -> Tensor:
    """Logits of all images, after a plain loop over the whole encoder."""
    torch.manual_seed(member.seed)
    adapted = get_peft_model(model, recipe.config(LAYERS)).eval()
    weight, bias = (p.to(model.dtype).requires_grad_() for p in (member.head.weight, member.head.bias))
    optimizer = torch.optim.AdamW(
        [*(p for p in adapted.parameters() if p.requires_grad), weight, bias], weight_decay=0.0
    )

    def logits(images: Tensor) -> Tensor:
        return F.linear(F.normalize(adapted(images).pooler_output, dim=1), weight, bias)

    rng = np.random.default_rng(member.seed)
    size = min(recipe.batch_size, len(member.rows))
    rounds = -(-recipe.updates * size // len(member.rows))
    order = np.concatenate([rng.permutation(len(member.rows)) for _ in range(rounds)])
    mirrored = rng.integers(2, size=(recipe.updates, size))
    for step in range(recipe.updates):
        rows = member.rows[order[step * size : (step + 1) * size]]
        images = [
            pixels[row].flip(-1) if turned else pixels[row] for row, turned in zip(rows, mirrored[step], strict=True)
        ]
        loss = F.cross_entropy(logits(torch.stack(images)), labels[rows]) + member.decay / 2 * weight.square().sum()
        rate = warmup_cosine(
            step, peak=member.learning_rate, warmup_steps=recipe.updates // 10, max_steps=recipe.updates
        )
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = logits(pixels)
    adapted.unload()
    return found


def test_many_images_come_up_ten_times_each():
    recipe = RECIPES["lora"]
    assert long_enough(recipe, 90) == recipe
    longer = long_enough(recipe, 10_000)
    assert longer.updates % recipe.updates == 0
    assert 10_000 * 10 <= longer.updates * recipe.batch_size < 10_000 * 10 + recipe.updates * recipe.batch_size


def test_lora_and_adaptformer_lie_in_the_last_two_layers_and_vpt_in_all():
    places, sizes = {}, {}
    for depth in (1, 4):
        for method, recipe in RECIPES.items():
            model = get_peft_model(MawsViTModel(tiny_config(num_hidden_layers=depth)), recipe.config(depth))
            trained = {name.split("layers.")[1]: p.numel() for name, p in model.named_parameters() if p.requires_grad}
            places[method, depth] = sorted({int(name.split(".")[0]) for name in trained})
            sizes[method, depth] = sum(trained.values())
            if method == "lora":
                assert {name.split(".")[2] for name in trained} == {"q_proj", "v_proj"}
                assert set(model.base_model.model.layers[-1].attention.q_proj.scaling.values()) == {2.0}
            model.train()
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data.normal_(std=0.2)  # AdaptFormer's way back begins with zeros
            images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
            assert torch.equal(model(images).pooler_output, model(images).pooler_output), "there is no dropout"
    assert places == {
        **{(method, 1): [0] for method in RECIPES},
        **{(method, 4): [2, 3] for method in ("lora", "adaptformer")},
        ("vpt", 4): [0, 1, 2, 3],
    }
    # Of each layer: queries and values of rank 8; 64 units with their biases, and those of the way back; one token.
    assert sizes["lora", 4] == 2 * 2 * 8 * (32 + 32)
    assert sizes["adaptformer", 4] == 2 * (2 * 64 * 32 + 64 + 32)
    assert sizes["vpt", 4] == 4 * 32


def test_as_many_members_at_once_as_memory_allows_and_one_at_least(monkeypatch):
    model, tokens = encoder(), torch.zeros(5, 2, 17, 32)
    for method, layers in (("lora", 2), ("vpt", 3)):
        recipe = replace(RECIPES[method], batch_size=4)
        of_member = 4 * few_shot_adapters.FLOATS_KEPT * layers * 17 * 32 * 4  # images x floats x bytes
        with adapted_tail(model, recipe.config(LAYERS)) as tail:
            for room, members in ((3 * of_member, 3), (3 * of_member - 1, 2), (1, 1)):
                monkeypatch.setitem(few_shot_adapters.ACTIVATION_BYTES, "cpu", room)
                assert few_shot_adapters.members_at_once(tail, tokens, recipe) == members


@pytest.mark.parametrize("at_once", [3, 2])  # all members together, or two and one
@pytest.mark.parametrize("method", RECIPES)
def test_members_are_what_they_would_be_alone(method, at_once, monkeypatch):
    monkeypatch.setattr(few_shot_adapters, "members_at_once", lambda *_: at_once)
    recipe = replace(RECIPES[method], updates=12, batch_size=4)
    model = encoder().double()
    pixels, labels = pictures(11)
    all_members = members(model, recipe)
    expected = [trained_alone(model, pixels, labels, member, recipe) for member in all_members]
    with adapted_tail(model, recipe.config(LAYERS)) as tail:
        weights = train_members(tail, both_sides(model, tail.first, pixels), labels, all_members, recipe)
        found = predict(tail, weights, TokensBefore(model, tail.first, pixels, batch_size=4))
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-9)
    assert (found[0] - found[1]).abs().max() > 0.1


@pytest.mark.parametrize("method", RECIPES)
def test_a_pattern_is_learnt_and_the_encoder_stays(method):
    model = encoder()
    digest = model_digest(model)
    pixels, labels = pictures(12)
    recipe = replace(RECIPES[method], updates=60)
    head = LinearHead(torch.zeros(2, 32), torch.zeros(2))
    start = first_weights(model, recipe.config(LAYERS), seed=0)
    with adapted_tail(model, recipe.config(LAYERS)) as tail:
        member = Member(torch.arange(12), 1e-2, 0.0, head, start, seed=0)
        weights = train_members(tail, both_sides(model, tail.first, pixels), labels, [member], recipe)
        new_pixels, new_labels = pictures(20)
        logits = predict(tail, weights, TokensBefore(model, tail.first, new_pixels))
    assert (logits[0].argmax(dim=1) == new_labels).all()
    assert not torch.equal(weights[0][HEAD[0]], head.weight)
    assert model_digest(model) == digest


@pytest.mark.parametrize("method", RECIPES)
def test_the_seed_decides_the_first_weights_and_nothing_else_is_touched(method):
    model, config = encoder(), RECIPES[method].config(LAYERS)
    state = torch.get_rng_state()
    first, again, other = (first_weights(model, config, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
