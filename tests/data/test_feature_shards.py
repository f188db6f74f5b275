"""Features on disk: the tower's own, of the right rows, computed once."""

import io
import itertools
import json
import os
import tarfile
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from leftovers import temporary_of
from tiny import draw_image, tiny_config

from maws_hf import MawsViTModel
from maws_hf.data import feature_shards
from maws_hf.data.captions import find_captions
from maws_hf.data.feature_shards import (
    FEATURES,
    FeatureJob,
    choose_shards,
    compute_features,
    read_records,
    unpack_features,
)
from maws_hf.data.sources import find_image_column, open_stream
from maws_hf.data.streaming import ImageStream
from maws_hf.evaluation.features import encode_images
from maws_hf.processing.decode import decode_image
from maws_hf.processing.transforms import EvalTransform, TrainTransform

WIDTH = 32


@pytest.fixture(scope="module")
def tower() -> MawsViTModel:
    torch.manual_seed(0)
    return MawsViTModel(tiny_config()).eval()


def write_shards(folder, shards=3, rows_each=5, pictures=draw_image):
    """Parquet shards of pictures named `<shard>/<row>.png`, each with a caption in two languages."""
    folder.mkdir(exist_ok=True)
    kinds = {"image": Image(), "captions": List({"language": Value("string"), "text": Value("string")})}
    for shard in range(shards):
        numbers = range(shard * rows_each, (shard + 1) * rows_each)
        rows = {
            "image": [{"bytes": pictures(i), "path": f"{shard}/{i}.png"} for i in numbers],
            "captions": [
                [{"language": "en", "text": f"number {i}"}, {"language": "de", "text": f"Nummer {i}"}] for i in numbers
            ],
        }
        Dataset.from_dict(rows, features=Features(kinds)).to_parquet(folder / f"train-{shard:05d}.parquet")
    return folder


def noise() -> bytes:
    """A picture of which no two crops are alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    PIL.Image.fromarray(pixels).save(encoded, format="PNG")
    return encoded.getvalue()


class Counted:
    """A tower that counts what it encodes, and breaks down when it has had enough."""

    def __init__(self, tower, enough=None):
        self.tower, self.enough, self.calls, self.views = tower, enough, 0, 0

    def __call__(self, pixels):
        if self.calls == self.enough:
            raise KeyboardInterrupt
        self.calls += 1
        self.views += len(pixels)
        return encode_images(self.tower, pixels)


def center(image, rng):
    return [EvalTransform(32)(image)]


def crops(image, rng, count=3):
    return [TrainTransform(32)(image, rng) for _ in range(count)]


def job_of(source, folder, encode, columns=("captions",), views=center, seed=0) -> FeatureJob:
    dataset = open_stream(source)
    image_column = find_image_column(dataset)
    names = [name for name in ("__key__", "key", "id") if name in dataset.features]
    dataset = dataset.select_columns([image_column, *names, *columns])
    return FeatureJob(dataset, image_column, views, encode, seed, folder, choose_shards(folder, dataset))


def stored_rows(job):
    return list(open_stream(job.folder, require_image=False))


def features_of(job):
    return {row["key"]: unpack_features(row[FEATURES], WIDTH) for row in stored_rows(job)}


def encoded_directly(tower, numbers):
    pixels = torch.stack([EvalTransform(32)(decode_image(draw_image(i), key=str(i))) for i in numbers])
    return encode_images(tower, pixels).numpy()


# ------------------------------------------------------------------------------------------------------- content


def test_features_are_those_of_the_tower_bit_for_bit(tmp_path, tower):
    job = job_of(write_shards(tmp_path / "data"), tmp_path / "features", Counted(tower))
    compute_features(job)
    rows = stored_rows(job)
    assert [row["key"] for row in rows] == [f"{i // 5}/{i}.png" for i in range(15)]
    found = np.concatenate([unpack_features(row[FEATURES], WIDTH) for row in rows])
    expected = np.concatenate([encoded_directly(tower, range(start, start + 5)) for start in (0, 5, 10)])
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)  # a shard is a batch here
    assert np.allclose(found, encoded_directly(tower, range(15)), atol=1e-5)
    assert len({row.tobytes() for row in found}) == 15
    assert rows[7]["captions"] == [{"language": "en", "text": "number 7"}, {"language": "de", "text": "Nummer 7"}]
    assert rows[7].keys() == {"captions", "key", FEATURES}


def test_large_shards_are_read_in_parts_with_the_same_result(tmp_path, tower, monkeypatch):
    source = write_shards(tmp_path / "data", shards=1, rows_each=11)
    whole = job_of(source, tmp_path / "whole", Counted(tower), views=crops)
    compute_features(whole)
    monkeypatch.setattr(feature_shards, "ROWS_AT_ONCE", 4)
    parts = job_of(source, tmp_path / "parts", Counted(tower), views=crops)
    compute_features(parts)
    assert parts.encode.calls == 3
    expected, found = features_of(whole), features_of(parts)
    assert list(found) == list(expected)
    for key in expected:
        assert np.allclose(found[key], expected[key], atol=1e-5), key


def test_views_differ_and_follow_from_the_seed_and_the_row(tmp_path, tower):
    same_picture = write_shards(tmp_path / "data", pictures=lambda i: noise())
    jobs = [
        job_of(same_picture, tmp_path / name, Counted(tower), views=crops, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    for job in jobs:
        compute_features(job)
    first, again, other = map(features_of, jobs)
    assert all(views.shape == (3, WIDTH) for views in first.values())
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not any(np.array_equal(first[key], other[key]) for key in first)
    assert len({view.tobytes() for views in first.values() for view in views}) == 15 * 3


def test_bad_images_are_left_out_and_recorded(tmp_path, tower):
    source = write_shards(tmp_path / "data", pictures=lambda i: b"no picture" if i in (6, 14) else draw_image(i))
    job = job_of(source, tmp_path / "features", Counted(tower))
    compute_features(job)
    records = read_records(job)
    assert [record.rows for record in records] == [5, 4, 4]
    assert [[skipped["key"] for skipped in record.skipped] for record in records] == [[], ["1/6.png"], ["2/14.png"]]
    assert all(skipped["reason"] for record in records for skipped in record.skipped)
    assert features_of(job).keys() == {f"{i // 5}/{i}.png" for i in range(15)} - {"1/6.png", "2/14.png"}
    compute_features(job)
    assert job.encode.views == 13


def test_a_shard_without_a_good_image_is_an_empty_one(tmp_path, tower):
    source = write_shards(tmp_path / "data", pictures=lambda i: b"no picture" if i < 5 else draw_image(i))
    job = job_of(source, tmp_path / "features", Counted(tower))
    compute_features(job)
    assert [record.rows for record in read_records(job)] == [0, 5, 5]
    assert len(stored_rows(job)) == 10


# ------------------------------------------------------------------------------------------------ computed once


def test_a_second_pass_computes_nothing_and_reads_no_row(tmp_path, tower, monkeypatch):
    job = job_of(write_shards(tmp_path / "data"), tmp_path / "features", Counted(tower))
    compute_features(job)
    monkeypatch.setattr(FeatureJob, "rows", lambda *_: pytest.fail("rows were read"))
    compute_features(job)
    assert job.encode.calls == 3


@pytest.mark.parametrize("enough", [0, 1, 2])
def test_a_killed_pass_goes_on_where_it_stopped(tmp_path, tower, enough):
    source = write_shards(tmp_path / "data")
    straight = job_of(source, tmp_path / "straight", Counted(tower), views=crops)
    compute_features(straight)
    killed = job_of(source, tmp_path / "killed", Counted(tower, enough=enough), views=crops)
    with pytest.raises(KeyboardInterrupt):
        compute_features(killed)
    going_on = replace(killed, encode=Counted(tower))
    compute_features(going_on)
    assert going_on.encode.calls == 3 - enough
    assert {file.name for file in killed.folder.iterdir()} == {file.name for file in straight.folder.iterdir()}
    for shard in range(3):
        assert going_on.data_file(shard).read_bytes() == straight.data_file(shard).read_bytes()


def test_what_a_killed_pass_left_is_removed_once_it_is_old(tmp_path, tower):
    job = job_of(write_shards(tmp_path / "data"), tmp_path / "features", Counted(tower))
    job.folder.mkdir()
    old, new = (temporary_of(job.data_file(0), host="0a1b2c3d") for _ in range(2))
    for file in (old, new):
        file.write_bytes(b"half a shard")
    os.utime(old, (1, 1))
    compute_features(job)
    assert not old.exists()
    assert new.exists()  # somebody else may be at work there


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "no record", "torn record", "other record"])
def test_a_damaged_shard_is_computed_again(tmp_path, tower, damage):
    job = job_of(write_shards(tmp_path / "data"), tmp_path / "features", Counted(tower))
    compute_features(job)
    file, record = job.data_file(1), job.data_file(1).with_suffix(".json")
    good = file.read_bytes()
    if damage == "cut":
        file.write_bytes(good[:-10])
    elif damage == "flip":
        file.write_bytes(good[:200] + bytes([good[200] ^ 1]) + good[201:])
    elif damage in ("remove", "no record"):
        (file if damage == "remove" else record).unlink()
    else:
        record.write_text(record.read_text()[:-20] if damage == "torn record" else '{"rows": 5, "surprise": 1}')
    compute_features(job)
    assert job.encode.calls == 4
    assert file.read_bytes() == good
    assert [record.rows for record in read_records(job)] == [5, 5, 5]


@pytest.mark.parametrize("change", ["picture", "caption", "name"])
def test_a_changed_row_costs_its_shard(tmp_path, tower, change):
    source = write_shards(tmp_path / "data")
    job = job_of(source, tmp_path / "features", Counted(tower))
    compute_features(job)
    before = features_of(job)
    file = source / "train-00001.parquet"
    rows = Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache")).cast_column("image", Image(decode=False))
    changed = rows.to_list()
    if change == "picture":
        changed[2]["image"]["bytes"] = draw_image(99)
    elif change == "caption":
        changed[2]["captions"][0]["text"] = "another"
    else:
        changed[2]["image"]["path"] = "another.png"
    Dataset.from_list(changed, features=rows.features.copy()).cast_column("image", Image()).to_parquet(file)
    job = job_of(source, tmp_path / "features", Counted(tower))
    compute_features(job)
    assert job.encode.calls == 1
    after = features_of(job)
    same = [key for key in before if key in after and np.array_equal(before[key], after[key])]
    assert len(same) == (15 if change == "caption" else 14)
    texts = {entry["text"] for row in stored_rows(job) for entry in row["captions"]}
    assert ("another" in texts) is (change == "caption")


@pytest.mark.parametrize("change", ["name", "content"])
def test_an_image_file_of_another_name_or_length_is_another_though_it_is_as_old(tmp_path, tower, change):
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(draw_image(i))
    job = job_of(folder, tmp_path / "features", Counted(tower), columns=())
    compute_features(job)
    times = os.stat(folder / "1.png")
    if change == "name":
        (folder / "1.png").rename(folder / "1b.png")
    else:
        (folder / "1.png").write_bytes(noise())
        os.utime(folder / "1.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    again = job_of(folder, tmp_path / "features", Counted(tower), columns=())
    compute_features(again)
    assert again.encode.views == 1
    assert (str(folder / "1b.png") in features_of(again)) is (change == "name")


def test_damage_that_costs_no_row_is_recorded_all_the_same(tmp_path, tower):
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "0.tar", "w") as tar:
        for i in range(3):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(draw_image(i))
            tar.addfile(member, io.BytesIO(draw_image(i)))
        end_of_members = tar.offset
    job = job_of(tmp_path / "data", tmp_path / "features", Counted(tower), columns=())
    compute_features(job)
    assert read_records(job)[0].damaged == []
    file = tmp_path / "data" / "0.tar"
    file.write_bytes(file.read_bytes()[:end_of_members])
    compute_features(job)
    (record,) = read_records(job)
    assert record.rows == 3
    assert [damaged["key"] for damaged in record.damaged] == [str(file)]


def test_files_that_were_only_touched_are_read_but_once_and_computed_never(tmp_path, tower, monkeypatch):
    source = write_shards(tmp_path / "data")
    job = job_of(source, tmp_path / "features", Counted(tower))
    compute_features(job)
    os.utime(source / "train-00002.parquet", (1, 1))
    read = []
    rows = FeatureJob.rows
    monkeypatch.setattr(FeatureJob, "rows", lambda job, shard, tell: read.append(shard) or rows(job, shard, tell))
    compute_features(job)
    compute_features(job)
    assert read == [2]
    assert job.encode.calls == 3


def test_rows_that_are_in_no_file_are_read_each_time(tmp_path, tower):
    pictures = {"image": [{"bytes": draw_image(i), "path": f"{i}.png"} for i in range(4)], "caption": list("abcd")}
    features = Features({"image": {"bytes": Value("binary"), "path": Value("string")}, "caption": Value("string")})

    def job(rows):
        dataset = Dataset.from_dict(rows, features=features).to_iterable_dataset(num_shards=2)
        return FeatureJob(dataset, "image", center, Counted(tower), 0, tmp_path / "features", 2)

    first, again = job(pictures), job(pictures)
    compute_features(first)
    compute_features(again)
    assert (first.encode.calls, again.encode.calls) == (2, 0)
    changed = job({**pictures, "caption": list("abce")})
    compute_features(changed)
    assert changed.encode.calls == 1


def rows_of_hub(files):
    for number in range(2 * len(files)):
        yield {"image": {"bytes": draw_image(number), "path": f"{number}.png"}}


@pytest.mark.parametrize(("revision", "read"), [("a" * 40, []), ("main", [0])])
def test_files_of_the_hub_stay_the_same_at_a_commit_only(tmp_path, tower, monkeypatch, revision, read):
    features = Features({"image": {"bytes": Value("binary"), "path": Value("string")}})
    files = [f"hf://datasets/user/name@{revision}/0.parquet"]
    dataset = IterableDataset.from_generator(rows_of_hub, features=features, gen_kwargs={"files": files})
    job = FeatureJob(dataset, "image", center, Counted(tower), 0, tmp_path / "features", 1)
    compute_features(job)
    found, rows = [], FeatureJob.rows
    monkeypatch.setattr(FeatureJob, "rows", lambda job, shard, tell: found.append(shard) or rows(job, shard, tell))
    compute_features(job)
    assert found == read
    assert job.encode.calls == 1


def test_two_ranks_make_all_shards_between_them(tmp_path, tower):
    source = write_shards(tmp_path / "data", shards=5, rows_each=2)
    together = job_of(source, tmp_path / "together", Counted(tower))
    shares = []
    for rank in range(2):
        share = replace(together, encode=Counted(tower))
        compute_features(share, rank=rank, world_size=2)
        shares.append(share.encode.calls)
    assert shares == [3, 2]
    alone = job_of(source, tmp_path / "alone", Counted(tower))
    compute_features(alone)
    for shard in range(5):
        assert together.data_file(shard).read_bytes() == alone.data_file(shard).read_bytes()


# ---------------------------------------------------------------------------------------------------- data sets


@pytest.mark.parametrize("most", [5, 256])
def test_an_image_folder_becomes_few_files(tmp_path, tower, monkeypatch, most):
    monkeypatch.setattr(feature_shards, "MOST_SHARDS", most)
    (tmp_path / "data").mkdir()
    for i in range(10):
        (tmp_path / "data" / f"{i}.png").write_bytes(draw_image(i))
    job = job_of(tmp_path / "data", tmp_path / "features", Counted(tower), columns=())
    compute_features(job)
    assert len(list(job.folder.glob("*.parquet"))) == min(10, most)
    found = features_of(job)
    expected = encoded_directly(tower, range(10))
    for i in range(10):
        assert np.allclose(found[str(tmp_path / "data" / f"{i}.png")][0], expected[i], atol=1e-5)
    compute_features(job)
    assert job.encode.views == 10


@pytest.mark.parametrize(
    ("there", "ranks", "expected"), [(3, 512, 3), (9999, 1, 256), (9999, 64, 256), (9999, 100, 400), (700, 512, 700)]
)
def test_many_ranks_have_four_files_each_and_few_no_more_than_256(tmp_path, there, ranks, expected):
    assert choose_shards(tmp_path, SimpleNamespace(num_shards=there), ranks) == expected


def test_a_folder_keeps_the_number_of_files_that_it_was_begun_with(tmp_path, tower, monkeypatch):
    (tmp_path / "data").mkdir()
    for i in range(10):
        (tmp_path / "data" / f"{i}.png").write_bytes(draw_image(i))
    for most in (5, 7):
        monkeypatch.setattr(feature_shards, "MOST_SHARDS", most)
        job = job_of(tmp_path / "data", tmp_path / "features", Counted(tower), columns=())
        compute_features(job, rank=0, world_size=2)
        assert len(list(job.folder.glob("*-of-00005.parquet"))) == 3
    assert job.encode.views == 0
    compute_features(job)
    assert len(stored_rows(job)) == 10


def test_tar_shards_keep_their_keys_and_texts(tmp_path, tower):
    (tmp_path / "data").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "data" / f"{shard}.tar", "w") as tar:
            for i in range(3):
                for name, content in ((f"{shard}-{i}.png", draw_image(i)), (f"{shard}-{i}.txt", b"a caption")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    job = job_of(tmp_path / "data", tmp_path / "features", Counted(tower), columns=("txt",))
    compute_features(job)
    rows = stored_rows(job)
    assert [row["key"] for row in rows] == [f"{shard}-{i}" for shard in range(2) for i in range(3)]
    assert {row["txt"] for row in rows} == {"a caption"}
    compute_features(job)
    assert job.encode.calls == 2


@pytest.mark.parametrize(
    ("names", "kept"),
    [({"key": [7, 8]}, {"key"}), ({"id": [7, 8]}, {"key", "id"}), ({"key": ["7", "8"], "id": [1, 2]}, {"key", "id"})],
)
def test_rows_keep_the_names_that_they_have(tmp_path, tower, names, kept):
    (tmp_path / "data").mkdir()
    images = [{"bytes": draw_image(i), "path": "the same"} for i in range(2)]
    kinds = {name: Value("int64" if isinstance(values[0], int) else "string") for name, values in names.items()}
    dataset = Dataset.from_dict({"image": images, **names}, features=Features({"image": Image(), **kinds}))
    dataset.to_parquet(tmp_path / "data" / "train.parquet")
    job = job_of(tmp_path / "data", tmp_path / "features", Counted(tower), columns=())
    compute_features(job)
    rows = stored_rows(job)
    assert [row["key"] for row in rows] == ["7", "8"]
    assert rows[0].keys() == {*kept, FEATURES}


def test_nameless_rows_are_called_by_their_places(tmp_path, tower):
    (tmp_path / "data").mkdir()
    kinds = Features({"image": Image()})
    images = [{"bytes": picture, "path": None} for picture in (draw_image(0), b"no picture")]
    Dataset.from_dict({"image": images}, features=kinds).to_parquet(tmp_path / "data" / "train.parquet")
    job = job_of(tmp_path / "data", tmp_path / "features", Counted(tower), columns=())
    compute_features(job)
    assert [row["key"] for row in stored_rows(job)] == ["shard 0 row 0"]
    assert read_records(job)[0].skipped[0]["key"] == "shard 0 row 1"


# ------------------------------------------------------------------------------------------------------ streaming


def take_views(sample, rng):
    views = unpack_features(sample[FEATURES], WIDTH)
    return {"key": sample["__key__"], "view": int(rng.integers(len(views))), "sum": float(views.sum())}


def test_features_are_streamed_with_an_exact_resume(tmp_path, tower):
    job = job_of(write_shards(tmp_path / "data"), tmp_path / "features", Counted(tower), views=crops)
    compute_features(job)
    captions = find_captions(job.features)

    def stream():
        dataset = open_stream(job.folder, require_image=False)
        return ImageStream(dataset, partial(take_views), seed=3, block_size=4, repeats=captions)

    expected = list(itertools.islice(stream(), 40))
    assert sorted(sample["key"] for sample in expected[:15]) == sorted(f"{i // 5}/{i}.png" for i in range(15))
    interrupted = stream()
    for position, _ in zip(range(25), iter(interrupted), strict=False):
        state = json.loads(json.dumps(interrupted.state_dict()))
        resumed = stream()
        resumed.load_state_dict(state)
        assert list(itertools.islice(resumed, 6)) == expected[position + 1 : position + 7], position
