"""The benchmark of fine-tuning, in small: all forms train the same model, on the device they are given."""

import math
import re

import bench_finetune
import pytest
import torch
from bench_encoder import peer_of
from bench_finetune import main, step_of
from tiny import tiny_config

from maws_hf import MawsViTForImageClassification


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_finetune, "config_of", lambda *_: tiny_config(num_labels=bench_finetune.CLASSES))
    options = ["--batch", "3", "--image_size", "32", "--rounds", "2", "--peers", "transformers"]
    monkeypatch.setattr("sys.argv", ["bench_finetune.py", *options])


def test_losses_agree(small, capsys):
    main()
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| (transformers|maws_hf) .*\| (\S+) +\| (\S+) +\|$", printed, re.MULTILINE)
    assert [name for name, *_ in rows] == ["transformers", "maws_hf"] * 2
    losses, differences = zip(*((float(loss), abs(float(difference))) for _, loss, difference in rows), strict=True)
    assert losses[1] == pytest.approx(math.log(bench_finetune.CLASSES), rel=0.2)
    assert losses[1] != losses[3]  # the second table is in bfloat16
    assert differences[0] < 1e-5
    assert differences[2] < 0.05


def test_a_form_that_takes_twice_as_long_makes_ours_twice_as_fast(small, monkeypatch: pytest.MonkeyPatch, capsys):
    seconds = {"transformers": [1.0, 3.0], "maws_hf": [0.5, 1.5]}
    losses = {"transformers": torch.tensor(2.5), "maws_hf": torch.tensor(2.0)}
    monkeypatch.setattr(bench_finetune, "take_turns", lambda *_: (seconds, losses))
    main()
    table = capsys.readouterr().out
    assert re.search(r"\| transformers +\| 2.000 +\| 1.50 +\| 2.00 +\| 2.500000 \| \+5.0e-01 +\|", table)
    assert re.search(r"\| maws_hf +\| 1.000 +\| 3.00 +\| +\| 2.000000 \| \+0.0e\+00 +\|", table)


@pytest.mark.parametrize("name", ["transformers", "ours"])
def test_all_weights_are_trained_and_none_is_changed(name: str, monkeypatch: pytest.MonkeyPatch):
    ours = MawsViTForImageClassification(tiny_config(num_labels=5))
    model = ours if name == "ours" else peer_of(name, ours)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    optimizers = []
    monkeypatch.setattr(torch.optim.AdamW, "zero_grad", lambda self: optimizers.append(self))
    step_of(model, torch.randn(2, 3, 32, 32), torch.tensor([1, 4]), bf16=False)()
    assert model.training
    assert {*optimizers[0].state} == {*model.parameters()}
    assert all(torch.equal(weight, before[key]) for key, weight in model.state_dict().items())


@pytest.mark.parametrize("name", ["transformers", "ours"])
def test_a_step_is_on_its_device(name: str, on_meta: str):
    ours = MawsViTForImageClassification(tiny_config(num_labels=5)).to(on_meta)
    model = ours if name == "ours" else peer_of(name, ours)
    images, labels = torch.zeros(2, 3, 32, 32, device=on_meta), torch.zeros(2, dtype=torch.long, device=on_meta)
    assert step_of(model, images, labels, bf16=True)().device.type == on_meta
