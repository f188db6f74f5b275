"""Shards behind a file system that is sometimes away, opened by their URL as any data set on a network is."""

import errno
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from test_tolerance import ROWS, parquet_shards, stream_of, tar_shards

from maws_hf.data import tolerance
from maws_hf.data.sources import open_stream
from maws_hf.data.streaming import StreamError
from maws_hf.data.tolerance import ReadError

pytestmark = pytest.mark.filterwarnings("ignore:.*shards cannot be dealt evenly")
KINDS = pytest.mark.parametrize("write", [parquet_shards, tar_shards])


class Outage:
    """Of requests (an opening or a read), `good` succeed, the next `bad` fail, and all later ones succeed."""

    def __init__(self) -> None:
        self.plan(good=0, bad=0)

    def plan(self, good: int, bad: int) -> None:
        self.good, self.bad, self.requests = good, bad, 0

    def request(self) -> None:
        self.requests += 1
        if self.good < self.requests <= self.good + self.bad:
            raise OSError(errno.EIO, "the server is away")


OUTAGE = Outage()


class FlakyFile:
    def __init__(self, file: Any):
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "FlakyFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, *size: int) -> bytes:
        OUTAGE.request()
        return self.file.read(*size)


class FlakyFileSystem(LocalFileSystem):
    protocol = "flaky"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("flaky://").strip("/")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> FlakyFile:
        OUTAGE.request()
        return FlakyFile(super()._open(path, mode, **options))


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose card says that its data lie elsewhere: in `shards`, behind the file system."""
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    monkeypatch.setattr(tolerance, "PAUSES", (0.0,) * 5)
    OUTAGE.plan(good=0, bad=0)
    (tmp_path / "shards").mkdir()
    location = f"flaky://{tmp_path}/shards/*.*"
    header = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {location}\n---\n"
    (tmp_path / "README.md").write_text(header)
    yield tmp_path
    OUTAGE.plan(good=0, bad=0)


@KINDS
def test_three_failures_at_any_request_lose_and_repeat_nothing(write, far: Path):
    write(far / "shards", 2)
    dataset = open_stream(far)
    OUTAGE.plan(good=0, bad=0)
    whole = list(dataset)
    assert len(whole) == 2 * ROWS
    requests = OUTAGE.requests
    assert requests >= 4, "each of two shards is opened and read"
    for good in range(requests):
        OUTAGE.plan(good, bad=3)
        assert list(dataset) == whole
        assert OUTAGE.requests >= good + 3, "the outage has been met"


@KINDS
def test_an_outage_without_end_is_an_error_with_the_url(write, far: Path):
    write(far / "shards", 2)
    dataset = open_stream(far)
    OUTAGE.plan(good=0, bad=1_000_000)
    message = r"flaky://.*/shards/0\.(parquet|tar) cannot be read after 0 parts, tried 6 times: .*the server is away"
    with pytest.raises(ReadError, match=message):
        list(dataset)


@KINDS
def test_a_stream_goes_on_after_an_outage_from_the_place_it_has_saved(write, far: Path):
    write(far / "shards", 2)
    whole = [sample["key"] for sample in itertools.islice(stream_of(far), 2 * ROWS)]
    stream = stream_of(far)
    samples = iter(stream)
    keys = [next(samples)["key"]]
    OUTAGE.plan(good=0, bad=1_000_000)
    with pytest.raises(StreamError, match=r"flaky://.* cannot be read after \d+ parts, tried 6 times"):
        keys.extend(sample["key"] for sample in samples)
    position = json.loads(json.dumps(stream.state_dict()))
    OUTAGE.plan(good=0, bad=0)
    again = stream_of(far)
    again.load_state_dict(position)
    assert keys + [sample["key"] for sample in itertools.islice(again, 2 * ROWS - len(keys))] == whole
