"""A file is the old one or the new one, whatever happens while it is written."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from maws_hf.whole_files import (
    TEMPORARY_SUFFIX,
    moved_to,
    sha256_of,
    temporary_beside,
    to_json,
    write_atomically,
)


def test_a_file_is_made_and_replaced(tmp_path: Path):
    file = tmp_path / "results.json"
    for content in (b"first", b"second, longer", b""):
        write_atomically(file, content)
        assert file.read_bytes() == content
        assert list(tmp_path.iterdir()) == [file]


def test_a_temporary_file_is_hidden_beside_its_own_and_of_this_process():
    temporary = temporary_beside(Path("some", "folder", "table.md"))
    assert temporary == Path("some", "folder", f".table.md.{os.getpid()}{TEMPORARY_SUFFIX}")


def write_half(file: Path, fail: Callable[[Path], object]) -> None:
    temporary = temporary_beside(file)
    with moved_to(file, temporary):
        temporary.write_bytes(b"half")
        fail(temporary)


@pytest.mark.parametrize(
    "error",
    [
        lambda temporary: OSError(28, "No room"),
        lambda temporary: OSError(28, "No room", str(temporary)),
        lambda temporary: OSError("No room"),
    ],
    ids=["without a name", "with the temporary name", "in words"],
)
def test_a_disk_that_refuses_is_told_with_the_name_that_users_know(error: Callable[[Path], OSError], tmp_path: Path):
    def fail(temporary: Path) -> None:
        raise error(temporary)

    file = tmp_path / "grid.png"
    file.write_bytes(b"old")
    with pytest.raises(OSError, match="No room") as refused:
        write_half(file, fail)
    assert str(file) in str(refused.value)
    assert TEMPORARY_SUFFIX not in str(refused.value)
    assert refused.value.errno == error(file).errno
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_another_file_does_is_not_blamed_on_this_one(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"font\.ttf"):
        write_half(tmp_path / "grid.png", lambda temporary: temporary.with_name("font.ttf").read_bytes())
    assert not list(tmp_path.iterdir())


def test_a_digest_is_that_of_all_bytes(tmp_path: Path):
    file = tmp_path / "weights"
    for content in (b"", b"x", bytes(range(256)) * 10_000):
        file.write_bytes(content)
        assert sha256_of(file) == hashlib.sha256(content).hexdigest()


def test_json_keeps_letters_and_the_order_of_names():
    content = {"name": "Müller 猫", "a": [1, None]}
    assert json.loads(to_json(content)) == content
    assert to_json(content).decode() == '{\n "name": "Müller 猫",\n "a": [\n  1,\n  null\n ]\n}\n'
