"""Shards written in chunks are safetensors' own, and a mapped file's memory comes back while it is read."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from maws_hf.hub import mapped_file, native_writer
from maws_hf.hub.mapped_file import MappedFile
from maws_hf.hub.native_writer import write_shards


def contents(tensors):
    return {name: (value.dtype, tuple(value.shape), lambda value=value: value) for name, value in tensors.items()}


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return {
        "b.weight": torch.randn(7, 5),
        "a.half": torch.randn(3, 3).half(),
        "scale": torch.tensor(1.5),
        "é \"quoted\"": torch.randn(4).bfloat16(),
        "empty": torch.zeros(0, 3),
        "transposed": torch.randn(6, 4).T,
    }  # fmt: skip


def test_a_shard_is_byte_by_byte_that_of_safetensors(tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(native_writer, "CHUNK", 4)
    assert write_shards(contents(tensors), tmp_path, parameters=1) == {}
    plain = {name: value.contiguous() for name, value in tensors.items()}
    save_file(plain, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_a_tensor_larger_than_a_shard_has_one_of_its_own_and_layers_are_counted(tmp_path):
    names = ["layers.10.w", "layers.9.w", "layers.2.w", "embeddings"]
    write_shards(contents({name: torch.ones(3) for name in names}), tmp_path, parameters=12, shard_bytes=1)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    order = ["embeddings", "layers.2.w", "layers.9.w", "layers.10.w"]
    files = [f"model-{number}-of-00004.safetensors" for number in ("00001", "00002", "00003", "00004")]
    assert index["weight_map"] == dict(zip(order, files, strict=True))
    assert index["metadata"] == {"total_parameters": 12, "total_size": 4 * 12}
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == files


def test_values_that_are_not_finite_are_counted_by_tensor(tensors, tmp_path):
    tensors["b.weight"][2, 1:4] = float("nan")
    tensors["a.half"][0, 0] = float("inf")
    assert write_shards(contents(tensors), tmp_path, parameters=1, shard_bytes=100) == {"b.weight": 3, "a.half": 1}


needs_maps = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks the kernel in Linux' way")


def mapped(value, path):
    torch.save({"weight": value}, path)
    return torch.load(path, mmap=True, weights_only=True)["weight"]


def resident(path):
    """Bytes of a file that this process holds in memory."""
    held, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(f" {path}")
        elif inside and line.startswith("Rss:"):
            held += 1024 * int(line.split()[1])
    return held


@needs_maps
def test_only_memory_of_the_file_is_given_back(tmp_path):
    above = torch.arange(1_000_000, dtype=torch.float32)
    weight = mapped(above, tmp_path / "file.pt")
    file = MappedFile(tmp_path / "file.pt")
    below = above.clone()  # later memory has lower addresses
    assert torch.equal(weight, above)
    assert resident(tmp_path / "file.pt") >= 4_000_000
    for tensor in (above, below, weight):
        file.give_back(tensor)
    assert resident(tmp_path / "file.pt") < 200_000
    for tensor in (above, below, weight):
        assert tensor.double().sum() == 499_999_500_000  # never lost, or read again from the disk


@needs_maps
def test_a_mapped_file_is_known_by_any_name_of_its_own_and_no_other(tmp_path, monkeypatch):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    (tmp_path / os.fsdecode(b"\xff")).write_bytes(b"other")
    strange = np.memmap(tmp_path / os.fsdecode(b"\xff"), mode="r")  # another mapping whose name is no UTF-8
    file = tmp_path / "one" / "my file.pt"
    weight = mapped(torch.arange(1000), file)
    (tmp_path / "link.pt").symlink_to(file)
    shutil.copy(file, tmp_path / "two")
    monkeypatch.chdir(tmp_path / "one")
    for name in (file, Path("my file.pt"), tmp_path / "link.pt"):
        assert any(low <= weight.data_ptr() < high for low, high in MappedFile(name).ranges)
    assert MappedFile(tmp_path / "two" / "my file.pt").ranges == []
    assert strange.tobytes() == b"other"


def test_nothing_is_given_back_where_the_system_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_file, "_MAPS", tmp_path / "nothing")
    weight = mapped(torch.arange(10_000), tmp_path / "file.pt")
    file = MappedFile(tmp_path / "file.pt")
    file.give_back(weight)
    assert file.ranges == []
    assert torch.equal(weight, torch.arange(10_000))
