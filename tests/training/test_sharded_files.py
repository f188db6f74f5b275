"""Rows of tensors in several files are read as the tensors they are parts of, or not at all."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from tiny_lit import tiny_lit
from torch import nn

from maws_hf import MawsViTModel
from maws_hf.hub.mapped_file import MappedFile
from maws_hf.optim.ema import WeightAverage
from maws_hf.optim.groups import parameter_groups
from maws_hf.training.checkpoint import CheckpointError, save_optimizer
from maws_hf.training.initial_weights import new_model
from maws_hf.training.sharded_files import (
    CheckpointTensors,
    load_moments,
    load_weights,
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


def layers(*widths: int, seed: int = 0) -> nn.Module:
    """Linear layers with a norm between the first two."""
    torch.manual_seed(seed)
    linear = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
    return nn.Sequential(linear[0], nn.LayerNorm(widths[1]), *linear[1:])


def optimizer_of(model: nn.Module, **options: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(model, 0.1), lr=0.1, **(options or {"fused": True}))


def update(model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None) -> None:
    sum(weight.square().sum() for weight in model.parameters() if weight.requires_grad).backward()
    optimizer.step()
    optimizer.zero_grad()
    if average is not None:
        average.update(model, 1)


def save_whole(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> None:
    """As one process saves them; the model in as many files as it has tensors."""
    for number, (name, tensor) in enumerate(model.state_dict().items()):
        save_file({name: tensor}, folder / f"model-{number:05d}.safetensors")
    save_optimizer(optimizer, folder / "optimizer.safetensors")
    if average is not None:
        save_file(average.state_dict(), folder / "average.safetensors")


def load(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> None:
    with CheckpointTensors(folder) as tensors:
        load_weights(model, tensors)
        load_moments(optimizer, average, tensors)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": False}], ids=str)
def test_whole_tensors_continue_bit_for_bit(options: dict[str, bool], tmp_path: Path):
    model = layers(3, 4, 2)
    optimizer, average = optimizer_of(model, **options), WeightAverage(model, 0.9)
    for _ in range(3):
        update(model, optimizer, average)
    save_whole(tmp_path, model, optimizer, average)
    other = layers(3, 4, 2, seed=1)
    other_optimizer, other_average = optimizer_of(other, **options), WeightAverage(other, 0.9)
    load(tmp_path, other, other_optimizer, other_average)
    for run in ((model, optimizer, average), (other, other_optimizer, other_average)):
        update(*run)
    expected = training_tensors(model, optimizer, average)
    found = training_tensors(other, other_optimizer, other_average)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype, name


def test_a_weight_that_is_a_single_number_comes_back_with_its_moments(tmp_path: Path):
    model = tiny_lit()
    optimizer, average = optimizer_of(model), WeightAverage(model, 0.9)
    update(model, optimizer, average)
    save_whole(tmp_path, model, optimizer, average)
    other = tiny_lit(seed=1)
    nn.init.zeros_(other.logit_scale)
    other_optimizer, other_average = optimizer_of(other), WeightAverage(other, 0.9)
    load(tmp_path, other, other_optimizer, other_average)
    assert other.logit_scale.dim() == 0
    expected = training_tensors(model, optimizer, average)
    for name, tensor in training_tensors(other, other_optimizer, other_average).items():
        assert torch.equal(tensor, expected[name]), name


def test_an_empty_file_of_an_optimizer_is_continued(tmp_path: Path):
    model = layers(3, 4, 2)
    optimizer = optimizer_of(model)
    save_whole(tmp_path, model, optimizer)
    load(tmp_path, model, optimizer)
    assert not any(optimizer.state.values())
    update(model, optimizer)
    assert all(int(state["step"]) == 1 for state in optimizer.state.values())


def test_a_lost_file_of_an_optimizer_is_no_empty_one(tmp_path: Path):
    model = layers(3, 4, 2)
    optimizer = optimizer_of(model)
    save_whole(tmp_path, model, optimizer)
    (tmp_path / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"the optimizer's state in {tmp_path} lacks '0.bias' \(and 5 more\)"):
        load(tmp_path, model, optimizer)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((3, 4), r"holds the unknown '2\.bias' \(and 1 more\)"),
        ((3, 4, 2, 1), r"lacks '3\.bias' \(and 1 more\)"),
        ((5, 4, 2), r"0\.weight\S* has shape \(4, 3\), the model's \(4, 5\)"),
    ],
)
def test_another_model_is_refused_by_parameter_name(widths: tuple[int, ...], message: str, tmp_path: Path):
    model = layers(3, 4, 2)
    optimizer, average = optimizer_of(model), WeightAverage(model, 0.9)
    update(model, optimizer, average)
    save_whole(tmp_path, model, optimizer, average)
    other = layers(*widths)
    with CheckpointTensors(tmp_path) as tensors:
        with pytest.raises(CheckpointError, match=message):
            load_weights(other, tensors)
        with pytest.raises(CheckpointError, match=f"optimizer.*{message}"):
            load_moments(optimizer_of(other), None, tensors)
        with pytest.raises(CheckpointError, match=f"average.*{message}"):
            load_moments(optimizer, WeightAverage(other, 0.9), tensors)


def test_an_average_that_was_not_kept_is_missed(tmp_path: Path):
    model = layers(3, 4, 2)
    optimizer = optimizer_of(model)
    save_whole(tmp_path, model, optimizer)
    with pytest.raises(CheckpointError, match="holds no average of the weights: continue without --ema_decay"):
        load(tmp_path, model, optimizer, WeightAverage(model, 0.9))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks the kernel in Linux' way")
def test_no_file_stays_mapped_for_its_scalars(tmp_path: Path):
    def mapped() -> list[str]:
        return [path.name for path in tmp_path.iterdir() if MappedFile(path).ranges]

    model = layers(3, 4, 2)
    optimizer = optimizer_of(model)
    update(model, optimizer)
    save_whole(tmp_path, model, optimizer)
    fresh = optimizer_of(model)
    with CheckpointTensors(tmp_path) as tensors:
        assert "optimizer.safetensors" in mapped()
        load_moments(fresh, None, tensors)
    assert mapped() == []
