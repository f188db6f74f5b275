from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from maws_hf.evaluation import linear_heads
from maws_hf.evaluation.features import LabelledFeatures
from maws_hf.evaluation.linear_heads import LinearHead, Protocol, logit_gradient, train_heads
from maws_hf.evaluation.linear_probe import PROTOCOLS, linear_probe, split_off_validation
from maws_hf.evaluation.metrics import mean_average_precision, score_classification

SGD = replace(PROTOCOLS["sgd"], epochs=6)
LARS = replace(PROTOCOLS["mae"], epochs=40, warmup_epochs=5)


def clusters(count: int, *, seed: int = 0, classes: int = 4, noise: float = 1.0) -> LabelledFeatures:
    """Points around a centre for each class, of very different scales and far from 0."""
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    points = centres[labels] + noise * torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return LabelledFeatures(points * torch.tensor([0.01, 1, 1, 1, 30, 300]) + 3, labels, classes)


def with_lists(data: LabelledFeatures) -> LabelledFeatures:
    """Two labels for most images, one for some, none for others."""
    second = torch.where(torch.arange(len(data.labels)) % 3 == 0, -100, (data.labels + 1) % data.num_classes)
    lists = torch.stack([data.labels, second], dim=1)
    lists[::7] = -100
    return LabelledFeatures(data.features, lists, data.num_classes)


def accuracy(head: LinearHead, data: LabelledFeatures) -> float:
    return score_classification(head.scores(data.features), data.labels)["top1"]


@pytest.mark.parametrize("objective", ["softmax", "binary"])
def test_the_gradient_in_closed_form_is_that_of_torchs_losses(objective: str):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 8, generator=generator, dtype=torch.float64, requires_grad=True)  # H, C, B
    labels = torch.tensor([[0, -100], [4, 1], [-100, 2], [3, -100], [-100, -100], [0, 4], [2, -100], [1, -100]])
    labelled = (labels >= 0).any(dim=1)
    hot = torch.zeros(8, 5, dtype=torch.float64)
    for row, places in zip(hot, labels.tolist(), strict=True):
        row[[place for place in places if place >= 0]] = 1
    for head in logits:
        rows, targets = head.T[labelled], hot[labelled]
        if objective == "softmax":
            loss = F.cross_entropy(rows, targets / targets.sum(dim=1, keepdim=True))
        else:
            loss = F.binary_cross_entropy_with_logits(rows, targets, reduction="sum") / len(rows)
        loss.backward()
    gradient = logit_gradient(logits.detach().clone(), labels, labelled.double() / labelled.sum(), objective)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("protocol", [SGD, LARS], ids=["sgd", "lars"])
@pytest.mark.parametrize("part", [30, 10**6])
def test_every_head_of_a_sweep_is_as_if_trained_alone(protocol: Protocol, part: int, monkeypatch: pytest.MonkeyPatch):
    data, rows, rates = clusters(150), torch.arange(5, 150), [0.001, 0.05, 0.4]
    alone = [train_heads(data, rows, [rate], protocol, seed=3)[0] for rate in rates]
    monkeypatch.setitem(linear_heads.LOGITS_AT_ONCE, "cpu", part)
    together = train_heads(data, rows, rates, protocol, seed=3)
    for single, head in zip(alone, together, strict=True):
        torch.testing.assert_close(head.weight, single.weight, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(head.bias, single.bias, rtol=1e-5, atol=1e-5)
    assert (together[0].weight - together[2].weight).abs().max() > 1e-3


def reference_scores(
    data: LabelledFeatures, start: LinearHead, steps: int, peak: float, momentum: float, decay: float
) -> torch.Tensor:
    """Logistic regression by torch's own layers, loss and optimizer on all images at once, in double precision."""
    features = data.features.double()
    norm = torch.nn.BatchNorm1d(features.shape[1], affine=False, eps=1e-6, dtype=torch.float64)
    layer = torch.nn.Linear(features.shape[1], data.num_classes, dtype=torch.float64)
    layer.weight.data.copy_(start.weight)
    layer.bias.data.zero_()
    options = {"momentum": momentum, "nesterov": momentum > 0, "weight_decay": decay}
    optimizer = torch.optim.SGD(layer.parameters(), lr=peak, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(layer(norm(features)), data.labels).backward()
        optimizer.step()
        schedule.step()
    return layer(norm(features)).detach()


@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 1e-9), (0.5, 0.3), (0.0, 0.0)])
def test_a_head_is_what_torchs_own_layers_make_of_it(momentum: float, decay: float):
    data, rows = clusters(30), torch.arange(30)  # so few that a batch holds them all
    assert SGD.batch_size_for(30) == 30
    (start,) = train_heads(data, rows, [1e-30], SGD, standardize=False)
    assert float(start.weight.std()) == pytest.approx(0.01, rel=0.3)
    protocol = replace(SGD, epochs=20, momentum=momentum, weight_decay=decay)
    (head,) = train_heads(data, rows, [0.3], protocol)
    scores = reference_scores(data, start, 20, 0.3, momentum, decay)
    torch.testing.assert_close(head.scores(data.features).double(), scores, rtol=1e-4, atol=1e-4)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The labels of each batch that heads are trained on."""
    batches: list[list[int]] = []

    def watch(logits: torch.Tensor, labels: torch.Tensor, *arguments: object) -> torch.Tensor:
        batches.append(labels[:, 0].tolist())
        return logit_gradient(logits, labels, *arguments)

    monkeypatch.setattr(linear_heads, "logit_gradient", watch)
    return batches


def test_images_left_out_of_one_epoch_come_in_another(seen: list[list[int]]):
    data = LabelledFeatures(torch.randn(40, 3), torch.arange(40), 40)
    train_heads(data, torch.arange(40), [0.1], SGD)
    assert [len(set(batch)) for batch in seen] == [32] * 6  # the batch for 40 images: one an epoch, without repeats
    assert len({tuple(batch) for batch in seen}) == 6
    assert set().union(*seen) == set(range(40))


def test_images_without_a_label_do_not_thin_out_those_with_one():
    data = clusters(30)
    lists = data.labels[:, None].clone()
    lists[20:] = -100
    thinned = LabelledFeatures(data.features, lists, 4)
    options = {"learning_rates": [1e-4], "protocol": SGD, "standardize": False}
    (all_rows,), (labelled,) = (train_heads(thinned, torch.arange(count), **options) for count in (30, 20))
    torch.testing.assert_close(all_rows.weight, labelled.weight, rtol=1e-4, atol=1e-6)


def test_a_batch_without_a_label_changes_nothing():
    labels = torch.full((64, 1), -100)
    labels[5] = 1
    data = LabelledFeatures(clusters(64).features, labels, 4)
    assert SGD.batch_size_for(64) == 32  # so one of two batches has none
    (head,) = train_heads(data, torch.arange(64), [0.1], replace(SGD, epochs=1))
    assert head.weight.isfinite().all()


def test_a_seed_decides_the_initial_weights():
    data = clusters(40)
    starts = [train_heads(data, torch.arange(40), [1e-30], SGD, seed=seed)[0].weight for seed in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_a_seed_decides_the_order_of_images(seen: list[list[int]]):
    data = LabelledFeatures(torch.randn(40, 3), torch.arange(40), 40)
    for seed in (0, 0, 1):
        train_heads(data, torch.arange(40), [0.1], replace(SGD, epochs=1), seed=seed)
    assert seen[0] == seen[1] != seen[2]


def test_images_outside_of_the_rows_have_no_say():
    data = clusters(120)
    changed = data.features.clone()
    changed[100:] *= 1e4
    labels = torch.cat([data.labels[:100], data.labels[100:].roll(1)])
    other = LabelledFeatures(changed, labels, 4)
    heads = [train_heads(each, torch.arange(100), [0.1], SGD)[0] for each in (data, other)]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert torch.equal(heads[0].bias, heads[1].bias)


def test_of_heads_that_score_alike_the_one_of_lowest_loss_is_chosen():
    train, test = clusters(400, noise=0.02), clusters(40, seed=1, noise=0.02)
    result = linear_probe(train, test, SGD, learning_rates=[0.1, 0.5, 0.2])
    assert [scores["top1"] for scores in result.validation] == [1.0] * 3
    losses = {scores["learning_rate"]: scores["loss"] for scores in result.validation}
    assert len(set(losses.values())) == 3
    assert result.learning_rate == min(losses, key=losses.__getitem__)


def test_lars_learns_and_its_warmup_begins_at_zero():
    data = clusters(400, noise=0.3)
    heads = train_heads(data, torch.arange(400), [1.0, 30.0], LARS)
    assert accuracy(heads[1], data) > 0.95
    (untrained,) = train_heads(data, torch.arange(20), [30.0], replace(LARS, epochs=1, warmup_epochs=0.99))
    (start,) = train_heads(data, torch.arange(20), [1e-30], replace(LARS, epochs=1, warmup_epochs=0))
    torch.testing.assert_close(untrained.weight, start.weight)  # its only update had the rate 0


@pytest.mark.parametrize("protocol", [SGD, LARS], ids=["sgd", "lars"])
def test_test_labels_decide_nothing(protocol: Protocol):
    train, test = clusters(300), clusters(80, seed=1)
    other = LabelledFeatures(test.features, (test.labels + 1) % 4, 4)
    honest, shifted = linear_probe(train, test, protocol), linear_probe(train, other, protocol)
    assert honest.test["top1"] > 0.6 > shifted.test["top1"]
    assert honest.learning_rate == shifted.learning_rate
    assert honest.validation == shifted.validation
    assert torch.equal(honest.head.weight, shifted.head.weight)
    best = max(honest.validation, key=lambda scores: (scores["top1"], -scores["loss"]))
    assert honest.learning_rate == best["learning_rate"]


def test_validation_scores_are_those_of_heads_that_did_not_see_these_images():
    train = clusters(200)
    rates = [0.001, 0.1]
    result = linear_probe(train, clusters(50, seed=1), SGD, learning_rates=rates, refit=False, seed=5)
    fitting, held_out = split_off_validation(train, 0.1, seed=5)
    heads = train_heads(train, fitting, rates, SGD, seed=5)
    unseen = LabelledFeatures(train.features[held_out], train.labels[held_out], 4)
    assert [scores["top1"] for scores in result.validation] == [accuracy(head, unseen) for head in heads]
    assert torch.equal(result.head.weight, heads[rates.index(result.learning_rate)].weight)
    refitted = linear_probe(train, clusters(50, seed=1), SGD, learning_rates=rates, seed=5)
    (whole,) = train_heads(train, torch.arange(200), [result.learning_rate], SGD, seed=5)
    assert torch.equal(refitted.head.weight, whole.weight)
    assert not torch.equal(refitted.head.weight, result.head.weight)


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_the_validation_share_is_even_over_classes_and_leaves_one_of_each(share: float):
    labels = torch.cat([torch.arange(40), torch.zeros(81, dtype=torch.int64), torch.ones(41, dtype=torch.int64)])
    train = LabelledFeatures(torch.randn(162, 2), labels, 40)
    fitting, held_out = split_off_validation(train, share, seed=0)
    assert sorted([*fitting.tolist(), *held_out.tolist()]) == list(range(162))
    assert len(held_out) == round(share * 162)
    counts = torch.bincount(labels[held_out], minlength=40)
    assert counts[2:].sum() == 0  # the only image of a class is needed to learn it
    assert abs(int(counts[0]) - len(held_out) * 81 / 122) <= 1
    assert torch.equal(held_out, split_off_validation(train, share, seed=0)[1])
    assert not torch.equal(held_out, split_off_validation(train, share, seed=1)[1])


def test_a_validation_share_that_leaves_nothing_is_named():
    singles = LabelledFeatures(torch.randn(9, 2), torch.arange(9), 9)
    for share in (0.01, 0.5, 1.0):
        with pytest.raises(ValueError, match=f"validation_share {share} of 9 images"):
            linear_probe(singles, singles, SGD, validation_share=share)
    lists = LabelledFeatures(singles.features, singles.label_lists, 9)
    with pytest.raises(ValueError, match=r"validation_share 1\.0 of 9 images"):
        linear_probe(lists, lists, SGD, validation_share=1.0)
    assert linear_probe(singles, singles, SGD, learning_rates=[0.1], validation_share=0.01).validation == []


def test_the_validation_loss_is_that_of_the_objective():
    train = with_lists(clusters(120))
    options = {"learning_rates": [0.01, 0.1], "refit": False}
    result = linear_probe(train, train, replace(SGD, objective="binary"), **options)
    _, held_out = split_off_validation(train, 0.1, seed=0)
    lists = train.labels[held_out]
    labelled = (lists >= 0).any(dim=1)
    hot = torch.stack([(lists == label).any(dim=1) for label in range(4)], dim=1).float()
    scores = result.head.scores(train.features[held_out])
    expected = F.binary_cross_entropy_with_logits(scores[labelled], hot[labelled], reduction="sum") / labelled.sum()
    (chosen,) = (found for found in result.validation if found["learning_rate"] == result.learning_rate)
    assert chosen["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_standardised_heads_do_not_mind_scale_and_offset():
    train, test = clusters(200), clusters(60, seed=1)
    moved = [
        LabelledFeatures(data.features * torch.tensor([8.0, 1, 2, 4, 0.5, 64]) - 16, data.labels, 4)
        for data in (train, test)
    ]
    rates = [0.01, 0.1]
    plain = linear_probe(train, test, SGD, learning_rates=rates)
    shifted = linear_probe(*moved, SGD, learning_rates=rates)
    assert plain.test == shifted.test
    torch.testing.assert_close(
        plain.head.scores(test.features), shifted.head.scores(moved[1].features), rtol=1e-2, atol=1e-2
    )
    raw = linear_probe(*moved, SGD, learning_rates=rates, standardize=False)
    assert raw.test["top1"] < plain.test["top1"]


def test_a_constant_feature_is_harmless():
    train = clusters(100)
    dead = LabelledFeatures(torch.cat([train.features, torch.full((100, 1), 7.0)], dim=1), train.labels, 4)
    assert linear_probe(dead, dead, SGD).test["top1"] == pytest.approx(linear_probe(train, train, SGD).test["top1"])


def test_heads_that_diverge_are_passed_over():
    train, test = clusters(100), clusters(40, seed=1)
    result = linear_probe(train, test, SGD, learning_rates=[0.05, 1e38])
    assert result.learning_rate == 0.05
    assert result.validation[1] == {"learning_rate": 1e38, "loss": None}
    for rates in ([1e38, 2e38], [1e38]):
        with pytest.raises(ValueError, match="diverged"):
            linear_probe(train, test, SGD, learning_rates=rates)


@pytest.mark.parametrize("objective", ["softmax", "binary"])
def test_label_lists_are_chosen_and_scored_by_mean_average_precision(objective: str):
    train, test = (with_lists(clusters(300, seed=seed, noise=0.3)) for seed in (0, 1))
    protocol = replace(SGD, objective=objective)
    result = linear_probe(train, test, protocol)
    assert result.test["mAP"] > 0.7
    assert max(scores["mAP"] for scores in result.validation) == next(
        scores["mAP"] for scores in result.validation if scores["learning_rate"] == result.learning_rate
    )
    # Logits of a softmax are only known up to a constant for each image, which an order of images must not see.
    logits = result.head.scores(test.features)
    comparable = logits.softmax(dim=1) if objective == "softmax" else logits
    assert result.test["mAP"] == pytest.approx(mean_average_precision(comparable, test.labels), abs=1e-3)
    if objective == "softmax":
        assert result.test["mAP"] != pytest.approx(mean_average_precision(logits, test.labels), abs=1e-3)
    shuffled = LabelledFeatures(test.features, test.labels.roll(1, dims=0), 4)
    worse = linear_probe(train, shuffled, protocol)
    assert worse.test["mAP"] < 0.6
    assert worse.learning_rate == result.learning_rate


def test_a_seed_is_a_result_and_another_seed_another():
    train, test = clusters(120), clusters(40, seed=1)
    first, again, other = (linear_probe(train, test, SGD, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.head.weight, again.head.weight)
    assert first.validation == again.validation
    assert not torch.equal(first.head.weight, other.head.weight)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    linear_probe(clusters(60), clusters(20, seed=1), SGD)
    assert torch.equal(before, torch.get_rng_state())


def test_protocols_have_the_numbers_of_their_sources():
    mae, sgd = PROTOCOLS["mae"], PROTOCOLS["sgd"]  # He et al. 2021, table 10; pytorch/vision#5793
    assert (mae.optimizer, mae.batch_size, mae.epochs, mae.warmup_epochs) == ("lars", 16384, 90, 10)
    assert (mae.momentum, mae.weight_decay, mae.objective) == (0.9, 0, "softmax")
    assert 0.1 in mae.base_learning_rates
    assert (sgd.optimizer, sgd.batch_size, sgd.epochs, sgd.warmup_epochs) == ("sgd", 1024, 28, 0)
    assert (sgd.momentum, sgd.weight_decay, sgd.objective) == (0.9, 1e-9, "softmax")


@pytest.mark.parametrize(
    ("images", "expected"),
    [(20, (20, 20)), (300, (32, 32)), (8000, (500, 500)), (60_000, (3750, 1024)), (1_281_167, (16384, 1024))],
)
def test_batches_shrink_with_the_data(images: int, expected: Sequence[int]):
    assert tuple(PROTOCOLS[name].batch_size_for(images) for name in ("mae", "sgd")) == tuple(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adam"}, "adam"),
        ({"base_learning_rates": ()}, "at least one"),
        ({"base_learning_rates": (0.1, -1.0)}, "positive"),
        ({"epochs": 0}, "epochs is 0"),
        ({"warmup_epochs": 28}, "warmup_epochs is 28"),
    ],
)
def test_an_impossible_protocol_is_named(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(PROTOCOLS["sgd"], **changes)


def test_data_that_do_not_fit_together_are_refused():
    train = clusters(40)
    with pytest.raises(ValueError, match="6 features and 4 classes, test 5 and 4"):
        linear_probe(train, LabelledFeatures(train.features[:, :5], train.labels, 4), SGD)
    with pytest.raises(ValueError, match="one kind"):
        linear_probe(train, with_lists(train), SGD)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.int64), "torch.float64"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "expected float32"),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), "expected int64"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), r"0\.\.1"),
        (torch.zeros(3, 2), torch.tensor([0, 1, -100]), r"0\.\.1"),
        (torch.zeros(3, 2), torch.full((3, 1), -100), "there must be one"),
        (torch.tensor([[0.0, float("nan")]]), torch.tensor([0]), "NaN or infinity"),
        (torch.tensor([[0.0, float("inf")]]), torch.tensor([0]), "NaN or infinity"),
    ],
)
def test_unusable_features_and_labels_are_named(features: torch.Tensor, labels: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        LabelledFeatures(features, labels, 2)
