import pytest
import torch

from maws_hf.evaluation import metrics
from maws_hf.evaluation.metrics import (
    average_precision,
    label_ranks,
    mean_average_precision,
    mean_per_class_accuracy,
    multi_hot,
    score_classification,
    score_ranks,
    top_k_accuracy,
)


def brute_force_average_precision(scores: list[float], positives: list[bool]) -> float:
    """sum over thresholds of (recall - previous recall) x precision, by counting."""
    total, previous, area = sum(positives), 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [positive for score, positive in zip(scores, positives, strict=True) if score >= threshold]
        recall, precision = sum(chosen) / total, sum(chosen) / len(chosen)
        area += (recall - previous) * precision
        previous = recall
    return area


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_equals_counting(ties: bool, monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 7, generator=generator)
    if ties:
        scores = (2 * scores).round()
    positives = torch.rand(40, 7, generator=generator) < 0.3
    expected = [brute_force_average_precision(scores[:, c].tolist(), positives[:, c].tolist()) for c in range(7)]
    assert average_precision(scores, positives).tolist() == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr(metrics, "SCORES_AT_ONCE", 85)  # two columns at once, and one is left
    assert average_precision(scores, positives).tolist() == pytest.approx(expected, abs=1e-12)


def test_average_precision_in_closed_form():
    scores = torch.tensor([[0.1, 5.0, 1.0], [0.4, 4.0, 1.0], [0.35, 3.0, 1.0], [0.8, 2.0, 1.0]])
    positives = torch.tensor([[0, 1, 1], [0, 1, 0], [1, 0, 0], [1, 0, 0]]).bool()
    # One of scikit-learn's own examples: (1 + 2/3) / 2. A perfect order: 1. No order at all: the share of positives.
    assert average_precision(scores, positives).tolist() == pytest.approx([5 / 6, 1.0, 1 / 4])
    never = average_precision(scores, torch.zeros_like(positives))
    assert never.isnan().all()


def test_mean_average_precision_averages_over_classes_with_a_positive():
    scores = torch.tensor([[0.1, 0.0, 9.0], [0.4, 1.0, 9.0], [0.35, 2.0, 9.0], [0.8, 3.0, 9.0]])
    labels = torch.tensor([[3, -100], [3, -100], [0, -100], [1, 0]])
    scores = torch.cat([scores, torch.tensor([[9.0], [9.0], [1.0], [1.0]])], dim=1)
    expected = pytest.approx((5 / 6 + 1 + 1) / 3)
    assert mean_average_precision(scores, labels) == expected
    assert score_classification(scores, labels) == {"mAP": expected}
    best = torch.cat([scores, torch.full((1, 4), 99.0)])  # an image that nobody has labelled
    assert mean_average_precision(best, torch.cat([labels, torch.full((1, 2), -100)])) == expected
    with pytest.raises(ValueError, match="none of 4 images has a label"):
        mean_average_precision(scores, torch.full((4, 2), -100))
    with pytest.raises(ValueError, match="NaN"):
        mean_average_precision(scores * float("nan"), labels)


def test_multi_hot_ignores_padding_wherever_it_stands():
    labels = torch.tensor([[2, -100, 0], [-100, -100, -100], [1, 1, -1]])
    assert multi_hot(labels, 3).tolist() == [[True, False, True], [False, False, False], [False, True, False]]


def test_ranks_follow_the_order_of_sorted_scores():
    scores = torch.randn(50, 9, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(50) % 9
    expected = [row.argsort(descending=True).tolist().index(label) for row, label in zip(scores, labels, strict=True)]
    assert label_ranks(scores, labels).tolist() == expected
    for k in (1, 5):
        assert top_k_accuracy(scores, labels, k) == pytest.approx(sum(rank < k for rank in expected) / 50)


def test_a_head_that_tells_nothing_apart_is_no_better_than_chance():
    labels = torch.arange(10)
    assert top_k_accuracy(torch.zeros(10, 10), labels) == pytest.approx(0.1)
    assert top_k_accuracy(torch.zeros(10, 10), labels, k=5) == pytest.approx(0.5)
    assert top_k_accuracy(torch.full((10, 10), float("nan")), labels, k=5) == 0


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 3], "from 0 to 3 for 3 classes"), ([0, -100], "-100 to 0"), ([0], "shape")]
)
def test_labels_that_fit_no_class_are_refused(labels: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        label_ranks(torch.zeros(2, 3), torch.tensor(labels))


def test_rare_classes_count_as_much_as_frequent_ones():
    predicted, labels = torch.tensor([0, 0, 0, 0, 2]), torch.tensor([0, 0, 0, 2, 2])
    scores = torch.eye(4)[predicted]  # the class 3 and the class 1 never occur
    assert mean_per_class_accuracy(scores, labels) == pytest.approx((1 + 1 / 2) / 2)


def test_top1_is_always_told_and_top5_of_more_than_five_classes():
    ranks = torch.tensor([0, 0, 4, 5])
    assert score_ranks(ranks, 6) == {"top1": 0.5, "top5": 0.75}
    assert score_ranks(ranks[:3], 5) == {"top1": pytest.approx(2 / 3)}
    assert score_ranks(ranks[:2], 1) == {"top1": 1.0}


def test_one_nan_among_the_scores_of_an_image_makes_it_wrong():
    scores = torch.tensor([[9.0, 1.0, 2.0], [9.0, float("nan"), 2.0]])
    assert label_ranks(scores, torch.tensor([0, 0])).tolist() == [0, 3]


@pytest.mark.parametrize("shape", [(4, 2), (3, 3), (2, 2)])
def test_positives_of_another_shape_are_refused(shape: tuple[int, int]):
    with pytest.raises(ValueError, match="shapes must agree"):
        average_precision(torch.zeros(3, 2), torch.ones(shape, dtype=torch.bool))
