"""Resampling: the formula, the threshold for a wanted ratio, and what a stream makes of it."""

import itertools
import json
import math
import pickle
from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import IterableDataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maws_hf.data.loader import build_loader, loader_state, restore_loader
from maws_hf.data.resampling import RepeatFactors, RepeatRows, count_labels, solve_threshold
from maws_hf.data.streaming import ImageStream, StreamError, StreamStateError

pytestmark = pytest.mark.filterwarnings("ignore:.*shards cannot be dealt evenly", "ignore:.*worker processes in total")

CLASSES = 6
multi_label_sets = st.lists(
    st.lists(st.integers(0, CLASSES - 1), max_size=3, unique=True), min_size=1, max_size=40
).filter(any)


def frequencies_of(label_lists):
    """f(c) by the definition: the share of labelled images that carry c."""
    labelled = [labels for labels in label_lists if labels]
    return {c: sum(c in labels for labels in labelled) / len(labelled) for labels in labelled for c in labels}


def factor_of(labels, frequencies, threshold):
    """r(I) by the definition."""
    return max((max(1, math.sqrt(threshold / frequencies[c])) for c in labels), default=0)


def ratio_of(label_lists, threshold):
    frequencies = frequencies_of(label_lists)
    factors = [factor_of(labels, frequencies, threshold) for labels in label_lists if labels]
    return math.fsum(factors) / len(factors)


# ------------------------------------------------------------------------------------------------------ counting


def test_counts_and_rarest_labels_of_a_small_set():
    counts, rarest, images = count_labels(iter([[0], [0, 1], [0, 1, 2, 2], [], [3]]), 5)
    assert counts.tolist() == [3, 2, 1, 1, 0]
    assert rarest.tolist() == [1, 1, 1, 1, 0]
    assert images == 4


def test_more_classes_than_two_bytes_number_are_counted():
    counts, rarest, images = count_labels([[69_999, 3], [3]], 70_000)
    assert counts[[3, 69_999]].tolist() == [2, 1]
    assert rarest[[3, 69_999]].tolist() == [1, 1]
    assert images == counts.sum() - 1 == 2


@given(multi_label_sets)
def test_counting_agrees_with_a_loop_over_the_images(label_lists):
    counts, rarest, images = count_labels(label_lists, CLASSES)
    every = Counter(itertools.chain(*label_lists))
    assert counts.tolist() == [every[c] for c in range(CLASSES)]
    deciding = Counter(min(labels, key=lambda c: (every[c], c)) for labels in label_lists if labels)
    assert rarest.tolist() == [deciding[c] for c in range(CLASSES)]
    assert images == sum(map(bool, label_lists))


def test_label_that_is_no_class_names_its_image():
    with pytest.raises(ValueError, match=r"image 1 has the label 6, which is not in 0\.\.5"):
        count_labels([[0], [2, 6]], CLASSES)
    with pytest.raises(ValueError, match="image 0 has the label -100"):
        count_labels([[-100, 3]], CLASSES)


def test_no_labels_at_all_are_counted_but_nothing_is_solved_from_them():
    counts, rarest, images = count_labels([[], []], 3)
    assert (counts.tolist(), rarest.tolist(), images) == ([0, 0, 0], [0, 0, 0], 0)
    with pytest.raises(ValueError, match="images is 0: no image has a label"):
        RepeatFactors.from_ratio(counts, rarest, images, 1)


# ------------------------------------------------------------------------------------------------------- formula


@given(multi_label_sets, st.floats(0, 1))
def test_factors_are_those_of_the_definition(label_lists, threshold):
    factors = RepeatFactors(*count_labels(label_lists, CLASSES), threshold)
    frequencies = frequencies_of(label_lists)
    for labels in label_lists:
        assert factors.of(labels) == pytest.approx(factor_of(labels, frequencies, threshold), rel=1e-12)
    assert factors.ratio == pytest.approx(ratio_of(label_lists, threshold), rel=1e-12)


def test_factors_of_known_numbers():
    factors = RepeatFactors([64, 16, 4, 0], [60, 16, 4, 0], 80, threshold=16 / 80)
    assert factors.by_class.tolist() == [1, 1, 2, 1]
    assert [factors.of(labels) for labels in ([0], [0, 2], [3], [])] == [1, 2, 1, 0]
    assert factors.ratio == (60 + 16 + 2 * 4) / 80
    assert str(factors) == "an epoch shows 1.05 x the images, the rarest 2 times (t = 0.2)"


def test_label_that_is_no_class_has_no_factor():
    factors = RepeatFactors([2, 1], [2, 1], 3, threshold=0.5)
    for labels in ([0, 2], [2]):
        with pytest.raises(ValueError, match=r"label 2 is not in 0\.\.1"):
            factors.of(labels)
    with pytest.raises(ValueError, match=r"label -100 is not in 0\.\.1"):
        factors.of(np.array([1, -100]))


@pytest.mark.parametrize(
    ("counts", "rarest", "images", "message"),
    [
        ([2, 1], [2, 1, 0], 3, r"counts \(2,\) and rarest \(3,\) must both hold one number for each class"),
        ([[2, 1]], [[2, 1]], 3, r"counts \(1, 2\) and rarest \(1, 2\) must both hold one number for each class"),
        ([2, 1], [1, 2], 3, "class 1 is the rarest of 2 and in 1 of 3 images"),
        ([2, 2], [-1, 2], 3, "class 0 is the rarest of -1 and in 2 of 3 images"),
        ([4, 1], [2, 1], 3, "class 0 is the rarest of 2 and in 4 of 3 images"),
        ([2, 1], [1, 1], 3, "rarest adds up to 2, not to the 3 images"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(counts, rarest, images, message):
    with pytest.raises(ValueError, match=message):
        RepeatFactors(counts, rarest, images, threshold=0.1)
    with pytest.raises(ValueError, match=message):
        solve_threshold(counts, rarest, images, ratio=1.5)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
def test_threshold_is_a_share(threshold):
    with pytest.raises(ValueError, match=f"threshold is {threshold}, it must be a share"):
        RepeatFactors([2, 1], [2, 1], 3, threshold)


# ----------------------------------------------------------------------------------------------------- threshold


@settings(max_examples=200)
@given(multi_label_sets, st.floats(0, 1))
def test_threshold_is_that_of_a_bisection_over_the_images(label_lists, share):
    counts, rarest, images = count_labels(label_lists, CLASSES)
    largest = max(counts[rarest > 0]) / images
    most = ratio_of(label_lists, largest)
    ratio = 1 + share * (most - 1)
    assume(1 + 1e-6 < ratio <= most)
    low, high = 0.0, largest
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio_of(label_lists, middle) < ratio else (low, middle)
    threshold = solve_threshold(counts, rarest, images, ratio)
    assert threshold == pytest.approx(high, rel=1e-6)
    assert ratio_of(label_lists, threshold) == pytest.approx(ratio, rel=1e-9)


def test_a_higher_ratio_has_a_higher_threshold_and_the_papers_is_reached():
    counts = np.round(100_000 / np.arange(1, 1001)).astype(np.int64)  # Zipf's law
    images = int(counts.sum())
    ratios = [1, 1.01, 1.5, 5 / 3, 2, 4]
    factors = [RepeatFactors.from_ratio(counts, counts, images, ratio) for ratio in ratios]
    assert [found.ratio for found in factors] == pytest.approx(ratios, rel=1e-9)
    thresholds = [found.threshold for found in factors]
    assert thresholds == sorted(set(thresholds))
    assert len({found.fingerprint for found in factors}) == len(ratios)


def test_ratio_one_repeats_nothing():
    factors = RepeatFactors.from_ratio([5, 3, 1], [4, 3, 1], 8, ratio=1)
    assert factors.threshold == 0
    assert factors.by_class.tolist() == [1, 1, 1]
    assert str(factors) == "no image is repeated"


@pytest.mark.parametrize("ratio", [0.99, -1, math.inf, math.nan])
def test_ratio_below_one_is_refused(ratio):
    with pytest.raises(ValueError, match=f"ratio is {ratio}, it must be finite and at least 1"):
        solve_threshold([2, 1], [2, 1], 3, ratio)


def test_ratio_that_only_a_longer_epoch_would_reach_is_refused():
    with pytest.raises(ValueError, match=r"ratio is 1\.5, but .* reaches at most 1: ask for that or less"):
        solve_threshold([10, 10, 10], [10, 10, 10], 30, ratio=1.5)
    # 9 images once and one sqrt(9) = 3 times: 1.2 is the end, where t is the frequency of the common class.
    assert solve_threshold([9, 1], [9, 1], 10, ratio=1.2) == pytest.approx(0.9)
    for ratio in (1.21, 1.2001):
        with pytest.raises(ValueError, match=rf"ratio is {ratio}, but .* at most 1\.2: ask"):
            solve_threshold([9, 1], [9, 1], 10, ratio)


def test_the_most_that_is_told_is_reached():
    with pytest.raises(ValueError, match=r"at most 1\.205: ask"):
        solve_threshold([7, 1], [7, 1], 8, ratio=2)
    assert RepeatFactors.from_ratio([7, 1], [7, 1], 8, ratio=1.205).ratio == pytest.approx(1.205)


def test_rounding_at_the_limit_never_asks_for_more_than_all_images():
    counts, rarest = [19, 27, 15, 18, 108], [19, 27, 15, 18, 29]
    most = sum(part * (108 / count) ** 0.5 for part, count in zip(rarest, counts, strict=True)) / 108
    for ratio in (most, math.nextafter(most, 2), most * (1 + 1e-12)):
        factors = RepeatFactors.from_ratio(counts, rarest, 108, ratio)
        assert factors.threshold == 1.0
        assert factors.ratio == pytest.approx(most)


def test_a_class_that_decides_no_image_does_not_raise_the_end():
    # Every image has label 0, and another that is rarer: at the end those of label 1 have the factor 1.
    counts, rarest, images = count_labels([[0, 1]] * 9 + [[0, 2]], 3)
    with pytest.raises(ValueError, match=r"at most 1\.2: ask"):
        solve_threshold(counts, rarest, images, ratio=1.3)


# -------------------------------------------------------------------------------------------------------- stream

LABELS = [[0]] * 6 + [[0, 1]] * 10 + [[0, 2]] * 8 + [[]] * 4 + [[0, 3]] * 4 + [[1, 4]] * 2 + [[5]]
UNLABELLED = {number for number, labels in enumerate(LABELS) if not labels}
LABELLED = len(LABELS) - len(UNLABELLED)


def rows(shards):
    for number in itertools.chain(*shards):
        yield {"id": number, "labels": LABELS[number]}


def dataset(shards=3):
    numbers = np.random.default_rng(0).permutation(len(LABELS)).tolist()
    return IterableDataset.from_generator(rows, gen_kwargs={"shards": [numbers[i::shards] for i in range(shards)]})


def labels_of(sample):
    return sample["labels"]


def keep_key(sample, rng):
    if int(sample["__key__"]) in UNLABELLED:
        raise ZeroDivisionError("a row without labels was decoded")
    return {"key": sample["__key__"], "draw": rng.random()}


def repeats_of(ratio):
    return RepeatRows(RepeatFactors.from_ratio(*count_labels(LABELS, CLASSES), ratio), labels_of)


def stream_of(ratio, **options):
    return ImageStream(dataset(), keep_key, seed=2, block_size=10, repeats=repeats_of(ratio), **options)


def copies_by_epoch(stream, count):
    found = [Counter() for _ in range(count)]
    for sample in stream:
        epoch = stream.state_dict()["epoch"]
        if epoch >= count:
            return found
        found[epoch][int(sample["key"])] += 1


def test_stream_shows_each_label_set_as_often_as_the_formula_says():
    epochs, ratio = 60, 5 / 3
    found = copies_by_epoch(stream_of(ratio), epochs)
    threshold = solve_threshold(*count_labels(LABELS, CLASSES), ratio)
    frequencies = frequencies_of(LABELS)
    factors = [factor_of(labels, frequencies, threshold) for labels in LABELS]
    for copies in found:
        assert all(math.floor(factors[i]) <= copies[i] <= math.ceil(factors[i]) for i in range(len(LABELS)))
    # An image's copies less the floor are one draw of 0 or 1. By Hoeffding the mean of n of them is further than
    # sqrt(ln(2 / p) / 2n) from the fraction with a probability of p at most; p = 1e-6, and the seed is fixed.
    total = sum(found, Counter())
    for labels in map(list, {tuple(labels) for labels in LABELS}):
        images = [number for number, these in enumerate(LABELS) if these == labels]
        draws = epochs * len(images)
        mean = sum(total[number] for number in images) / draws
        assert abs(mean - factors[images[0]]) <= math.sqrt(math.log(2 / 1e-6) / (2 * draws)), labels
    reached = total.total() / (epochs * LABELLED)
    assert abs(reached - ratio) <= math.sqrt(math.log(2 / 1e-6) / (2 * epochs * LABELLED))


def test_ratio_one_leaves_a_labelled_stream_as_it_is():
    labelled = dataset().filter(lambda row: row["labels"] != [])
    plain = ImageStream(labelled, keep_key, seed=2, block_size=10)
    same = ImageStream(labelled, keep_key, seed=2, block_size=10, repeats=repeats_of(1))
    assert list(itertools.islice(same, 100)) == list(itertools.islice(plain, 100))


def test_rows_without_labels_are_left_out_at_ratio_one():
    for copies in copies_by_epoch(stream_of(1), 2):
        assert copies == dict.fromkeys(set(range(len(LABELS))) - UNLABELLED, 1)


def test_label_that_was_not_counted_as_a_class_ends_the_stream():
    narrow = RepeatRows(RepeatFactors([5, 4], [5, 4], 9, threshold=0.5), labels_of)
    stream = ImageStream(dataset(), keep_key, seed=2, repeats=narrow)
    with pytest.raises(StreamError, match=r"^\d+: ValueError in `repeats`: label [2-5] is not in 0\.\.1"):
        next(iter(stream))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_loader_resumes_at_any_copy(workers):
    def loader_of():
        return build_loader(stream_of(5 / 3, num_workers=workers), batch_size=1)

    def take(loader, count):
        return [(batch["keys"], batch["draw"].tolist()) for batch in itertools.islice(iter(loader), count)]

    last, ahead = 56, 4  # an epoch is about 52 copies
    expected = take(loader_of(), last + ahead)
    loader = loader_of()
    states = [json.dumps(loader_state(loader))]
    states += [json.dumps(loader_state(loader)) for _ in itertools.islice(iter(loader), last)]
    for k in range(0, last + 1, 5 if workers else 1):  # workers take time to start; 5 meets both in turn
        fresh = loader_of()
        restore_loader(fresh, json.loads(states[k]))
        assert take(fresh, ahead) == expected[k : k + ahead], k


def test_ranks_and_real_workers_make_every_copy_once():
    # Four shards for four consumers, each with four rows of factor 1 and one of factor 2: six samples an epoch each.
    labels = [[1] if number % 5 == 0 else [0] for number in range(20)]
    shards = [list(range(first, first + 5)) for first in range(0, 20, 5)]
    data = IterableDataset.from_generator(numbers_of, gen_kwargs={"shards": shards})
    repeats = RepeatRows(RepeatFactors([16, 4], [16, 4], 20, threshold=16 / 20), partial(label_at, labels=labels))
    seen = Counter()
    for rank in range(2):
        stream = ImageStream(data, keep_id, seed=2, rank=rank, world_size=2, num_workers=2, repeats=repeats)
        batches = itertools.islice(iter(build_loader(stream, batch_size=1)), 12)
        seen.update(int(batch["keys"][0]) for batch in batches)
    assert seen == {number: 2 if number % 5 == 0 else 1 for number in range(20)}


def numbers_of(shards):
    for number in itertools.chain(*shards):
        yield {"id": number}


def label_at(sample, labels):
    return labels[sample["id"]]


def keep_id(sample, rng):
    return {"key": sample["__key__"]}


def test_other_ratio_is_refused_on_resume():
    state = json.loads(json.dumps(loader_state(build_loader(stream_of(1.5), batch_size=2))))
    restore_loader(build_loader(stream_of(1.5), batch_size=2), state)
    before, now = repeats_of(1.5).fingerprint, repeats_of(1.6).fingerprint
    message = rf"a stream with repeats {before} \(now {now}\): continue with the same values"
    with pytest.raises(StreamStateError, match=message):
        restore_loader(build_loader(stream_of(1.6), batch_size=2), state)


def test_rows_of_other_factors_or_other_classes_have_another_fingerprint():
    few, many = (RepeatFactors([4, 8], [4, 4], 8, threshold) for threshold in (0.0, 0.9))
    one, other = (SimpleNamespace(fingerprint=name) for name in ("one", "other"))
    names = {RepeatRows(factors, labels).fingerprint for factors in (few, many) for labels in (one, other)}
    assert len(names) == 4
    one, *others = (([4, 8], [4, 4], 8, 0.9), ([4, 8], [4, 4], 8, 0.9001), ([2, 8], [2, 6], 8, 0.9))
    assert RepeatFactors(*one).fingerprint not in {RepeatFactors(*other).fingerprint for other in others}


def test_rule_goes_to_a_worker_by_pickle():
    repeats = repeats_of(5 / 3)
    same = pickle.loads(pickle.dumps(repeats))  # noqa: S301
    row = {"labels": [2, 3]}
    assert (same(row), same.fingerprint) == (repeats(row), repeats.fingerprint)
