"""Rows of tensors in several files are read as the tensors they are parts of, or not at all."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from torch import nn

from maws_hf import MawsViTModel
from maws_hf.optim.groups import parameter_groups
from maws_hf.training.checkpoint import CheckpointError
from maws_hf.training.initial_weights import new_model
from maws_hf.training.sharded_files import (
    CheckpointTensors,
    load_moments,
    save_training,
    training_tensors,
    write_shard,
)

MATRIX = torch.arange(35.0).reshape(7, 5)
COUNTER = torch.tensor(12.0)


def write_parts(folder: Path, bounds: list[int]) -> None:
    """The matrix in as many files as there are bounds but one, and the counter in the first."""
    count = len(bounds) - 1
    for index in range(count):
        start, stop = bounds[index : index + 2]
        parts = {"weights/m": MATRIX[start:stop].clone()} if stop > start else {}
        rows = {"weights/m": {"shape": [7, 5], "start": start}} if stop > start else {}
        if index == 0:
            parts["optimizer/m|step"], rows["optimizer/m|step"] = COUNTER, {"shape": [], "start": 0}
        save_file(parts, folder / f"shard-{index:05d}-of-{count:05d}.safetensors", metadata={"rows": json.dumps(rows)})


@pytest.mark.parametrize("bounds", [[0, 7], [0, 3, 6, 7], [0, 4, 7, 7], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_any_rows_come_from_whichever_files_have_them(tmp_path: Path, bounds: list[int]):
    write_parts(tmp_path, bounds)
    with CheckpointTensors(tmp_path) as tensors:
        for start in range(8):
            for stop in range(start, 8):
                assert torch.equal(tensors.read("weights/m", start, stop), MATRIX[start:stop]), (start, stop)
        assert torch.equal(tensors.read("optimizer/m|step", 0, 1), COUNTER)
        assert tensors.names("weights/") == {"m"}
        assert tensors.names("optimizer/") == {"m|step"}
        assert tensors.dtype("weights/m") == torch.float32


def test_an_optimizer_that_has_made_no_update_comes_back_as_one(tmp_path: Path):
    model = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1))
    write_shard(training_tensors(model, optimizer, None), tmp_path, 0, 1)
    with CheckpointTensors(tmp_path) as tensors:
        load_moments(optimizer, None, tensors)
    assert not any(optimizer.state.values())


def test_a_missing_file_is_an_error(tmp_path: Path):
    write_parts(tmp_path, [0, 3, 6, 7])
    (tmp_path / "shard-00001-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds 2 shards that are not the 3 of one save"):
        CheckpointTensors(tmp_path)


@pytest.mark.parametrize("start", [1, 4])
def test_missing_or_doubled_rows_are_an_error(tmp_path: Path, start: int):
    write_parts(tmp_path, [0, 3, 7])
    file = tmp_path / "shard-00001-of-00002.safetensors"
    rows = {"weights/m": {"shape": [7, 5], "start": start}}
    save_file(load_file(file), file.with_name("new"), metadata={"rows": json.dumps(rows)})
    file.with_name("new").replace(file)
    with pytest.raises(CheckpointError, match="lacks rows or has them twice at row 3"):
        CheckpointTensors(tmp_path)


def test_a_file_that_is_cut_off_is_an_error_that_names_the_folder(tmp_path: Path):
    write_parts(tmp_path, [0, 7])
    file = tmp_path / "shard-00000-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=tmp_path.name):
        CheckpointTensors(tmp_path)


def test_what_was_saved_before_any_update_has_no_moments_and_is_continued(tmp_path: Path):
    model = new_model(MawsViTModel, tiny_config(), 1)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05))
    save_training(model, optimizer, None, tmp_path)
    with CheckpointTensors(tmp_path) as tensors:
        load_moments(optimizer, None, tensors)
    assert not any(optimizer.state.values())
