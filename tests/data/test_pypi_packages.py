"""Pinned wheels, fetched by the real pip from a folder instead of an index."""

import subprocess
from pathlib import Path

import pytest
import tiny_package as tiny

from maws_hf.data.pypi_packages import PackageError, Wheel, extract_members, fetch_wheel
from maws_hf.whole_files import sha256_of

FILE = "tiny_package-1.0-py3-none-any.whl"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What pip finds, and nothing else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return tiny.write_wheel(tmp_path / "shelf" / FILE, {"tiny/data.bin": b"x" * 1000}).parent


def wheel_of(shelf: Path, sha256: str | None = None) -> Wheel:
    digest = sha256 or sha256_of(shelf / FILE)
    return Wheel("tiny-package", "1.0", "MIT", "nobody", file=FILE, sha256=digest)


def no_network(*arguments, **options):
    raise AssertionError("pip was started")


def test_a_wheel_is_fetched_once(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wheel, folder = wheel_of(shelf), tmp_path / "cache"
    path = fetch_wheel(wheel, folder, size="1 kB")
    assert sha256_of(path) == wheel.sha256
    assert [entry.name for entry in folder.iterdir()] == [FILE]
    monkeypatch.setattr(subprocess, "run", no_network)
    assert fetch_wheel(wheel, folder, size="1 kB") == path


def test_processes_of_one_number_fetch_into_one_folder_at_once(shelf: Path, tmp_path: Path, monkeypatch):
    wheel, folder = wheel_of(shelf), tmp_path / "cache"
    run, begun = subprocess.run, []

    def run_while_another_fetches(*arguments, **options):
        begun.append(arguments)
        if len(begun) == 1:
            fetch_wheel(wheel, folder, size="1 kB")
        return run(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", run_while_another_fetches)
    assert sha256_of(fetch_wheel(wheel, folder, size="1 kB")) == wheel.sha256
    assert len(begun) == 2
    assert [entry.name for entry in folder.iterdir()] == [FILE]


def test_a_damaged_wheel_is_replaced(shelf: Path, tmp_path: Path):
    wheel, folder = wheel_of(shelf), tmp_path / "cache"
    folder.mkdir()
    (folder / FILE).write_bytes((shelf / FILE).read_bytes()[:100])
    assert sha256_of(fetch_wheel(wheel, folder, size="1 kB")) == wheel.sha256


def test_other_bytes_than_the_pinned_ones_are_refused(shelf: Path, tmp_path: Path):
    with pytest.raises(PackageError, match=r"pip could not download tiny-package 1\.0: Expected sha256 0000.* Got"):
        fetch_wheel(wheel_of(shelf, sha256="0" * 64), tmp_path / "cache", size="1 kB")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_network_the_message_says_which_file_goes_where(shelf: Path, tmp_path: Path):
    wheel = wheel_of(shelf)
    (shelf / FILE).unlink()
    with pytest.raises(PackageError, match=f"put the file {FILE} into {tmp_path / 'cache'}"):
        fetch_wheel(wheel, tmp_path / "cache", size="1 kB")


def test_only_the_named_files_come_out(shelf: Path, tmp_path: Path):
    extract_members(shelf / FILE, {"tiny/data.bin": 1000}, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["data.bin"]
    assert (tmp_path / "out/tiny/data.bin").read_bytes() == b"x" * 1000


def test_a_longer_file_than_allowed_is_refused(shelf: Path, tmp_path: Path):
    with pytest.raises(PackageError, match=r"tiny/data\.bin in .* is longer than 999 bytes"):
        extract_members(shelf / FILE, {"tiny/data.bin": 999}, tmp_path / "out")


def test_a_missing_file_or_a_broken_wheel_is_one_sentence(shelf: Path, tmp_path: Path):
    with pytest.raises(PackageError, match=r"not the expected wheel.*tiny/other\.bin"):
        extract_members(shelf / FILE, {"tiny/other.bin": 999}, tmp_path / "out")
    (shelf / FILE).write_bytes(b"PK\x03\x04 not a zip file")
    with pytest.raises(PackageError, match="not an intact wheel"):
        extract_members(shelf / FILE, {"tiny/data.bin": 1000}, tmp_path / "out")
