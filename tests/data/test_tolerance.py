"""Damaged shards end where they break; outages are waited for, and end the stream if they last."""

import gzip
import io
import itertools
import json
import lzma
import tarfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maws_hf.data import streaming, tolerance
from maws_hf.data.samples import random_rows
from maws_hf.data.sources import open_stream
from maws_hf.data.streaming import ImageStream, StreamError
from maws_hf.data.tolerance import PAUSES, ReadError, TolerantReader, collect_losses
from maws_hf.processing.decode import ImageDecodeError

pytestmark = pytest.mark.filterwarnings("ignore:.*shards cannot be dealt evenly")
ROWS = 12


def keep_key(sample, rng):
    return {"key": sample["__key__"], "draw": rng.random()}


def parquet_shards(folder: Path, shards: int) -> None:
    for shard in range(shards):
        keys = [f"{shard}-{row:02d}" for row in range(ROWS)]
        images = [key.encode() * 300 for key in keys]
        table = pa.table({"id": keys, "image": images})
        pq.write_table(table, folder / f"{shard}.parquet", row_group_size=4, compression="zstd", use_dictionary=False)


def tar_shards(folder: Path, shards: int) -> None:
    for shard in range(shards):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for row in range(ROWS):
                content = np.random.default_rng(ROWS * shard + row).bytes(700)
                member = tarfile.TarInfo(f"{shard}-{row:02d}.png")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def cut(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])


def scramble(file: Path, row_group: int) -> None:
    """Spoils the compressed images of a row group."""
    column = pq.read_metadata(file).row_group(row_group).column(1)
    content = bytearray(file.read_bytes())
    end = column.data_page_offset + column.total_compressed_size
    content[end - 20 : end] = b"\xff" * 20
    file.write_bytes(content)


def stream_of(folder: Path, **options) -> ImageStream:
    return ImageStream(open_stream(folder), keep_key, **{"seed": 1, "block_size": 5, **options})


def epoch_of(stream: ImageStream) -> tuple[list[str], list[dict]]:
    """Keys and records of the first epoch, and the records that come with the second's first sample."""
    keys, records = [], []
    for sample in stream:
        records += sample["skipped"]
        if stream.state_dict()["epoch"]:
            return keys, [record for record in records if record["epoch"] == 0]
        keys.append(sample["key"].removesuffix(".png"))


def all_keys(shards) -> set[str]:
    return {f"{shard}-{row:02d}" for shard in shards for row in range(ROWS)}


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("kind", "damage", "kept"),
    [
        (parquet_shards, lambda file: cut(file, 0.7), 0),  # its end tells where everything is
        (parquet_shards, lambda file: file.write_bytes(b"<html>not found</html>"), 0),
        (tar_shards, lambda file: cut(file, 0.5), 6),
    ],
    ids=["parquet without its end", "html", "torn tar"],
)
def test_a_damaged_shard_is_left_where_it_breaks_and_the_others_are_whole(kind, damage, kept, shuffle, tmp_path: Path):
    kind(tmp_path, 4)
    broken = next(tmp_path.glob("2.*"))
    whole = open_stream(tmp_path)  # columns are read from the first shard
    damage(broken)
    keys, records = epoch_of(ImageStream(whole, keep_key, seed=1, block_size=5, shuffle=shuffle))
    assert len(keys) == len(set(keys))
    assert all_keys((0, 1, 3)) <= set(keys)
    assert len(set(keys) - all_keys((0, 1, 3))) == kept
    (record,) = records
    assert Path(record["key"]).name == broken.name
    assert record["reason"].startswith("damaged after")


def test_a_scrambled_page_costs_its_shard_and_no_other(tmp_path: Path):
    parquet_shards(tmp_path, 3)
    scramble(tmp_path / "1.parquet", row_group=1)
    keys, records = epoch_of(stream_of(tmp_path))
    assert set(keys) == all_keys((0, 2)), "so few rows are read together"
    (record,) = records
    assert record["key"].endswith("1.parquet")
    assert record["reason"].startswith("damaged after 0 parts (OSError: ")


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_rest_is_shared_exactly_around_a_torn_tar(ranks: int, workers: int, tmp_path: Path, monkeypatch):
    tar_shards(tmp_path, 4)
    cut(tmp_path / "2.tar", 0.5)
    found: list[str] = []
    for rank, worker in itertools.product(range(ranks), range(max(1, workers))):
        info = SimpleNamespace(id=worker, num_workers=workers) if workers else None
        monkeypatch.setattr(streaming, "get_worker_info", lambda info=info: info)
        keys, records = epoch_of(stream_of(tmp_path, rank=rank, world_size=ranks, num_workers=workers))
        found += keys
        assert len(records) <= 1
    assert len(found) == len(set(found))
    assert all_keys((0, 1, 3)) <= set(found)


@pytest.mark.parametrize("options", [{}, {"rank": 1, "world_size": 3}, {"shuffle": False}])
def test_a_stream_resumes_exactly_at_many_samples_around_the_damage(options, tmp_path: Path):
    tar_shards(tmp_path, 4)
    cut(tmp_path / "2.tar", 0.5)
    count = 60 if not options.get("world_size") else 25
    whole = list(itertools.islice(stream_of(tmp_path, **options), count))
    for stop in range(1, count, 3):
        stream, again = stream_of(tmp_path, **options), stream_of(tmp_path, **options)
        head = list(itertools.islice(stream, stop))
        again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        assert head + list(itertools.islice(again, count - stop)) == whole


def test_more_damaged_shards_than_allowed_end_the_stream(tmp_path: Path):
    tar_shards(tmp_path, 6)
    for shard in (1, 3, 5):
        cut(tmp_path / f"{shard}.tar", 0.5)
    with pytest.raises(StreamError, match=r"2 damaged shards in epoch 0, the last .*\.tar \(damaged after 6 parts"):
        epoch_of(stream_of(tmp_path))
    keys, records = epoch_of(stream_of(tmp_path, max_lost_shards=0.5))
    assert len(records) == 3
    assert len(keys) == 3 * ROWS + 3 * 6


def test_damaged_shards_are_judged_among_those_that_a_consumer_reads(tmp_path: Path):
    tar_shards(tmp_path, 12)
    for shard in (2, 4, 6, 8):
        cut(tmp_path / f"{shard}.tar", 0.5)
    dealt = {"world_size": 2, "shuffle": False, "max_lost_shards": 0.5}  # whole shards, every other one
    with pytest.raises(StreamError, match=r"consumer 0 of 2 .* meets 4 damaged shards"):
        epoch_of(stream_of(tmp_path, rank=0, **dealt))
    assert len(epoch_of(stream_of(tmp_path, rank=1, **dealt))[0]) == 6 * ROWS
    for shard in range(3, 12):
        (tmp_path / f"{shard}.tar").unlink()
    cut(tmp_path / "1.tar", 0.5)
    shared = {"world_size": 2, "max_lost_shards": 0.7}  # three shards, which both read
    assert len(epoch_of(stream_of(tmp_path, rank=0, **shared))[1]) == 2
    assert len(epoch_of(stream_of(tmp_path, world_size=1, max_lost_shards=0.7))[1]) == 2
    with pytest.raises(StreamError, match="2 damaged shards"):
        epoch_of(stream_of(tmp_path, world_size=1, max_lost_shards=0.6))


@pytest.mark.parametrize("place", [6 * 1536, 6 * 1536 + 300], ids=["between two members", "inside a header"])
def test_a_tar_without_its_end_is_a_loss_and_all_that_is_there_is_read(place: int, tmp_path: Path):
    tar_shards(tmp_path, 4)
    file = tmp_path / "2.tar"
    file.write_bytes(file.read_bytes()[:place])  # a member has a header of 512 bytes and 1,024 of content
    keys, (record,) = epoch_of(stream_of(tmp_path))
    assert set(keys) == all_keys((0, 1, 3)) | {f"2-{row:02d}" for row in range(6)}
    assert record["key"] == str(file)
    assert record["reason"] == "damaged after 6 parts (ReadError: the end of the archive is missing)"


def test_one_block_of_zeros_is_end_enough(tmp_path: Path):
    tar_shards(tmp_path, 2)
    file = tmp_path / "1.tar"
    file.write_bytes(file.read_bytes()[: ROWS * 1536 + 512])
    keys, records = epoch_of(stream_of(tmp_path))
    assert set(keys) == all_keys((0, 1))
    assert not records


def test_bad_samples_in_a_row_are_told_with_the_shard_that_holds_them(tmp_path: Path):
    parquet_shards(tmp_path, 2)

    def refuse(sample, rng):
        if sample["__key__"].startswith("1-"):
            raise ImageDecodeError(sample["__key__"], "empty")
        return keep_key(sample, rng)

    stream = ImageStream(open_stream(tmp_path), refuse, seed=1, shuffle=False, block_size=4, max_consecutive_skips=9)
    message = (
        r"9 bad samples in a row in epoch 0 while it reads .*1\.parquet, the last 1-08 .*or allow more with --max_skip"
    )
    with pytest.raises(StreamError, match=message):
        list(itertools.islice(stream, 13))


def test_a_random_choice_of_rows_passes_over_damage_and_names_it(tmp_path: Path):
    parquet_shards(tmp_path, 4)
    dataset = open_stream(tmp_path)
    cut(tmp_path / "2.parquet", 0.5)
    with pytest.warns(UserWarning, match=r"2\.parquet is damaged after 0 parts .*: the rest of it is not read"):
        rows = random_rows(dataset, 100, seed=0, among=100)
    assert {row["id"] for row in rows} == all_keys((0, 1, 3))


def test_nothing_but_damage_says_so(tmp_path: Path):
    parquet_shards(tmp_path, 1)
    dataset = open_stream(tmp_path)
    cut(tmp_path / "0.parquet", 0.7)
    with pytest.raises(StreamError, match=r"finds nothing but damage: .*0\.parquet \(damaged after 0 parts"):
        next(iter(ImageStream(dataset, keep_key, seed=1)))


class Flaky:
    """A file system's reader: yields 0, 1, 2, ... and fails at chosen attempts before item `at`."""

    def __init__(self, failures: int, at: int, error: type[Exception] = ConnectionResetError):
        self.failures, self.at, self.error = failures, at, error

    def __call__(self, files):
        for item in range(6):
            if item == self.at and self.failures:
                self.failures -= 1
                raise self.error("the server is away")
            yield item


def test_an_outage_is_waited_for_and_nothing_is_lost_or_read_twice():
    waits: list[float] = []
    reader = TolerantReader(Flaky(3, at=4), pause=waits.append)
    with collect_losses() as losses:
        assert list(reader(files=["far/0.tar"])) == list(range(6))
    assert len(waits) == 3
    assert all(0.5 * pause <= wait <= 1.5 * pause for pause, wait in zip(PAUSES, waits, strict=False))
    assert not losses


@pytest.mark.parametrize("error", [TimeoutError, FileNotFoundError, PermissionError])
def test_an_outage_that_lasts_ends_with_shard_row_and_tries(error):
    waits: list[float] = []
    reader = TolerantReader(Flaky(99, at=4, error=error), pause=waits.append)
    message = r"far/0\.tar cannot be read after 4 parts, tried 6 times: .*server is away"
    with collect_losses() as losses, pytest.raises(ReadError, match=message):
        list(reader(files=["far/0.tar"]))
    assert len(waits) == len(PAUSES)
    assert not losses, "an outage is no damage"


def test_readers_of_one_server_do_not_come_back_together():
    waits: list[float] = []
    for _ in range(20):
        list(TolerantReader(Flaky(1, at=0), pause=waits.append)(files=["far/0.tar"]))
    assert len(set(waits)) > 10


def test_an_outage_after_another_is_given_as_much_time():
    waits: list[float] = []
    near, far = Flaky(4, at=1), Flaky(4, at=4)

    def both(files):
        for item, _ in zip(near(files), far(files), strict=True):
            yield item

    with collect_losses() as losses:
        assert list(TolerantReader(both, pause=waits.append)(files=["far/0.tar"])) == list(range(6))
    assert len(waits) == 8 > len(PAUSES)
    assert not losses


@pytest.mark.parametrize(
    "error", [pa.ArrowInvalid, tarfile.ReadError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError]
)
def test_what_is_reached_and_not_understood_is_damage_and_not_waited_for(error):
    with collect_losses() as losses:
        assert list(TolerantReader(Flaky(1, at=2, error=error), pause=pytest.fail)(files=["0.tar"])) == [0, 1]
    assert [loss.shard for loss in losses] == ["0.tar"]


@pytest.mark.parametrize(
    "module", ["aiohttp.client_exceptions", "requests.exceptions", "httpx", "huggingface_hub.errors"]
)
def test_errors_of_network_clients_are_outages(module):
    error = type("Error", (Exception,), {"__module__": module})
    waits: list[float] = []
    assert list(TolerantReader(Flaky(1, at=2, error=error), pause=waits.append)(files=["0.tar"])) == list(range(6))
    assert len(waits) == 1


def test_losses_go_to_the_innermost_place_and_then_to_the_outer_one_again():
    broken = TolerantReader(lambda files: Flaky(1, at=2, error=EOFError)(files), pause=pytest.fail)
    with collect_losses() as outer:
        with collect_losses() as inner:
            list(broken(files=["inner.tar"]))
        list(broken(files=["outer.tar"]))
    assert [[loss.shard for loss in losses] for losses in (inner, outer)] == [["inner.tar"], ["outer.tar"]]


def test_damage_is_an_error_where_nobody_counts_losses(tmp_path: Path):
    tar_shards(tmp_path, 3)
    cut(tmp_path / "1.tar", 0.5)
    with pytest.raises(ReadError, match=r"1\.tar is damaged after 6 parts \(ReadError: unexpected end of data\)"):
        list(open_stream(tmp_path))


def test_a_mistake_in_the_program_is_neither_waited_for_nor_passed_over():
    with pytest.raises(KeyError):
        list(TolerantReader(Flaky(1, at=0, error=KeyError), pause=pytest.fail)(files=["0.tar"]))


def test_a_shard_that_is_away_for_long_stops_the_stream_at_a_place_to_come_back_to(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tolerance, "PAUSES", (0.0, 0.0))
    tar_shards(tmp_path, 3)
    whole = [sample["key"] for sample in itertools.islice(stream_of(tmp_path, shuffle=False), 3 * ROWS)]
    stream = stream_of(tmp_path, shuffle=False)
    (tmp_path / "1.tar").rename(tmp_path / "away")
    keys: list[str] = []
    with pytest.raises(StreamError, match=r"cannot read block 2 .*1\.tar cannot be read after 0 parts, tried 3 times"):
        keys.extend(sample["key"] for sample in stream)
    position = stream.state_dict()
    (tmp_path / "away").rename(tmp_path / "1.tar")
    again = stream_of(tmp_path, shuffle=False)
    again.load_state_dict(position)
    assert keys + [sample["key"] for sample in itertools.islice(again, 3 * ROWS - len(keys))] == whole
