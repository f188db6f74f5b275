"""Few labels a class: the splits are what they say, and the classifier is at its minimum."""

import pytest
import torch
import torch.nn.functional as F

from maws_hf.evaluation.few_shot import (
    DECAYS,
    ONE_SHOT_DECAY,
    few_shot_probe,
    few_shot_split,
    folds_of,
    logistic_regression,
    scores,
)


def clouds(each: int, classes: int = 4, width: int = 30, spread: float = 0.5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(classes).repeat(each)
    return centres[labels] + spread * torch.randn(len(labels), width, generator=generator), labels


def test_a_split_has_k_of_each_class_and_all_of_a_smaller_one():
    labels = torch.tensor([0] * 12 + [1] * 3 + [2] * 7)[torch.randperm(22, generator=torch.Generator().manual_seed(0))]
    rows = few_shot_split(labels, 5, seed=0)
    assert torch.bincount(labels[rows]).tolist() == [5, 3, 5]
    assert len(rows.unique()) == len(rows)


def test_seeds_differ_and_splits_of_one_seed_are_nested():
    labels = torch.arange(3).repeat(40)
    small, large = few_shot_split(labels, 1, seed=3), few_shot_split(labels, 10, seed=3)
    assert set(small.tolist()) < set(large.tolist())
    assert torch.equal(large, few_shot_split(labels, 10, seed=3))
    assert len({tuple(few_shot_split(labels, 5, seed=seed).tolist()) for seed in range(5)}) == 5


def test_another_class_does_not_change_a_class_s_choice():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    more = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert few_shot_split(labels, 2, 0).tolist() == few_shot_split(more, 2, 0).tolist()[:4]


def test_each_class_has_a_draw_of_its_own():
    chosen = few_shot_split(torch.arange(6).repeat(40), 3, seed=0)
    places = {tuple((chosen[chosen % 6 == label] // 6).tolist()) for label in range(6)}
    assert len(places) == 6, "not the same places in the list of every class"


def test_for_rows_that_cannot_be_had_the_next_of_their_class_stand_in():
    labels = torch.tensor([0, 1] * 5)
    order = [row for shots in range(1, 6) for row in few_shot_split(labels, shots, 7).tolist()]
    order = [row for row in dict.fromkeys(order) if labels[row] == 0]  # as the seed draws them
    of_the_other = [row for row in few_shot_split(labels, 2, 7).tolist() if labels[row] == 1]
    assert few_shot_split(labels, 2, 7, without=order[:1]).tolist() == sorted([*order[1:3], *of_the_other])
    assert few_shot_split(labels, 2, 7, without=order[1:4]).tolist() == sorted([order[0], order[4], *of_the_other])
    assert few_shot_split(labels, 2, 7, without=order).tolist() == of_the_other


@pytest.mark.parametrize(("shots", "labels"), [(0, [0, 1]), (1, [])])
def test_impossible_splits_are_errors(shots, labels):
    with pytest.raises(ValueError, match=r"shots is 0|no images"):
        few_shot_split(torch.tensor(labels, dtype=torch.long), shots, seed=0)


@pytest.mark.parametrize("decay", [1e-4, 1e-1])
def test_the_gradient_vanishes_in_all_dimensions(decay):
    features, labels = clouds(5)
    head = logistic_regression(features, labels, 4, decay)
    weight = head.weight.double().requires_grad_()
    bias = head.bias.double().requires_grad_()
    directions = F.normalize(features.double(), dim=1)
    loss = F.cross_entropy(directions @ weight.T + bias, labels) + decay / 2 * weight.square().sum()
    gradients = torch.autograd.grad(loss, [weight, bias])
    assert max(gradient.abs().max() for gradient in gradients) < 1e-6  # the head is float32


def test_two_classes_have_the_closed_form_of_symmetry():
    features, labels = torch.tensor([[2.0, 0.0], [-3.0, 0.0]]), torch.tensor([0, 1])
    head = logistic_regression(features, labels, 2, decay=0.5)
    # By symmetry the weights are (a, 0) and (-a, 0); the loss log(1 + exp(-2a)) + decay a^2 is flat where decay a =
    # sigmoid(-2a).
    a = head.weight[0, 0].double()
    assert torch.allclose(head.weight[1], -head.weight[0], atol=1e-6)
    torch.testing.assert_close(0.5 * a, torch.sigmoid(-2 * a), rtol=1e-4, atol=0)


def test_the_decay_is_chosen_on_labelled_images_only():
    features, labels = clouds(10, spread=2.0)
    found = few_shot_probe(features, labels, 4)
    assert set(found.validation) == set(DECAYS)
    assert found.validation[found.decay] == max(found.validation.values())
    test_features, test_labels = clouds(200, spread=2.0, seed=1)
    accuracy = (scores(found.head, test_features).argmax(1) == test_labels).float().mean()
    assert accuracy > 0.8


def test_one_image_a_class_takes_the_stated_decay():
    features, labels = clouds(1)
    found = few_shot_probe(features, labels, 4)
    assert found.decay == ONE_SHOT_DECAY
    assert found.validation == {}
    assert (scores(found.head, features).argmax(1) == labels).all()


def test_scale_of_the_features_does_not_matter():
    features, labels = clouds(5)
    left, right = (logistic_regression(scale * features, labels, 4, 1e-3) for scale in (1, 1000))
    torch.testing.assert_close(left.weight, right.weight, rtol=1e-4, atol=1e-4)


def test_scores_take_features_of_any_length():
    features, labels = clouds(5)
    head = logistic_regression(features, labels, 4, 1e-3)
    torch.testing.assert_close(scores(head, 1000 * features), scores(head, features), rtol=1e-4, atol=1e-4)


def test_images_are_judged_by_heads_that_have_not_seen_them():
    features, labels = clouds(8, spread=0.0)
    noise = torch.randn(len(features), 60, generator=torch.Generator().manual_seed(3))  # says nothing of the labels
    validation = few_shot_probe(noise, labels, 4).validation
    assert max(validation.values()) < 0.5, "chance is a quarter"


def test_of_decays_that_are_all_right_the_middle_one_is_taken():
    features, labels = torch.eye(2).repeat(6, 1), torch.arange(2).repeat(6)
    found = few_shot_probe(features, labels, 2)
    assert found.validation == dict.fromkeys(DECAYS, 1.0)
    assert found.decay == sorted(DECAYS)[len(DECAYS) // 2]


def test_every_part_has_its_share_of_each_class():
    labels = torch.tensor([0, 1] * 7 + [0] * 5 + [2])
    folds = folds_of(labels)
    shares = [torch.bincount(folds[labels == label], minlength=5).tolist() for label in range(3)]
    assert shares == [[3, 3, 2, 2, 2], [2, 2, 1, 1, 1], [1, 0, 0, 0, 0]]


def test_two_images_of_one_class_are_enough_to_hold_one_out():
    assert folds_of(torch.tensor([0, 1, 1, 2])).tolist() == [0, 0, 1, 0]
    assert folds_of(torch.tensor([0, 3, 1, 2])) is None
