"""The learning rate is chosen on the labelled images alone, each choice of images for itself."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config
from torch import Tensor
from torch.func import functional_call

from maws_hf import MawsViTModel
from maws_hf.evaluation.few_shot import folds_of, logistic_regression
from maws_hf.training import few_shot_adapters
from maws_hf.training.few_shot_adapters import RECIPES, Member, predict, train_members
from maws_hf.training.few_shot_selection import FOLDS, Choice, adapt, best_rate
from maws_hf.training.frozen_prefix import AdaptedTail, TokensBefore, adapted_tail, first_weights

LAYERS, CLASSES, DECAY = 3, 3, 0.01
RECIPE = replace(RECIPES["vpt"], updates=5, batch_size=4, learning_rates=(3e-2, 1e-4))


@pytest.fixture(scope="module")
def encoder() -> MawsViTModel:
    torch.manual_seed(0)
    return MawsViTModel(tiny_config(num_hidden_layers=LAYERS)).eval().double()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


LABELS = torch.arange(24) % CLASSES


def tokens_of(encoder: MawsViTModel, tail: AdaptedTail, pixels: Tensor) -> Tensor:
    return torch.stack([TokensBefore(encoder, tail.first, side).all() for side in (pixels, pixels.flip(-1))], dim=1)


def choice(encoder: MawsViTModel, rows: Tensor, seed: int, recipe=RECIPE) -> Choice:
    return Choice(rows, DECAY, first_weights(encoder, recipe.config(LAYERS), seed), seed)


def test_the_accuracies_are_those_of_a_loop_over_folds_and_rates(encoder, pixels):
    one = choice(encoder, torch.arange(3, 15), seed=0)
    labels, folds = LABELS[one.rows], folds_of(LABELS[one.rows], FOLDS)
    with adapted_tail(encoder, RECIPE.config(LAYERS)) as tail:
        tokens = tokens_of(encoder, tail, pixels)
        (found,) = adapt(tail, tokens, LABELS, CLASSES, [one], RECIPE)
        features = functional_call(tail, one.adapter, (tokens[one.rows, 0],)).detach()
        expected = {}
        for rate in RECIPE.learning_rates:
            right = 0
            for fold in range(FOLDS):
                kept, held = folds != fold, one.rows[folds == fold]
                head = logistic_regression(features[kept], labels[kept], CLASSES, DECAY)
                member = Member(one.rows[kept], rate, DECAY, head, one.adapter, one.seed)
                weights = train_members(tail, tokens, LABELS, [member], RECIPE)
                logits = predict(tail, weights, TokensBefore(encoder, tail.first, pixels[held]))
                right += int((logits[0].argmax(dim=1) == LABELS[held]).sum())
            expected[rate] = right / len(labels)
    assert found.validation == expected
    assert found.learning_rate == best_rate(RECIPE.learning_rates, expected)


def test_choices_do_not_meet_and_other_images_play_no_part(encoder, pixels, monkeypatch):
    choices = [choice(encoder, torch.arange(12), 0), choice(encoder, torch.arange(9, 24), 1)]
    others = LABELS.clone()
    others[12:] = 0
    with adapted_tail(encoder, RECIPE.config(LAYERS)) as tail:
        tokens = tokens_of(encoder, tail, pixels)
        together = adapt(tail, tokens, LABELS, CLASSES, choices, RECIPE)
        monkeypatch.setattr(few_shot_adapters, "members_at_once", lambda *_: 2)
        (alone,) = adapt(tail, tokens, others, CLASSES, choices[:1], RECIPE)
    assert alone.validation == together[0].validation
    for name, weight in alone.weights.items():
        torch.testing.assert_close(weight, together[0].weights[name], rtol=0, atol=1e-9)


def test_one_image_a_class_takes_the_smallest_rate(encoder, pixels):
    one = choice(encoder, torch.arange(3), seed=0)
    with adapted_tail(encoder, RECIPE.config(LAYERS)) as tail:
        (found,) = adapt(tail, tokens_of(encoder, tail, pixels), LABELS, CLASSES, [one], RECIPE)
    assert (found.learning_rate, found.validation) == (1e-4, {})


@pytest.mark.parametrize("method", RECIPES)
def test_the_head_begins_at_the_linear_classifier_of_what_the_adapter_shows(encoder, pixels, method):

    recipe = replace(RECIPES[method], updates=2, learning_rates=(0.0,))
    one = choice(encoder, torch.arange(3), 0, recipe)
    with adapted_tail(encoder, recipe.config(LAYERS)) as tail:
        tokens = tokens_of(encoder, tail, pixels)
        features = functional_call(tail, one.adapter, (tokens[:, 0],)).detach()
        (found,) = adapt(tail, tokens, LABELS, CLASSES, [one], recipe)
        logits = predict(tail, [found.weights], TokensBefore(encoder, tail.first, pixels))[0]
    head = logistic_regression(features[:3], LABELS[:3], CLASSES, DECAY)
    expected = F.normalize(features, dim=1) @ head.weight.double().T + head.bias
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    changed = (features - encoder(pixels).pooler_output).abs().max()
    assert (changed > 1e-3) == (method == "vpt")


def test_of_equals_the_smallest_rate_is_taken():
    assert best_rate((1e-2, 1e-3, 1e-4), {1e-2: 0.5, 1e-3: 0.5, 1e-4: 0.4}) == 1e-3
    assert best_rate((1e-2, 1e-3, 1e-4), {}) == 1e-4
