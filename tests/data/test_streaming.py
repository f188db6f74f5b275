"""The stream: exact partition, exact resume, keyed randomness, bounded skips."""

import hashlib
import io
import itertools
import json
import math
import tarfile
import warnings
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, IterableDataset, Value, iterable_dataset, load_dataset
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from maws_hf.data import streaming
from maws_hf.data.samples import prepare_image, random_rows
from maws_hf.data.sources import digest_of_files, open_stream
from maws_hf.data.streaming import ImageStream, StreamError, StreamStateError
from maws_hf.processing.decode import ImageDecodeError

pytestmark = pytest.mark.filterwarnings("ignore:.*shards cannot be dealt evenly")


def keep_key(sample, rng):
    return {"key": sample["__key__"], "draw": rng.random()}


def rows(numbers):
    for number in numbers:
        yield {"id": number}


def memory_shards(sizes):
    """One shard for each size, with the ids 0, 1, 2, ... in order."""
    ends = list(itertools.accumulate(sizes))
    shards = [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
    return IterableDataset.from_generator(rows_of_shards, gen_kwargs={"shards": shards})


def rows_of_shards(shards):
    for shard in shards:
        yield from rows(shard)


def parquet_shards(folder, shards, rows_each=11, row_group_size=4):
    for shard in range(shards):
        table = pa.table({"id": list(range(shard * rows_each, (shard + 1) * rows_each))})
        pq.write_table(table, folder / f"train-{shard:05d}.parquet", row_group_size=row_group_size)
    return load_dataset("parquet", data_dir=str(folder), split="train", streaming=True)


def picture(shade=0, form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (shade % 256, shade // 256, 0)).save(file, form)
    return file.getvalue()


def tar_shards(folder, shards, images_each=5):
    for shard in range(shards):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i in range(images_each):
                member = tarfile.TarInfo(f"{shard}-{i}.png")
                member.size = len(picture(i))
                tar.addfile(member, io.BytesIO(picture(i)))
    return open_stream(folder)


def image_folder(folder, images=23):
    for i in range(images):
        (folder / f"{i:03d}.png").write_bytes(picture(i))
    return open_stream(folder)


@pytest.fixture
def as_worker(monkeypatch):
    """Makes a stream believe that this process is DataLoader worker `worker` of `workers`."""

    def become(worker, workers):
        info = SimpleNamespace(id=worker, num_workers=workers) if workers else None
        monkeypatch.setattr(streaming, "get_worker_info", lambda: info)

    return become


def take(stream, count):
    return [(sample["key"], sample["draw"]) for sample in itertools.islice(iter(stream), count)]


def epochs(stream, count):
    """The keys of the first `count` epochs, a list for each."""
    found = [[] for _ in range(count)]
    for sample in stream:
        epoch = stream.state_dict()["epoch"]
        if epoch >= count:
            return found
        found[epoch].append(sample["key"])


def all_consumers(dataset, as_worker, ranks, workers, count=2, **options):
    """[epoch][consumer] -> keys."""
    streams = []
    for rank, worker in itertools.product(range(ranks), range(max(1, workers))):
        as_worker(worker, workers)
        stream = ImageStream(dataset, keep_key, seed=3, rank=rank, world_size=ranks, num_workers=workers, **options)
        streams.append(epochs(stream, count))
    return list(zip(*streams, strict=True))


# ---------------------------------------------------------------------------------------------------- partition


@pytest.mark.parametrize("shards", range(1, 8))
def test_every_epoch_is_shared_exactly(tmp_path, as_worker, shards):
    dataset = parquet_shards(tmp_path, shards, rows_each=7, row_group_size=3)
    for ranks, workers in itertools.product((1, 2, 3), (0, 1, 2)):
        for shares in all_consumers(dataset, as_worker, ranks, workers, block_size=4):
            assert sorted(map(int, itertools.chain(*shares))) == list(range(7 * shards)), (ranks, workers)
            lengths = [len(share) for share in shares]
            assert max(lengths) - min(lengths) <= 1, (ranks, workers)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=9),
    ranks=st.integers(1, 3),
    workers=st.integers(0, 3),
    block_size=st.integers(1, 9),
    shuffle=st.booleans(),
)
def test_partition_holds_for_uneven_shards(as_worker, sizes, ranks, workers, block_size, shuffle):
    if sum(sizes) < ranks * max(1, workers):
        return
    dataset = memory_shards(sizes)
    for shares in all_consumers(dataset, as_worker, ranks, workers, block_size=block_size, shuffle=shuffle):
        assert sorted(map(int, itertools.chain(*shares))) == list(range(sum(sizes)))


def test_shards_that_divide_evenly_are_read_by_one_consumer_each(as_worker):
    for shares in all_consumers(memory_shards([4] * 6), as_worker, 3, 0, block_size=4):
        for share in shares:
            assert len({int(number) // 4 for number in share}) == 2


def test_many_shards_are_dealt_whole_even_if_not_evenly(as_worker):
    dataset = memory_shards([1] * 9)
    stream = ImageStream(dataset, keep_key, seed=0, world_size=2)
    assert stream.strategy == "shards"
    first, second = all_consumers(dataset, as_worker, 2, 0, count=1)[0]
    assert sorted(map(int, first + second)) == list(range(9))


def test_a_position_of_another_way_of_dealing_is_known(as_worker):
    as_worker(0, 0)
    stream = ImageStream(memory_shards([1] * 9), keep_key, seed=0, world_size=2)
    next(iter(stream))
    assert stream.differences(stream.identity()) == []
    earlier = {name: value for name, value in stream.identity().items() if name != "strategy"}
    assert stream.differences(earlier) == ["strategy"]  # each rank read everything then
    even = ImageStream(memory_shards([1] * 8), keep_key, seed=0, world_size=2)
    earlier = {name: value for name, value in even.identity().items() if name != "strategy"}
    assert even.differences(earlier) == []


def test_uneven_shards_are_told_once_with_numbers_and_a_way_out():
    with pytest.warns(UserWarning, match=r"5 shards .* \(3 ranks x 2 workers\).* read 6 times .* of 6 shards, or 24"):
        ImageStream(memory_shards([3] * 5), keep_key, seed=0, world_size=3, num_workers=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageStream(memory_shards([3] * 5), keep_key, seed=0, rank=1, world_size=3, num_workers=2)
        ImageStream(memory_shards([3] * 6), keep_key, seed=0, world_size=3, num_workers=2)


def test_fewer_samples_than_consumers_is_an_error(as_worker):
    as_worker(1, 2)
    stream = ImageStream(memory_shards([3]), keep_key, seed=0, rank=1, world_size=2, num_workers=2)
    with pytest.raises(StreamError, match=r"consumer 3 of 4 \(rank 1, worker 1\) finds no sample.*fewer processes"):
        next(iter(stream))


# -------------------------------------------------------------------------------------------------------- order


def test_shuffle_mixes_shards_and_blocks_anew_in_each_epoch(as_worker):
    dataset = memory_shards([8] * 6)
    (first,), (second,) = all_consumers(dataset, as_worker, 1, 0, block_size=8)
    numbers = np.array(list(map(int, first)))
    assert first != second
    assert len({number // 8 for number in numbers[:8]}) == 1  # a block is one shard here ...
    assert list(numbers[::8] // 8) != list(range(6))  # ... and the shards are out of order,
    assert list(numbers[:8]) != sorted(numbers[:8])  # as are the samples within


def test_single_shard_is_shuffled_anew_in_each_epoch_and_block(as_worker):
    found = [keys for (keys,) in all_consumers(memory_shards([64]), as_worker, 1, 0, block_size=16)]
    blocks = [[int(key) for key in keys[start : start + 16]] for keys in found for start in range(0, 64, 16)]
    assert [sorted(block) for block in blocks[:4]] == [sorted(block) for block in blocks[4:]]
    assert len({tuple(np.array(block) - min(block)) for block in blocks}) == 8


def test_each_consumer_has_an_order_of_its_own(as_worker):
    (shares,) = all_consumers(memory_shards([32] * 4), as_worker, 2, 2, count=1, block_size=32)
    assert len({tuple(int(key) % 32 for key in share) for share in shares}) == 4


def test_without_shuffle_every_epoch_is_in_file_order(tmp_path, as_worker):
    dataset = parquet_shards(tmp_path, 3)
    expected = [str(number) for number in range(33)]
    assert all_consumers(dataset, as_worker, 1, 0, block_size=5, shuffle=False) == [(expected,), (expected,)]


def test_seed_decides_and_global_generators_do_not():
    dataset = memory_shards([5] * 4)
    first = take(ImageStream(dataset, keep_key, seed=1), 50)
    torch.manual_seed(5)
    np.random.seed(5)
    assert take(ImageStream(dataset, keep_key, seed=1), 50) == first
    assert take(ImageStream(dataset, keep_key, seed=2), 50) != first


@pytest.mark.parametrize("repeats", [None, lambda sample: 2.0])
def test_draws_differ_between_ranks_epochs_blocks_and_samples(repeats):
    draws = []
    for rank in range(2):
        options = {"rank": rank, "world_size": 2, "block_size": 8, "repeats": repeats}
        draws += [draw for _, draw in take(ImageStream(memory_shards([32] * 2), keep_key, seed=1, **options), 128)]
    assert len(set(draws)) == len(draws)


# ------------------------------------------------------------------------------------------------------- resume


def assert_resumes_everywhere(dataset, count, step=1, ahead=12, **options):
    whole = ImageStream(dataset, keep_key, seed=4, **options)
    expected = take(ImageStream(dataset, keep_key, seed=4, **options), count + ahead)
    states = [whole.state_dict()]
    states += [whole.state_dict() for _ in itertools.islice(iter(whole), count)]
    for k in range(0, count + 1, step):
        fresh = ImageStream(dataset, keep_key, seed=4, **options)
        fresh.load_state_dict(json.loads(json.dumps(states[k])))
        assert fresh.state_dict() == states[k]
        assert take(fresh, ahead) == expected[k : k + ahead], k


@pytest.mark.parametrize("options", [{}, {"rank": 1, "world_size": 2}, {"rank": 0, "world_size": 5}])
def test_parquet_resumes_at_every_sample(tmp_path, options):
    dataset = parquet_shards(tmp_path, 5)
    count = 2 * 55 // options.get("world_size", 1) + 5  # past the second epoch's end
    assert_resumes_everywhere(dataset, count, block_size=7, **options)


@pytest.mark.parametrize("options", [{}, {"rank": 1, "world_size": 2}, {"shuffle": False}])
def test_tar_resumes_at_every_sample(tmp_path, options):
    assert_resumes_everywhere(tar_shards(tmp_path, 3), 33, step=2, block_size=4, **options)


@pytest.mark.parametrize("options", [{}, {"rank": 1, "world_size": 3}])
def test_image_folder_resumes_at_every_sample(tmp_path, options):
    assert_resumes_everywhere(image_folder(tmp_path), 50, step=3, block_size=6, **options)


def test_a_stream_may_begin_with_a_later_epoch():
    dataset = memory_shards([5] * 4)
    third = epochs(ImageStream(dataset, keep_key, seed=1), 3)[2]
    stream = ImageStream(dataset, keep_key, seed=1)
    stream.first_epoch = 2
    assert [key for key, _ in take(stream, 20)] == third


def test_resumed_stream_can_be_stopped_and_resumed_again(tmp_path):
    dataset = parquet_shards(tmp_path, 3)
    expected = take(ImageStream(dataset, keep_key, seed=4, block_size=6), 90)
    found, state = [], None
    while len(found) < 90:
        stream = ImageStream(dataset, keep_key, seed=4, block_size=6)
        if state is not None:
            stream.load_state_dict(json.loads(state))
        found += take(stream, 5)
        state = json.dumps(stream.state_dict())
    assert found == expected


def test_second_iterator_starts_from_the_beginning():
    stream = ImageStream(memory_shards([5] * 4), keep_key, seed=1)
    first = take(stream, 7)
    state = stream.state_dict()
    assert take(stream, 7) == first
    stream.load_state_dict(state)
    assert take(stream, 7) != first
    assert take(stream, 7) == first


def test_state_of_another_stream_is_refused_with_every_difference(as_worker):
    dataset = memory_shards([5] * 4)
    state = ImageStream(dataset, keep_key, seed=1, world_size=2, block_size=8).state_dict()
    other = ImageStream(memory_shards([5] * 3), keep_key, seed=2, world_size=3, block_size=8)
    with pytest.raises(StreamStateError, match=r"seed 1 \(now 2\), world_size 2 \(now 3\), num_shards 4 \(now 3\)"):
        other.load_state_dict(state)
    as_worker(0, 2)
    state = ImageStream(dataset, keep_key, seed=1, num_workers=2).state_dict()
    as_worker(1, 2)
    with pytest.raises(StreamStateError, match="position of worker 0 was given to worker 1"):
        ImageStream(dataset, keep_key, seed=1, num_workers=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"block_size": 9}, r"block_size 8 \(now 9\)"),
        ({"shuffle": False}, r"shuffle True \(now False\)"),
        ({"source": "b"}, r"source a \(now b\)"),
    ],
)
def test_a_position_is_of_no_use_with_any_other_setting(other, told):
    options = {"seed": 1, "block_size": 8, "source": "a"}
    state = ImageStream(memory_shards([5] * 4), keep_key, **options).state_dict()
    with pytest.raises(StreamStateError, match=f"a stream with {told}: continue"):
        ImageStream(memory_shards([5] * 4), keep_key, **(options | other)).load_state_dict(state)


def test_a_position_is_of_the_files_or_of_what_the_rows_were_computed_from(tmp_path):
    dataset = image_folder(tmp_path, images=3)
    assert ImageStream(dataset, keep_key, seed=1).identity()["files"] == digest_of_files(dataset) is not None
    computed = ImageStream(dataset, keep_key, seed=1, source="a tower").identity()
    assert (computed["files"], computed["source"]) == (None, "a tower")


# ------------------------------------------------------------------------------------------------------- copies


@dataclass(frozen=True)
class Repeat:
    """Row number n has the factor `factors[n % len(factors)]`."""

    factors: tuple[float, ...]

    def __call__(self, sample):
        return self.factors[int(sample["__key__"]) % len(self.factors)]

    @property
    def fingerprint(self):
        return "-".join(map(str, self.factors))


HALF = Repeat((0.5,))
REPEATS = Repeat((1.0, 2.5, 0.0, 1.25, 3.0, 0.5, 1.0))


@pytest.mark.parametrize("shards", [1, 3, 6])
def test_every_row_has_the_floor_or_the_ceiling_of_its_factor_in_every_epoch(tmp_path, as_worker, shards):
    dataset = parquet_shards(tmp_path, shards, rows_each=14, row_group_size=4)
    for ranks, workers in itertools.product((1, 2, 3), (0, 1, 2)):
        for shares in all_consumers(dataset, as_worker, ranks, workers, block_size=5, repeats=REPEATS):
            copies = Counter(int(key) for key in itertools.chain(*shares))
            for number in range(14 * shards):
                factor = REPEATS.factors[number % 7]
                assert math.floor(factor) <= copies[number] <= math.ceil(factor), (ranks, workers, number)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=9),
    copies=st.lists(st.integers(0, 4), min_size=1, max_size=7).filter(any),
    ranks=st.integers(1, 2),
    workers=st.integers(0, 2),
    block_size=st.integers(1, 9),
    shuffle=st.booleans(),
)
def test_whole_factors_are_exact_for_uneven_shards(as_worker, sizes, copies, ranks, workers, block_size, shuffle):
    repeats = Repeat(tuple(map(float, copies)))
    options = {"block_size": block_size, "shuffle": shuffle, "repeats": repeats}
    expected = [number for number in range(sum(sizes)) for _ in range(copies[number % len(copies)])]
    try:
        found = all_consumers(memory_shards(sizes), as_worker, ranks, workers, **options)
    except StreamError:
        assume(False)  # some consumer's share was empty, or all of factor 0
    for shares in found:
        assert sorted(map(int, itertools.chain(*shares))) == expected


def test_a_fraction_is_the_probability_of_one_more_copy():
    count = 200
    stream = ImageStream(memory_shards([9] * 4), keep_key, seed=8, block_size=16, repeats=REPEATS)
    copies = Counter(int(key) for epoch in epochs(stream, count) for key in epoch)
    # Hoeffding: the mean of 200 draws is further than this from its expectation with a probability of 1e-6 / 36 at
    # most, thus any of 36 rows with 1e-6. The seed is fixed: a failure is a change of the code, not bad luck.
    bound = math.sqrt(math.log(2 * 36 / 1e-6) / (2 * count))
    for number in range(36):
        factor = REPEATS.factors[number % 7]
        assert abs(copies[number] / count - factor) <= (bound if factor % 1 else 0), number
    expected = sum(REPEATS.factors[number % 7] for number in range(36))
    fractional = [number for number in range(36) if REPEATS.factors[number % 7] % 1]
    bound = math.sqrt(len(fractional) * math.log(2 / 1e-6) / (2 * count))  # of the sum of that many means
    assert abs(copies.total() / count - expected) <= bound


def test_copies_are_drawn_anew_for_each_epoch_block_consumer_and_seed():
    def copies(seed, **options):
        """Places within its shard of the rows that have a copy, for each epoch and half of it."""
        stream = ImageStream(memory_shards([40] * 2), keep_key, seed=seed, block_size=20, repeats=HALF, **options)
        found = [sorted(int(key) % 40 for key in epoch) for epoch in epochs(stream, 2)]
        return [tuple(n % 20 for n in epoch if n // 20 == half) for epoch in found for half in (0, 1)]

    every = copies(1, rank=0, world_size=2) + copies(1, rank=1, world_size=2) + copies(2, rank=0, world_size=2)
    assert len(set(every)) == 12


def test_which_rows_have_a_copy_says_nothing_of_how_they_are_augmented():
    stream = ImageStream(memory_shards([400]), keep_key, seed=1, block_size=1, shuffle=False, repeats=HALF)
    found = [(int(key), draw) for key, draw in take(stream, 150)]
    rows = {row for row, _ in found}
    # A row is a block here, so that sample n and block n are told apart by what they are drawn for alone.
    alike = sum((draw < 0.5) == (number in rows) for number, (_, draw) in enumerate(found))
    assert abs(alike - 75) < 5 * math.sqrt(150 / 4)


@pytest.mark.parametrize("shuffle", [True, False])
def test_one_copy_of_each_row_is_the_stream_without_repeats(tmp_path, shuffle):
    dataset = parquet_shards(tmp_path, 3)
    options = {"seed": 1, "block_size": 7, "shuffle": shuffle}
    expected = take(ImageStream(dataset, keep_key, **options), 80)
    assert take(ImageStream(dataset, keep_key, repeats=Repeat((1.0,)), **options), 80) == expected


def test_copies_lie_apart_in_a_shuffled_block_and_side_by_side_in_file_order():
    options = {"seed": 1, "block_size": 20, "repeats": Repeat((3.0,))}
    key_order = [key for key, _ in take(ImageStream(memory_shards([20]), keep_key, shuffle=False, **options), 60)]
    assert key_order == [str(number) for number in range(20) for _ in range(3)]
    keys = [key for key, _ in take(ImageStream(memory_shards([20]), keep_key, **options), 60)]
    assert sum(key == following for key, following in itertools.pairwise(keys)) < 10  # of 40 side by side


def test_each_copy_has_a_generator_and_a_nameless_one_a_name_of_its_own():
    dataset = IterableDataset.from_generator(lambda: ({"x": i} for i in range(3)))
    found = take(ImageStream(dataset, keep_key, seed=1, repeats=lambda sample: 2.0 * sample["x"]), 6)
    assert [key for key, _ in found] == [f"epoch 0 consumer 0 sample {i}" for i in range(6)]
    assert len({draw for _, draw in found}) == 6


def test_row_of_factor_zero_never_reaches_the_transform():
    seen = []

    def transform(sample, rng):
        seen.append(int(sample["__key__"]))
        return keep_key(sample, rng)

    take(ImageStream(memory_shards([30]), transform, seed=1, repeats=Repeat((0.0, 1.0, 0.0))), 30)
    assert set(seen) == set(range(1, 30, 3))


def test_epoch_without_a_label_ends_the_stream_and_one_of_bad_luck_does_not():
    stream = ImageStream(memory_shards([6]), keep_key, seed=1, repeats=Repeat((0.0,)))
    with pytest.raises(StreamError, match=r"consumer 0 of 1 .* no row with a label among its 6 in epoch 0"):
        next(iter(stream))
    found = epochs(ImageStream(memory_shards([1]), keep_key, seed=1, repeats=Repeat((0.25,))), 40)
    assert {len(epoch) for epoch in found} == {0, 1}


@pytest.mark.parametrize("options", [{}, {"rank": 1, "world_size": 2}, {"shuffle": False}])
def test_parquet_resumes_at_every_copy(tmp_path, options):
    dataset = parquet_shards(tmp_path, 3)
    assert_resumes_everywhere(
        dataset, 2 * 44 // options.get("world_size", 1) + 5, block_size=7, repeats=REPEATS, **options
    )


@pytest.mark.parametrize("options", [{}, {"rank": 1, "world_size": 2}])
def test_tar_resumes_at_every_copy(tmp_path, options):
    repeats = CountOfName()
    assert_resumes_everywhere(tar_shards(tmp_path, 3), 40, step=3, block_size=4, repeats=repeats, **options)


class CountOfName:
    fingerprint = "by name"

    def __call__(self, sample):
        return len(sample["__key__"]) % 2 + int(sample["__key__"][-1]) / 2  # "2-3": 1 + 1.5


def test_position_under_another_rule_is_refused_and_an_old_one_without_any_is_not():
    dataset = memory_shards([5] * 4)
    plain = ImageStream(dataset, keep_key, seed=1)
    halves = ImageStream(dataset, keep_key, seed=1, repeats=Repeat((1.5,)))
    for stream, state, message in (
        (halves, plain.state_dict(), r"repeats None \(now 1.5\): continue with the same"),
        (plain, halves.state_dict(), r"repeats 1.5 \(now None\)"),
        (ImageStream(dataset, keep_key, seed=1, repeats=Repeat((2.0,))), halves.state_dict(), r"1.5 \(now 2.0\)"),
        (ImageStream(dataset, keep_key, seed=1, repeats=lambda sample: 1.0), plain.state_dict(), "repeats None"),
    ):
        with pytest.raises(StreamStateError, match=message):
            stream.load_state_dict(state)
    state = plain.state_dict()
    del state["identity"]["repeats"]
    plain.load_state_dict(state)


class OfLabels(Repeat):
    labels_fingerprint = "3.0"

    @property
    def fingerprint(self):
        return f"{self.factors[0]}-{self.labels_fingerprint}"


def test_labels_of_a_position_are_known_by_the_rule_where_they_were_not_saved():
    stream = ImageStream(memory_shards([5] * 4), keep_key, seed=1, repeats=OfLabels((2.0,)))
    saved = stream.identity()
    assert saved.pop("labels") == "3.0"
    assert stream.differences(saved) == []
    others = ImageStream(memory_shards([5] * 4), keep_key, seed=1, repeats=Repeat((2.0,)))
    with pytest.raises(StreamStateError, match="the classes, or their order, or the column of labels, are not those"):
        others.check_identity(saved)


def test_fault_in_repeats_names_the_row():
    for factor in (-1.0, math.nan, math.inf):
        stream = ImageStream(memory_shards([6]), keep_key, seed=1, repeats=Repeat((factor,)))
        with pytest.raises(StreamError, match=rf"^0: `repeats` gives {factor}, it must be finite and not negative"):
            next(iter(stream))
    with pytest.raises(StreamError, match=r"^0: KeyError in `repeats`: 'labels'"):
        next(iter(ImageStream(memory_shards([6]), keep_key, seed=1, repeats=lambda sample: sample["labels"])))


# -------------------------------------------------------------------------------------------------- bad samples


def refuse_odd(sample, rng):
    if int(sample["__key__"]) % 2:
        raise ImageDecodeError(sample["__key__"], "odd")
    return keep_key(sample, rng)


def test_bad_samples_are_skipped_and_each_recorded_once(tmp_path):
    dataset = parquet_shards(tmp_path, 3, rows_each=10)
    found = list(itertools.islice(ImageStream(dataset, refuse_odd, seed=1, block_size=7), 15))
    assert sorted(int(sample["key"]) for sample in found) == list(range(0, 30, 2))
    tail = list(itertools.islice(ImageStream(dataset, refuse_odd, seed=1, block_size=7), 30))[15:]
    records = [record for sample in found + tail for record in sample["skipped"]]
    first_epoch = [record for record in records if record["epoch"] == 0]
    assert sorted(int(record["key"]) for record in first_epoch) == list(range(1, 30, 2))
    assert {record["reason"] for record in records} == {"odd"}
    assert set(records[0]) == {"key", "reason", "epoch", "consumer"}


def test_records_are_neither_lost_nor_repeated_by_resuming(tmp_path):
    dataset = parquet_shards(tmp_path, 3)
    whole = list(itertools.islice(ImageStream(dataset, refuse_odd, seed=1, block_size=7), 40))
    for k in range(1, 40, 3):
        stream = ImageStream(dataset, refuse_odd, seed=1, block_size=7)
        head = list(itertools.islice(stream, k))
        fresh = ImageStream(dataset, refuse_odd, seed=1, block_size=7)
        fresh.load_state_dict(stream.state_dict())
        assert head + list(itertools.islice(fresh, 40 - k)) == whole


def test_too_many_bad_samples_in_a_row_end_the_stream():
    def refuse(sample, rng):
        raise ImageDecodeError(sample["__key__"], "empty" if int(sample["__key__"]) % 5 else "torn")

    stream = ImageStream(memory_shards([50]), refuse, seed=1, max_consecutive_skips=20)
    with pytest.raises(StreamError, match=r"20 bad samples in a row in epoch 0.*x empty; \d+ x torn.*image_column"):
        next(iter(stream))


def test_epoch_without_a_good_sample_ends_the_stream():
    def refuse(sample, rng):
        raise ImageDecodeError(sample["__key__"], "empty")

    with pytest.raises(StreamError, match=r"no good sample among 6 in epoch 0.*6 x empty"):
        next(iter(ImageStream(memory_shards([6]), refuse, seed=1)))


def refuse_two(sample, rng):
    if int(sample["__key__"]) < 2:
        raise ImageDecodeError(sample["__key__"], "empty")
    return keep_key(sample, rng)


def test_a_consumer_that_is_dealt_nothing_but_bad_samples_goes_on_with_the_next_epoch():
    dataset = memory_shards([1] * 8)
    met = []
    for consumer in range(4):
        stream = ImageStream(dataset, refuse_two, seed=1, rank=consumer, world_size=4)
        samples = list(itertools.islice(stream, 200))
        good = {int(sample["key"]) for sample in samples}
        assert good == set(range(2, 8)), "from all epochs"
        records = [(r["epoch"], r["key"]) for sample in samples for r in sample["skipped"]]
        met += [epoch for epoch in range(90) if {(epoch, "0"), (epoch, "1")} <= set(records)]
        resumed = ImageStream(dataset, refuse_two, seed=1, rank=consumer, world_size=4)
        head = list(itertools.islice(stream, 100))
        resumed.load_state_dict(stream.state_dict())
        assert head + list(itertools.islice(resumed, 100)) == samples
    assert met, "some consumer must have had both at once"


def test_a_consumer_without_a_label_in_one_epoch_finds_one_in_another():
    stream = ImageStream(
        memory_shards([1] * 6), keep_key, seed=1, rank=0, world_size=3, repeats=Repeat((1.0, 0.0, 0.0))
    )
    assert {sample["key"] for sample in itertools.islice(stream, 40)} == {"0", "3"}


def test_a_consumer_that_never_gets_a_good_sample_ends():
    def refuse(sample, rng):
        raise ImageDecodeError(sample["__key__"], "empty")

    with pytest.raises(StreamError, match=r"no good sample among 2 in epoch 19.*40 x empty"):
        next(iter(ImageStream(memory_shards([1] * 8), refuse, seed=1, rank=1, world_size=4)))
    with pytest.raises(StreamError, match=r"no good sample among 2 in epoch 0"):
        next(iter(ImageStream(memory_shards([1] * 8), refuse, seed=1, rank=1, world_size=4, shuffle=False)))


def test_fault_in_the_transform_names_the_sample():
    def fail(sample, rng):
        raise ZeroDivisionError("by zero")

    with pytest.raises(StreamError, match="0: ZeroDivisionError in the transform: by zero"):
        next(iter(ImageStream(memory_shards([6]), fail, seed=1, shuffle=False)))


def test_unreadable_shard_names_the_place(tmp_path):
    dataset = parquet_shards(tmp_path, 2, rows_each=4)
    (tmp_path / "train-00001.parquet").write_bytes(b"PAR1 torn")
    stream = iter(ImageStream(dataset, keep_key, seed=1, shuffle=False, block_size=4))
    assert [next(stream)["key"] for _ in range(4)] == ["0", "1", "2", "3"]
    with pytest.raises(StreamError, match=r"consumer 0 of 1 .* cannot read block 1 of epoch 0"):
        next(stream)


# ------------------------------------------------------------------------------------------------------- images


def whole_image(image, rng):
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def prepare(sample, **options):
    rng = np.random.default_rng(0)
    return prepare_image({"__key__": "k", **sample}, rng, image_column="image", transform=whole_image, **options)


def test_prepared_image_is_a_uint8_tensor_with_its_key():
    for image in ({"bytes": picture(7), "path": None}, picture(7)):
        sample = prepare({"image": image})
        assert sample["key"] == "k"
        assert sample["pixel_values"].dtype == torch.uint8
        assert sample["pixel_values"].shape == (3, 4, 6)
        assert sample["pixel_values"][0].unique().tolist() == [7]


def test_other_columns_come_along():
    sample = {"image": picture(7), "label": 5}
    assert prepare(sample, extra=lambda sample, rng: {"label": sample["label"]})["label"] == 5


@pytest.mark.parametrize("as_string", [False, True])
def test_path_found_in_data_is_never_opened(tmp_path, as_string):
    (tmp_path / "secret.png").write_bytes(picture())
    path = str(tmp_path / "secret.png")
    with pytest.raises(ImageDecodeError, match="never opened"):
        prepare({"image": path if as_string else {"bytes": None, "path": path}})


def test_missing_image_and_words_are_bad_samples():
    with pytest.raises(ImageDecodeError, match="holds no image"):
        prepare({"image": None})
    with pytest.raises(ImageDecodeError, match="not a JPEG"):
        prepare({"image": b"<html>404</html>"})


def test_untrusted_path_in_parquet_is_counted_and_the_stream_goes_on(tmp_path):
    (tmp_path / "secret.png").write_bytes(picture())
    images = [{"bytes": picture(1), "path": "a.png"}, {"bytes": None, "path": str(tmp_path / "secret.png")}]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    (tmp_path / "shards").mkdir()
    pq.write_table(pa.table({"image": pa.array(images, kind)}), tmp_path / "shards" / "0.parquet")

    def transform(sample, rng):
        return prepare_image(sample, rng, image_column="image", transform=whole_image)

    stream = ImageStream(open_stream(tmp_path / "shards"), transform, seed=1, shuffle=False)
    first, second = itertools.islice(stream, 2)
    assert first["skipped"] == []
    assert [(record["key"], record["epoch"]) for record in second["skipped"]] == [(str(tmp_path / "secret.png"), 0)]


def test_sample_without_a_name_is_called_by_its_place():
    dataset = IterableDataset.from_generator(lambda: ({"x": i} for i in range(3)))
    keys = [sample["key"] for sample in itertools.islice(ImageStream(dataset, keep_key, seed=1), 4)]
    assert keys == [f"epoch 0 consumer 0 sample {i}" for i in range(3)] + ["epoch 1 consumer 0 sample 0"]


def test_a_bad_image_without_a_name_is_called_by_its_content_in_every_epoch():
    def refuse(sample, rng):
        if sample["image"]["bytes"] == b"no picture":
            raise ImageDecodeError(sample["__key__"], "empty")
        return keep_key(sample, rng)

    images = [{"bytes": content, "path": None} for content in (b"one", b"no picture", b"two")]
    dataset = IterableDataset.from_generator(lambda: ({"image": image} for image in images))
    samples = itertools.islice(ImageStream(dataset, refuse, seed=1), 7)
    records = [record for sample in samples for record in sample["skipped"]]
    assert {record["epoch"] for record in records} >= {0, 1}
    assert {record["key"] for record in records} == {f"sha256:{hashlib.sha256(b'no picture').hexdigest()[:16]}"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1, it must be at least 0"),
        ({"seed": 0, "block_size": 0}, "block_size is 0, it must be at least 1"),
        ({"seed": 0, "rank": 2, "world_size": 2}, r"rank is 2, it must lie in 0\.\.1"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ImageStream(memory_shards([3]), keep_key, **options)


def test_random_rows_come_from_all_of_a_sorted_data_set(tmp_path):
    features = Features({"key": Value("string"), "label": Value("int64")})
    for shard in range(4):  # sorted by label, as class folders are usually exported
        labels = [shard] * 300
        rows = {"key": [f"{shard}-{number}" for number in range(300)], "label": labels}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"train-{shard}.parquet")
    dataset = open_stream(tmp_path, require_image=False)
    rows = random_rows(dataset, 200, seed=1, among=10_000)
    counts = np.bincount([row["label"] for row in rows], minlength=4)
    assert abs(counts - 50).max() < 5 * np.sqrt(200 * 0.25 * 0.75)
    assert len({row["__key__"] for row in rows}) == 200
    assert rows == random_rows(dataset, 200, seed=1, among=10_000)
    assert rows != random_rows(dataset, 200, seed=2, among=10_000)
    kept = random_rows(dataset, 400, seed=1, among=10_000, keep=lambda row: row["label"] == 3)
    assert [row["label"] for row in kept] == [3] * 300
    assert len(random_rows(dataset, 400, seed=1, among=300)) == 300


def test_random_rows_divide_many_shards_in_groups(tmp_path, monkeypatch):
    for number in range(400):
        (tmp_path / f"{number:03d}.png").write_bytes(b"%d" % number)
    dataset = open_stream(tmp_path)
    order = np.random.default_rng(1).permutation(400)
    first = {b"%d" % number for number in order[:50]}  # whatever the groups, the order is that of the shards
    divided, divide = [], iterable_dataset._split_gen_kwargs

    def counting(kwargs, max_num_jobs):
        divided.append(len(kwargs["shards"]))
        return divide(kwargs, max_num_jobs)

    monkeypatch.setattr(iterable_dataset, "_split_gen_kwargs", counting)
    assert {row["image"]["bytes"] for row in random_rows(dataset, 400, seed=1, among=50)} == first
    divided.clear()
    assert len(random_rows(dataset, 400, seed=1, among=400)) == 400
    assert sum(divided) < 400 * 50  # one by one it would be 400 * 400
