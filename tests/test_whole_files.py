"""A file is the old one or the new one, whatever happens while it is written."""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from leftovers import temporary_of

from maws_hf.whole_files import (
    TEMPORARY_SUFFIX,
    moved_to,
    remove_leftovers,
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


def test_a_temporary_file_is_hidden_beside_its_own_and_no_others():
    file = Path("some", "folder", "table.md")
    names = {temporary_beside(file).name for _ in range(1000)}
    assert len(names) == 1000  # of one process, as the first processes of two containers seem to be
    assert all(name.startswith(".table.md.") and name.endswith(TEMPORARY_SUFFIX) for name in names)
    assert temporary_beside(file).parent == file.parent


def test_processes_of_one_number_write_one_file_at_a_time(tmp_path: Path):
    file, both_there = tmp_path / "table.md", threading.Barrier(2, timeout=30)

    def write(content: bytes) -> None:
        temporary = temporary_beside(file)
        with moved_to(file, temporary):
            temporary.write_bytes(content)
            both_there.wait()
        written.append(content)

    written: list[bytes] = []
    contents = (b"first", b"second")
    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(written) == sorted(contents)
    assert file.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["n" * 255, "猫" * 85, "a" + "猫" * 84], ids=["letters", "characters", "odd"])
def test_a_name_of_any_length_has_a_temporary_one(name: str, tmp_path: Path):
    write_atomically(tmp_path / name, b"all")
    assert [file.name for file in tmp_path.iterdir()] == [name]
    left = temporary_of(tmp_path / name)
    left.write_bytes(b"half")
    remove_leftovers(tmp_path, name)
    assert not left.exists()


def test_what_the_killed_left_goes_and_what_others_write_stays(tmp_path: Path):
    file, old = tmp_path / "table[1].md", (1, 1)
    gone = {
        "a process that was killed": temporary_of(file),
        "another host, long ago": temporary_of(file, host="0a1b2c3d"),
        "one that had our number": temporary_beside(file),
    }
    stays = {
        "a process at work": temporary_of(file, process=os.getppid()),
        "another host, where it may be at work": temporary_of(file, process=os.getppid(), host="0a1b2c3d"),
        "another host, whose numbers say nothing here": temporary_of(file, host="0a1b2c3d"),
        "this very process": temporary_beside(file),
        "somebody's download": tmp_path / ".table[1].md.zip.part",
    }
    for temporary in (*gone.values(), *stays.values()):
        temporary.write_bytes(b"half")
    for temporary in (*list(gone.values())[1:], stays["a process at work"], stays["somebody's download"]):
        os.utime(temporary, old)
    other = temporary_of(tmp_path / "other.md")
    other.write_bytes(b"half")
    remove_leftovers(tmp_path, file.name)
    assert {why for why, temporary in gone.items() if temporary.exists()} == set()
    assert {why for why, temporary in stays.items() if not temporary.exists()} == set()
    assert other.exists()
    remove_leftovers(tmp_path)
    assert not other.exists()


def test_a_folder_is_as_old_as_the_newest_in_it(tmp_path: Path):
    left = temporary_of(tmp_path / "model", host="0a1b2c3d")
    left.mkdir()
    (left / "weights").write_bytes(b"half")
    (left / "link").symlink_to("nowhere")
    os.utime(left / "link", (1, 1), follow_symlinks=False)
    os.utime(left, (1, 1))
    remove_leftovers(tmp_path)
    assert left.exists()
    for path in (left / "weights", left):
        os.utime(path, (1, 1))
    remove_leftovers(tmp_path)
    assert not left.exists()


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
