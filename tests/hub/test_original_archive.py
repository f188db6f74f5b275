"""Hostile and damaged files are refused before anything is loaded, by a sentence that says what is wrong."""

import json
import os
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from tiny_originals import encoder, saved

from maws_hf.hub import original_archive
from maws_hf.hub.original_archive import (
    MOST_HEADER_BYTES,
    ConversionError,
    archive_entries,
    check_safetensors_header,
    check_torch_archive,
)


class Command:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Foreign:
    pass


def archive_of(path, data_pkl, **others):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        for name, content in others.items():
            archive.writestr(f"archive/{name.replace('__', '/')}", content)
    return path


def refused(path, check=check_torch_archive):
    with pytest.raises(ConversionError) as error:
        check(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_that_would_run_a_command_is_refused_by_the_name_of_the_function(tmp_path, protocol):
    marker = tmp_path / "marker"
    file = tmp_path / "evil.pt"
    torch.save({"model": Command(marker)}, file, pickle_protocol=protocol)
    message = refused(file)
    assert f"{os.system.__module__}.system" in message
    assert "foreign code" in message
    assert not marker.exists()


def test_an_unknown_class_is_named(tmp_path):
    torch.save({"model": {}, "args": Foreign()}, tmp_path / "foreign.pt")
    assert "test_original_archive.Foreign" in refused(tmp_path / "foreign.pt")


def test_globals_that_torch_alone_would_let_through_are_named(tmp_path):
    sparse = torch.eye(3).to_sparse()
    torch.save({"weight": sparse}, tmp_path / "sparse.pt")
    assert "torch._utils._rebuild_sparse_tensor" in refused(tmp_path / "sparse.pt")


@pytest.mark.parametrize(
    "name",
    [
        "builtins getattr",
        "torch.storage _load_from_bytes",
        "torch._utils _rebuild_qtensor",
        "torch.nn.modules.linear Linear",
        "numpy.core.multiarray _reconstruct",
        "functools partial",
        "_codecs decode",
    ],
)
def test_what_can_do_more_than_make_a_tensor_is_refused(tmp_path, name):
    file = archive_of(tmp_path / "file.pt", f"c{name.replace(' ', chr(10))}\n.".encode())
    assert f"needs {name.replace(' ', '.')}, which no checkpoint" in refused(file)


@pytest.mark.parametrize(
    ("opcode", "content"),
    [
        ("INST", b"(icollections\nOrderedDict\n."),
        ("OBJ", b"(ccollections\nOrderedDict\no."),
        ("NEWOBJ_EX", b"ccollections\nOrderedDict\n)}\x92."),
        ("EXT1", b"\x82\x01."),
        ("EXT2", b"\x83\x01\x01."),
        ("EXT4", b"\x84\x01\x01\x01\x01."),
    ],
)
def test_a_call_that_torch_does_not_write_is_refused_whatever_it_calls(tmp_path, opcode, content):
    assert f"by the opcode {opcode}," in refused(archive_of(tmp_path / "file.pt", content))


def test_what_training_scripts_save_passes(tmp_path):
    state = {"weight": torch.nn.Parameter(torch.ones(2, 3)), "half": torch.ones(2).half()}
    content = {"model": state, "lr": np.float64(0.1), "best": np.float32(3), "epoch": np.int64(3)}
    check_torch_archive(saved(content, tmp_path / "good.pt"))


def test_the_entries_lie_where_their_bytes_are(tmp_path):
    file = saved({"weight": torch.arange(6.0)}, tmp_path / "good.pt")
    (entry,) = [entry for entry in archive_entries(file) if entry.name == "data/0"]
    stored = file.read_bytes()[entry.start : entry.start + entry.size]
    assert np.frombuffer(stored, np.float32).tolist() == list(range(6))


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    file = saved(encoder(), tmp_path / "cut.pt")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    assert "cut off" in refused(file)


def test_a_directory_that_claims_more_than_the_file_has_is_refused(tmp_path):
    file = saved({"weight": torch.ones(8)}, tmp_path / "lies.pt")
    content = bytearray(file.read_bytes())
    place = content.index(b"PK\x01\x02")
    while b"data/0" not in content[place + 46 : place + 70]:
        place = content.index(b"PK\x01\x02", place + 1)
    content[place + 20 : place + 28] = struct.pack("<II", 1_000_000, 1_000_000)
    file.write_bytes(content)
    message = refused(file)
    assert "data/0" in message
    assert "1,000,000 bytes" in message


def test_a_directory_of_a_hundred_megabytes_is_refused_before_it_is_read(tmp_path):
    file = saved({"weight": torch.ones(8)}, tmp_path / "long.pt")
    content = bytearray(file.read_bytes())
    content[-10:-6] = struct.pack("<I", 100_000_000)
    locator = content.rfind(b"PK\x06\x06")
    if locator >= 0:
        content[locator + 40 : locator + 48] = struct.pack("<Q", 100_000_000)
    with file.open("wb") as sparse:  # so long that the directory could be there
        sparse.write(content[:4])
        sparse.seek(200_000_000)
        sparse.write(content[4:])
    assert "a directory of 100,000,000 bytes" in refused(file)


def test_a_directory_that_calls_an_entry_otherwise_is_refused(tmp_path):
    file = archive_of(tmp_path / "names.pt", pickle.dumps({}, protocol=2))
    content = file.read_bytes()
    file.write_bytes(content[:30] + content[30:].replace(b"archive/data.pkl", b"archive/evil.pkl", 1))
    assert "evil.pkl" in refused(file)


def test_two_entries_of_one_name_are_refused_since_readers_take_different_ones(tmp_path):
    with zipfile.ZipFile(tmp_path / "two.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/DATA.PKL", pickle.dumps({}, protocol=2))
    assert "two entries of the same name" in refused(tmp_path / "two.pt")


def with_two_directories(path, *, zip64):
    """An archive whose end leads to one directory, of a foreign pickle, while a harmless one lies right before it."""
    foreign = pickle.dumps([Foreign, "x" * 1000], protocol=2)
    content = archive_of(path, foreign, version=b"3\n").read_bytes()
    directory, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    harmless, name = pickle.dumps({}, protocol=2), b"archive/data.pkl"
    sizes = struct.pack("<III", zlib.crc32(harmless), len(harmless), len(harmless))
    entry = b"PK\x03\x04" + struct.pack("<5H", 20, 0, 0, 0, 0) + sizes + struct.pack("<HH", len(name), 0) + name
    first, other = content[:directory] + entry + harmless, bytearray(content[directory:end])
    other[16:28] = sizes
    second = other.index(b"PK\x01\x02", 4)
    # zipfile shifts all places by what lies between the directory it reads and the one that the end leads to.
    struct.pack_into("<I", other, 42, directory - len(other))
    struct.pack_into("<I", other, second + 42, content.index(b"PK\x03\x04", 4) - len(other))
    ends = content[end : end + 16] + struct.pack("<IH", len(first), 0)
    if (
        zip64
    ):  # the record lies where zipfile looks for it, and says so of the directory of zipfile; another leads away
        record = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, 2, 2, len(other), len(first))
        here = record[:48] + struct.pack("<Q", len(first) + len(other) + len(record))
        struct.pack_into("<I", other, 42, directory)
        struct.pack_into("<I", other, second + 42, content.index(b"PK\x03\x04", 4))
        ends = here + struct.pack("<IIQI", 0x07064B50, 0, len(first) + len(other), 1) + ends
        other = record + other
    path.write_bytes(first + content[directory:end] + other + ends)
    return path


@pytest.mark.parametrize("zip64", [False, True])
def test_an_archive_that_torch_reads_otherwise_than_zipfile_is_refused(tmp_path, zip64):
    file = with_two_directories(tmp_path / "two.pt", zip64=zip64)
    with zipfile.ZipFile(file) as archive:
        assert archive.read("archive/data.pkl") == pickle.dumps({}, protocol=2)
    assert b"Foreign" in torch._C.PyTorchFileReader(str(file)).get_record("data.pkl")
    assert "its end leads to" in refused(file)


def test_what_torch_sees_is_compared_with_what_was_checked(tmp_path, monkeypatch):
    file = saved({"weight": torch.ones(8)}, tmp_path / "good.pt")
    entries = archive_entries(file)
    monkeypatch.setattr(original_archive, "archive_entries", lambda _: entries[:-1])
    assert "other files for torch" in refused(file)


def test_a_compressed_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    assert "compressed" in refused(tmp_path / "bomb.pt")


def edited(file, name, place, change, *, in_directory=True):
    """With some bytes of an entry's record in the directory, or of its own header, replaced."""
    content = bytearray(file.read_bytes())
    record = content.rindex(name) - 46 if in_directory else content.index(name) - 30
    content[record + place : record + place + len(change)] = change
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("place", "change"),
    [(8, b"\x01"), (10, b"\x08"), (24, struct.pack("<I", 4))],
    ids=["encrypted", "deflated", "of two sizes"],
)
def test_an_entry_that_is_not_stored_as_it_is_is_refused(tmp_path, place, change):
    file = archive_of(tmp_path / "file.pt", pickle.dumps({}, protocol=2), data__0=b"8 bytes.")
    assert "compressed or encrypted entry 'archive/data/0'" in refused(edited(file, b"archive/data/0", place, change))


def test_an_entry_that_is_deflated_by_its_own_header_is_refused(tmp_path):
    file = archive_of(tmp_path / "file.pt", pickle.dumps({}, protocol=2), data__0=b"8 bytes.")
    assert "at its place" in refused(edited(file, b"archive/data/0", 8, b"\x08", in_directory=False))


def test_an_entry_inside_another_is_refused(tmp_path):
    inner = archive_of(tmp_path / "inner.pt", b"", data__1=b"8 bytes.").read_bytes()
    inner = inner[inner.index(b"PK\x03\x04", 4) : inner.index(b"PK\x01\x02")]
    file = archive_of(tmp_path / "file.pt", pickle.dumps({}, protocol=2), data__0=inner, data__1=b"8 bytes.")
    place = file.read_bytes().index(inner)
    message = refused(edited(file, b"archive/data/1", 42, struct.pack("<I", place)))
    assert "'archive/data/1'" in message
    assert "overlaps another entry" in message


def test_more_entries_and_a_longer_pickle_than_any_checkpoint_has_are_refused(tmp_path, monkeypatch):
    file = saved({"weight": torch.ones(2)}, tmp_path / "file.pt")
    monkeypatch.setattr(original_archive, "MOST_PICKLE_BYTES", 50)
    assert "a data.pkl of" in refused(file)
    monkeypatch.setattr(original_archive, "MOST_ENTRIES", 3)
    assert "3 are the most that is read" in refused(file)


def test_an_archive_that_announces_a_comment_is_refused(tmp_path):
    file = archive_of(tmp_path / "file.pt", pickle.dumps({}, protocol=2))
    file.write_bytes(file.read_bytes()[:-2] + b"\x05\0")
    assert "cut off" in refused(file)


def test_an_archive_of_two_checkpoints_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "two.pt", "w") as archive:
        for folder in ("first", "second"):
            archive.writestr(f"{folder}/data.pkl", pickle.dumps({}, protocol=2))
    assert "data.pkl" in refused(tmp_path / "two.pt")


def test_archives_that_are_no_checkpoint_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "without data.pkl" in refused(tmp_path / "other.pt")
    script = archive_of(tmp_path / "script.pt", pickle.dumps({}, protocol=2), code__model="def forward(): pass")
    assert "TorchScript" in refused(script)
    script = archive_of(tmp_path / "constants.pt", pickle.dumps({}, protocol=2), **{"constants.pkl": b""})
    assert "TorchScript" in refused(script)
    assert "no intact pickle" in refused(archive_of(tmp_path / "noise.pt", b"\xff\xfe noise"))


def test_an_old_file_is_refused_with_the_command_that_saves_it_again(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    message = refused(tmp_path / "old.pth")
    assert "before 1.6" in message
    assert "weights_only=True" in message


def test_a_safetensors_header_bomb_is_refused(tmp_path):
    long = tmp_path / "long.safetensors"
    long.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    message = refused(long, check_safetensors_header)
    assert f"{1 << 40:,}" in message
    assert f"{MOST_HEADER_BYTES:,}" in message
    header = {f"t{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(10_001)}
    many = tmp_path / "many.safetensors"
    many.write_bytes(safetensors_bytes(header))
    assert "10,001 tensors" in refused(many, check_safetensors_header)
    header = {"weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    claims = tmp_path / "claims.safetensors"
    claims.write_bytes(safetensors_bytes(header))
    assert f"{1 << 42:,} bytes" in refused(claims, check_safetensors_header)
    noise = tmp_path / "noise.safetensors"
    noise.write_bytes(struct.pack("<Q", 4) + b"nois")
    assert "no header" in refused(noise, check_safetensors_header)
    noise.write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000)
    assert "no header" in refused(noise, check_safetensors_header)


def test_a_safetensors_header_longer_than_any_checkpoints_is_refused_before_it_is_read(tmp_path, monkeypatch):
    file = tmp_path / "file.safetensors"
    file.write_bytes(safetensors_bytes({}) + b"\0" * 100)
    check_safetensors_header(file)
    monkeypatch.setattr(original_archive, "MOST_HEADER_BYTES", 1)
    assert "at most 1 are read" in refused(file, check_safetensors_header)


def safetensors_bytes(header):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.pt").write_bytes(b"")
    assert "no zip archive" in refused(tmp_path / "empty.pt")
