import errno
import itertools
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maws_hf.training import checkpoint as ckpt


def write(root: Path, step: int, content: bytes = b"weights", keep: int = 2) -> None:
    def write_files(directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(content)
        (directory / "nested").mkdir()
        (directory / "nested" / "rank.json").write_text("{}")

    ckpt.save_checkpoint(root, step, write_files, facts={"world_size": 1}, keep=keep)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def fail_if_called(message: str) -> None:
    raise AssertionError(message)


def test_the_newest_is_found_and_older_ones_are_removed(tmp_path: Path):
    for step in (5, 10, 15):
        write(tmp_path, step)
    assert names(tmp_path) == ["step-00000010", "step-00000015"]
    newest = ckpt.find_latest(tmp_path, warn=fail_if_called)
    assert newest.step == 15
    assert newest.manifest["world_size"] == 1
    assert set(newest.manifest["files"]) == {"model.safetensors", "nested/rank.json"}


def test_an_empty_or_missing_folder_holds_none(tmp_path: Path):
    assert ckpt.find_latest(tmp_path, warn=fail_if_called) is None
    assert ckpt.find_latest(tmp_path / "nowhere", warn=fail_if_called) is None


def test_at_least_two_are_kept(tmp_path: Path):
    for step in (1, 2, 3):
        write(tmp_path, step, keep=1)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_a_step_that_is_saved_again_replaces_the_first_save(tmp_path: Path):
    write(tmp_path, 1)
    write(tmp_path, 2, b"first")
    write(tmp_path, 2, b"second")
    newest = ckpt.find_latest(tmp_path, warn=fail_if_called)
    assert (newest.path / "model.safetensors").read_bytes() == b"second"
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_all_is_on_the_disk_before_the_name_and_the_name_before_older_ones_go(tmp_path: Path, monkeypatch):
    write(tmp_path, 1)
    write(tmp_path, 2)
    done: list[tuple[str, int | str]] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(("fsync", os.fstat(file).st_ino)), fsync(file)))
    monkeypatch.setattr(os, "rename", lambda old, new: (done.append(("rename", Path(new).name)), rename(old, new)))
    write(tmp_path, 3)
    paths = {path.stat().st_ino: path.name for path in (tmp_path, *tmp_path.rglob("*"))}
    files = ("model.safetensors", "rank.json", "manifest.json", "step-00000003")
    assert [(call, paths.get(what, what)) for call, what in done] == [
        *(("fsync", name) for name in files),
        ("rename", "step-00000003"),
        ("fsync", tmp_path.name),
        ("rename", ".tmp-step-00000001-removed"),
    ]


def test_only_the_main_process_removes_older_ones(tmp_path: Path):
    for step in (1, 2, 3):
        write(tmp_path, step, keep=3)
    (tmp_path / ".tmp-step-00000004").mkdir()
    ckpt.save_checkpoint(tmp_path, 4, lambda directory: None, facts={}, keep=2, is_main=False)
    assert names(tmp_path)[1:] == ["step-00000001", "step-00000002", "step-00000003"]


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / "model.safetensors").read_bytes())
    data[3] ^= 1
    (path / "model.safetensors").write_bytes(data)


def truncate(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"wei")


def lose_a_file(path: Path) -> None:
    (path / "model.safetensors").unlink()


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def empty_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("")


def flip_the_manifest(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"world_size"', '"world_sizf"'))


def make_the_manifest_a_list(path: Path) -> None:
    (path / "manifest.json").write_text("[]")


DAMAGES = [
    flip_the_manifest,
    make_the_manifest_a_list,
    flip_a_bit,
    truncate,
    lose_a_file,
    lose_the_manifest,
    empty_the_manifest,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(damage, tmp_path: Path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    damage(tmp_path / "step-00000002")
    warnings: list[str] = []
    assert ckpt.find_latest(tmp_path, warn=warnings.append).step == 1
    assert len(warnings) == 1
    assert "step-00000002" in warnings[0]


def test_a_file_that_its_disk_cannot_read_back_is_damaged_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, 1)
    write(tmp_path, 2)
    read = ckpt.sha256_of

    def fail(file: Path) -> str:
        if file.parent.name == "step-00000002":
            raise OSError(errno.EIO, "Input/output error", str(file))
        return read(file)

    monkeypatch.setattr(ckpt, "sha256_of", fail)
    warnings: list[str] = []
    assert ckpt.find_latest(tmp_path, warn=warnings.append).step == 1
    assert "step-00000002/model.safetensors cannot be read ([Errno 5] Input/output error" in warnings[0]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_strict_search_ends_at_the_damaged_file_and_leaves_everything(damage, tmp_path: Path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    assert ckpt.find_latest(tmp_path, warn=fail_if_called, strict=True).step == 2
    damage(tmp_path / "step-00000002")
    with pytest.raises(ckpt.CheckpointError, match=r"step-00000002/\w+\.\w+ .*leave out --strict_resume"):
        ckpt.find_latest(tmp_path, warn=fail_if_called, strict=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_a_renamed_checkpoint_does_not_pass_for_another_step(tmp_path: Path):
    write(tmp_path, 1)
    os.rename(tmp_path / "step-00000001", tmp_path / "step-00000009")
    with pytest.raises(ckpt.CheckpointError, match="describes step 1"):
        ckpt.verify(tmp_path / "step-00000009")


def test_nothing_whole_left_is_an_error_and_no_fresh_start(tmp_path: Path):
    write(tmp_path, 1)
    flip_a_bit(tmp_path / "step-00000001")
    with pytest.raises(ckpt.CheckpointError, match=r"no whole checkpoint.*model\.safetensors is not what was written"):
        ckpt.find_latest(tmp_path, warn=lambda message: None)


def together(count: int, act) -> list:
    """What `act(rank, exchange)` gives, or raises, on as many threads; each has its rank for a name."""
    told, barrier = {}, threading.Barrier(count, timeout=20)

    def be(rank: int):
        turns = itertools.count()

        def exchange(own):
            turn = next(turns)
            told[turn, rank] = own
            barrier.wait()
            return [told[turn, other] for other in range(count)]

        threading.current_thread().name = str(rank)
        try:
            return act(rank, exchange)
        except ckpt.CheckpointError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return [task.result() for task in [pool.submit(be, rank) for rank in range(count)]]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Rank and file of all that is read."""
    read, found = ckpt.sha256_of, []

    def note(file: Path) -> str:
        found.append((threading.current_thread().name, file))
        return read(file)

    monkeypatch.setattr(ckpt, "sha256_of", note)
    return found


def test_ranks_share_the_reading_of_one_folder(hashed: list, tmp_path: Path):
    write(tmp_path, 1)
    hashed.clear()
    found = together(
        3, lambda rank, exchange: ckpt.find_latest(tmp_path, fail_if_called, rank=rank, exchange=exchange)
    )
    assert [checkpoint.step for checkpoint in found] == [1, 1, 1]
    newest = tmp_path / "step-00000001"
    assert sorted(hashed) == [("0", newest / "model.safetensors"), ("1", newest / "nested" / "rank.json")]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_find_what_one_process_finds_and_say_the_same(count: int, damage, tmp_path: Path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    damage(tmp_path / "step-00000002")
    (tmp_path / "step-00000002" / "nested" / "rank.json").unlink()  # the second file, which another rank reads
    alone: list[str] = []
    assert ckpt.find_latest(tmp_path, alone.append).step == 1

    def search(rank, exchange):
        said: list[str] = []
        return ckpt.find_latest(tmp_path, said.append, rank=rank, exchange=exchange).step, said

    assert together(count, search) == count * [(1, alone)]
    strict = together(
        count, lambda rank, exchange: ckpt.find_latest(tmp_path, print, strict=True, rank=rank, exchange=exchange)
    )
    assert all("leave out --strict_resume" in str(error) for error in strict)


def test_one_that_only_another_rank_sees_is_not_passed_over(tmp_path: Path):
    for rank, step in ((0, 1), (1, 1), (1, 2)):
        write(tmp_path / str(rank), step)
    reasons = together(
        2, lambda rank, exchange: ckpt.find_latest(tmp_path / str(rank), print, rank=rank, exchange=exchange)
    )
    assert all("do not find the same checkpoint" in str(reason) for reason in reasons)
    assert all("step-00000002 (rank 0: " in str(reason) for reason in reasons)


def test_what_one_rank_alone_cannot_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, 1)
    read = ckpt.sha256_of

    def fail(file: Path) -> str:
        if threading.current_thread().name == "1":
            raise OSError(errno.ESTALE, "Stale file handle", str(file))
        return read(file)

    monkeypatch.setattr(ckpt, "sha256_of", fail)
    errors = together(3, lambda rank, exchange: ckpt.find_latest(tmp_path, print, rank=rank, exchange=exchange))
    told = (
        r"step-00000001 \(rank 0: whole; rank 1: .*nested/rank.json cannot be read .*; rank 2: whole\): it must be one"
    )
    for error in errors:
        with pytest.raises(ckpt.DisagreementError, match=told):
            raise error


@pytest.mark.parametrize("name", ["model.safetensors", "nested/rank.json", "manifest.json", ""])
def test_each_copy_on_another_disk_is_verified_as_a_whole(name: str, hashed: list, tmp_path: Path):
    """As a checkpoint that lies on the own disk of each host: what others have read says nothing about it."""
    write(tmp_path / "0", 1)
    shutil.copytree(tmp_path / "0", tmp_path / "1")  # with all times that can be copied
    hashed.clear()

    def check(rank, exchange):
        return ckpt.verify(tmp_path / str(rank // 2) / "step-00000001", rank=rank, exchange=exchange)

    together(4, check)
    assert sorted(rank for rank, _ in hashed) == ["0", "1", "2", "3"]
    if name:
        file = tmp_path / "1" / "step-00000001" / name
        file.write_bytes(file.read_bytes()[:-1])
        reasons = [str(error) for error in together(4, check)]
        assert all("(rank 0: whole; rank 1: whole; rank 2: " in reason for reason in reasons)
        assert all(f"rank 3: {file} " in reason for reason in reasons)


class Killed(BaseException):
    """Stands for SIGKILL: nothing but the file system survives it."""


@pytest.mark.parametrize("function", ["os.fsync", "os.rename", "shutil.rmtree"])
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_file_operation_leaves_a_whole_checkpoint(
    function: str, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kills = 0
    for call in range(20):
        root = tmp_path / f"{call}"
        write(root, 1)
        write(root, 2)
        with monkeypatch.context() as patch:
            patch.setattr(f"maws_hf.training.checkpoint.{function}", killing(function, call, after))
            try:
                write(root, 3)
                killed = False
            except Killed:
                killed = True
        kills += killed
        latest = ckpt.find_latest(root, warn=fail_if_called)
        assert latest.step in ((2, 3) if killed else (3,))
        write(root, 4)
        assert ckpt.find_latest(root, warn=fail_if_called).step == 4
        assert not list(root.glob(".tmp-*")), "what a kill left behind is cleaned up by the next save"
        if not killed:
            break
    assert kills >= 1


def killing(function: str, at_call: int, after: bool):
    module, name = function.split(".")
    original = getattr(getattr(ckpt, module), name)
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == at_call + 1 and not after:
            raise Killed
        result = original(*args, **kwargs)
        if calls == at_call + 1:
            raise Killed
        return result

    return wrapped


def test_a_refusing_disk_is_one_error_and_leaves_the_old_ones(tmp_path: Path):
    write(tmp_path, 1)

    def write_files(directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"part")
        raise OSError(28, "No space left on device")

    with pytest.raises(
        ckpt.CheckpointError, match=r"step-00000002.*No space left.*MiB are free; step-00000001 is intact"
    ):
        ckpt.save_checkpoint(tmp_path, 2, write_files, facts={}, keep=2)
    assert names(tmp_path) == ["step-00000001"]


def test_what_a_killed_save_left_is_gone_before_the_next_one_needs_its_room(tmp_path: Path):
    write(tmp_path, 1)
    (tmp_path / ".tmp-step-00000002").mkdir()
    found: list[list[str]] = []

    def write_files(directory: Path) -> None:
        found.append(names(tmp_path))

    ckpt.save_checkpoint(tmp_path, 3, write_files, facts={}, keep=2)
    assert found == [[".tmp-step-00000003", "step-00000001"]]


def test_a_rank_that_cannot_write_leaves_the_folder_to_the_main_process(tmp_path: Path):
    write(tmp_path, 1)
    begun = tmp_path / ".tmp-step-00000002"
    begun.mkdir()

    def write_files(directory: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ckpt.CheckpointError, match="No space left"):
        ckpt.save_checkpoint(tmp_path, 2, write_files, facts={}, keep=2, is_main=False)
    assert begun.is_dir()


def test_a_file_that_its_writer_vouches_for_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    digest, read = ckpt.sha256_of, []
    monkeypatch.setattr(ckpt, "sha256_of", lambda file: read.append(file.name) or digest(file))

    def write_files(directory: Path) -> None:
        for name in ("shard", "small.json"):
            (directory / name).write_bytes(b"{}")
        ckpt.vouch_for(directory / "shard")

    ckpt.save_checkpoint(tmp_path, 2, write_files, facts={}, keep=2)
    assert read == ["shard", "small.json"]
    assert names(tmp_path / "step-00000002") == ["manifest.json", "shard", "small.json"]
    ckpt.verify(tmp_path / "step-00000002")
    (tmp_path / "step-00000002" / "shard").write_bytes(b"[]")
    with pytest.raises(ckpt.CheckpointError, match="shard is not what was written"):
        ckpt.verify(tmp_path / "step-00000002")


def test_the_manifest_is_plain_json(tmp_path: Path):
    write(tmp_path, 7)
    manifest = json.loads((tmp_path / "step-00000007" / "manifest.json").read_text())
    assert manifest["step"] == 7
    assert manifest["files"]["model.safetensors"]["bytes"] == len(b"weights")
