"""Tensors of a foreign file are looked at before they are used, and nothing of it is executed."""

import argparse

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_originals import encoder, saved, training_checkpoint

from maws_hf.hub import original_reader
from maws_hf.hub.original_archive import ConversionError
from maws_hf.hub.original_reader import read_original


def refused(content, tmp_path):
    file = saved(content, tmp_path / "file.pt")
    with pytest.raises(ConversionError) as error:
        read_original(file)
    assert str(file) in str(error.value)
    return str(error.value)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_plain_state_dict_comes_back_bit_by_bit(tmp_path):
    state = encoder()
    found = read_original(saved(state, tmp_path / "file.pt"))
    assert_same(found.tensors, state)
    assert found.left_out == []


def test_a_training_checkpoint_gives_its_model_and_names_what_is_left_out(tmp_path):
    state = encoder()
    content = training_checkpoint(
        {f"module.{name}": value for name, value in state.items()}, model="mae", mask_ratio=0.6
    )
    found = read_original(saved({**content, "lr": np.float64(0.5)}, tmp_path / "file.pt"))
    assert_same(found.tensors, state)
    assert found.left_out == [
        "optimizer (a dictionary of 2)",
        "epoch (799)",
        "scaler (a dictionary of 2)",
        "args (a Namespace)",
        "lr (0.5)",
    ]
    assert found.arguments["mask_ratio"] == 0.6
    # The allowance was for this one file.
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_a_file_that_was_saved_on_a_gpu_is_read_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    file = saved(training_checkpoint(encoder()), tmp_path / "file.pt")
    assert_same(read_original(file).tensors, encoder())


def test_of_the_arguments_only_plain_values_are_taken(tmp_path):
    content = training_checkpoint(encoder(), model=["mae_vit_base_patch16"], betas=(0.9, 0.95), norm_pix_loss=True)
    found = read_original(saved(content, tmp_path / "file.pt")).arguments
    assert found == {"batch_size": 64, "blr": 1.5e-4, "output_dir": "./job", "resume": "", "norm_pix_loss": True}


def test_prefixes_of_wrappers_are_stripped_but_never_merge_two_tensors(tmp_path):
    names = read_original(saved({"_orig_mod.module.norm.bias": torch.ones(2)}, tmp_path / "file.pt")).tensors
    assert list(names) == ["norm.bias"]
    message = refused({"module.norm.bias": torch.ones(2), "norm.bias": torch.zeros(2)}, tmp_path)
    assert "norm.bias twice" in message


def test_safetensors_with_original_names_are_read(tmp_path):
    state = encoder()
    save_file(state, tmp_path / "file.safetensors")
    assert_same(read_original(tmp_path / "file.safetensors").tensors, state)


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    file = tmp_path / "file.safetensors"
    save_file(encoder(), file)
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(ConversionError, match=r"safetensors cannot read .*file\.safetensors"):
        read_original(file)


def test_a_stride_bomb_is_refused_by_its_number_of_elements(tmp_path):
    bomb = torch.ones(1).expand(1_000_000, 1_000_000)
    message = refused({"cls_token": bomb}, tmp_path)
    assert (tmp_path / "file.pt").stat().st_size < 3000
    assert "tensor cls_token" in message
    assert "1,000,000,000,000 elements" in message


def test_one_storage_behind_many_names_is_refused(tmp_path):
    weight = torch.ones(1000)
    message = refused({f"blocks.{index}": weight for index in range(100)}, tmp_path)
    assert "claims 400,000 bytes of tensors" in message


def test_a_storage_that_claims_more_than_its_record_is_refused(tmp_path):
    file = saved({"weight": torch.ones(70, 3)}, tmp_path / "file.pt")
    content = file.read_bytes()
    assert content.count(b"K\xd2t") == 1  # 210 elements, as the pickle has them
    file.write_bytes(content.replace(b"K\xd2t", b"K\xfft"))
    with pytest.raises(ConversionError, match="weight claims a storage of 1,020 bytes; the file has none"):
        read_original(file)


def test_a_tensor_that_would_reach_into_the_next_entry_is_refused(tmp_path):
    file = saved({"short": torch.ones(10), "long": torch.ones(100)}, tmp_path / "file.pt")
    content = file.read_bytes()
    for claim in (b"K\nt", b"K\n\x85"):  # ten elements, of the storage and of the tensor
        assert content.count(claim) == 1
        content = content.replace(claim, claim.replace(b"\n", b"d"))  # a hundred, of which the file has a storage
    file.write_bytes(content)
    with pytest.raises(ConversionError, match="tensor short lies in no entry of the archive"):
        read_original(file)


def test_a_part_of_a_larger_table_is_read_from_its_own_place(tmp_path):
    table = torch.arange(24.0).view(1, 6, 4)
    found = read_original(saved({"cls_token": table[:, 3:4]}, tmp_path / "file.pt")).tensors
    assert found["cls_token"].tolist() == [[[12, 13, 14, 15]]]


def test_a_tensor_without_elements_keeps_its_shape(tmp_path):
    found = read_original(saved({"weight": torch.ones(2), "none": torch.empty(3, 0)}, tmp_path / "file.pt")).tensors
    assert found["none"].shape == (3, 0)


def test_more_tensors_than_any_model_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(original_reader, "MOST_TENSORS", 3)
    assert "has 4 tensors; 3 are the most" in refused({str(i): torch.ones(1) for i in range(4)}, tmp_path)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (torch.ones(3, dtype=torch.float64), "float64"),
        (torch.ones(3, dtype=torch.int64), "int64"),
        ([1, 2], "a list"),
    ],
)
def test_what_is_no_weight_is_refused(tmp_path, value, word):
    message = refused({"cls_token": value}, tmp_path)
    assert "cls_token" in message
    assert word in message


def test_strange_contents_are_refused_with_what_they_are(tmp_path):
    assert "a list, not a dictionary" in refused([torch.ones(3)], tmp_path)
    assert "a dictionary of 0" in refused({}, tmp_path)
    assert "a Tensor" in refused(torch.ones(3), tmp_path)
    assert "a Tensor as 3" in refused({3: torch.ones(3)}, tmp_path)


def test_convolutions_saved_with_channels_last_are_read(tmp_path):
    weight = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    found = read_original(saved({"patch_embed.proj.weight": weight}, tmp_path / "file.pt")).tensors
    assert torch.equal(found["patch_embed.proj.weight"], weight)


def test_an_old_torch_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(original_reader.torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ConversionError, match=r"torch 2\.9\.1\+cpu is too old .*torch>=2\.10"):
        read_original(saved(encoder(), tmp_path / "file.pt"))
    monkeypatch.setattr(original_reader.torch, "__version__", "2.10.0")
    assert read_original(tmp_path / "file.pt").tensors
