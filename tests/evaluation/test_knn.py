import math
from collections import defaultdict

import pytest
import torch

from maws_hf.evaluation import knn
from maws_hf.evaluation.features import LabelledFeatures
from maws_hf.evaluation.knn import knn_classify, knn_votes


def random_features(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


def brute_force_votes(bank: list, lists: list[list[int]], query: list[float], k: int, temperature: float) -> dict:
    """Wu et al. 2018, section 3.4, in plain Python."""

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    similarities = sorted(((cosine(query, image), place) for place, image in enumerate(bank)), reverse=True)
    votes: dict[int, float] = defaultdict(float)
    for similarity, place in similarities[:k]:
        for label in lists[place]:
            votes[label] += math.exp(similarity / temperature)
    return votes


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("at_once", [1, 100, 10**9])
def test_votes_equal_counting(multi_label: bool, at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(knn, "SIMILARITIES_AT_ONCE", at_once)
    bank, queries = random_features(30, 0), random_features(13, 1)
    lists = [[place % 4] for place in range(30)]
    labels = torch.arange(30) % 4
    if multi_label:
        lists = [sorted({place % 4, place % 3}) if place % 5 else [] for place in range(30)]
        labels = torch.tensor([row + [-100] * (3 - len(row)) for row in lists])
    votes = knn_votes(LabelledFeatures(bank, labels, 4), queries, [1, 3, 7])
    assert list(votes) == [1, 3, 7]
    for k, scores in votes.items():
        for query, row in zip(queries.tolist(), scores.tolist(), strict=True):
            expected = brute_force_votes(bank.tolist(), lists, query, k, 0.07)
            everyone = sum(brute_force_votes(bank.tolist(), [[0]] * 30, query, k, 0.07).values())
            assert row == pytest.approx([expected[label] / everyone for label in range(4)], rel=1e-3, abs=1e-6)


def test_one_neighbour_finds_the_image_itself_whatever_its_length():
    train = LabelledFeatures(random_features(40, 2), torch.arange(40), 40)
    stretched = LabelledFeatures(3.7 * train.features, train.labels, 40)
    assert knn_classify(train, stretched, [1]) == {1: {"top1": 1.0}}
    wrong = LabelledFeatures(train.features, train.labels.flip(0), 40)
    assert knn_classify(train, wrong, [1]) == {1: {"top1": 0.0}}


def test_a_high_temperature_is_a_plain_majority():
    direction = torch.tensor([[1.0, 0.0], [1.0, 0.5], [1.0, 0.6]])
    train = LabelledFeatures(direction, torch.tensor([0, 1, 1]), 2)
    query = LabelledFeatures(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), 2)
    assert knn_classify(train, query, [3], temperature=0.01)[3]["top1"] == 1
    assert knn_classify(train, query, [3], temperature=100.0)[3]["top1"] == 0


def test_label_lists_are_scored_by_mean_average_precision():
    labels = torch.tensor([[place % 3, 3] for place in range(30)])
    train = LabelledFeatures(random_features(30, 3), labels, 4)
    assert knn_classify(train, train, [1]) == {1: {"mAP": 1.0}}


@pytest.mark.parametrize(("neighbours", "message"), [([0, 3], "k is .0, 3."), ([9], "the 8 training"), ([], "k is")])
def test_an_impossible_number_of_neighbours_is_named(neighbours: list[int], message: str):
    train = LabelledFeatures(random_features(8, 4), torch.arange(8), 8)
    with pytest.raises(ValueError, match=message):
        knn_classify(train, train, neighbours)


def test_data_of_other_classes_or_encoders_are_refused():
    train = LabelledFeatures(random_features(8, 4), torch.arange(8), 8)
    with pytest.raises(ValueError, match="8 classes and test 9"):
        knn_classify(train, LabelledFeatures(train.features, train.labels, 9), [1])
    with pytest.raises(ValueError, match=r"expected \(N, 5\)"):
        knn_votes(train, train.features[:, :4], [1])
    with pytest.raises(ValueError, match=r"expected \(N, 5\)"):
        knn_votes(train, train.features[:, :, None], [1])
    lists = LabelledFeatures(train.features, train.label_lists, 8)
    for voters, asked in ((train, lists), (lists, train)):
        with pytest.raises(ValueError, match="one of them has label lists"):
            knn_classify(voters, asked, [1])


def test_twenty_neighbours_at_temperature_007_are_the_default():
    train, asked = LabelledFeatures(random_features(30, 5), torch.arange(30) % 3, 3), random_features(4, 6)
    votes = knn_votes(train, asked)
    torch.testing.assert_close(votes, knn_votes(train, asked, [20], temperature=0.07))
    test = LabelledFeatures(random_features(200, 7), torch.arange(200) % 3, 3)
    top1 = float((knn_votes(train, test.features)[20].argmax(dim=1) == test.labels).double().mean())
    assert knn_classify(train, test) == {20: {"top1": pytest.approx(top1)}}
