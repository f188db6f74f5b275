"""The benchmark of masked pre-training, in small: it compares models that compute the same loss."""

import re

import bench_mae
import pytest
import torch
from tiny import tiny_config

from maws_hf import MawsMAEForPreTraining
from maws_hf.hub.original_names import pieces_of


@pytest.mark.slow
def test_losses_agree_and_a_row_says_how_much_faster(monkeypatch: pytest.MonkeyPatch, capsys):
    options = ["--peers", "transformers", "--batch", "1", "--image_size", "64", "--rounds", "1", "--dtype", "float32"]
    monkeypatch.setattr("sys.argv", ["bench_mae.py", *options])
    monkeypatch.setattr(bench_mae, "peak_gib", lambda *arguments: 1.25)
    bench_mae.main()
    printed = capsys.readouterr().out
    names = ["transformers, fused AdamW", "transformers, eager attention, fused AdamW", "maws_hf"]
    rows = re.findall(rf"^\| ({'|'.join(names)}) +\|(.*)\|$", printed, re.MULTILINE)
    assert [name for name, _ in rows] == names
    theirs, eager, ours = ([cell.strip() for cell in cells.split("|")] for _, cells in rows)
    assert float(theirs[2]) > 0
    assert ours[2] == ""
    assert max(abs(float(theirs[4])), abs(float(eager[4]))) < 1e-5
    assert ours[5] == theirs[5] == eager[5] == "1.25"


def test_original_names_hold_all_of_our_weights():
    ours = MawsMAEForPreTraining(tiny_config())
    theirs = bench_mae.peers_mae.original_weights(ours)
    assert sum(map(torch.numel, theirs.values())) == sum(map(torch.numel, ours.state_dict().values()))
    for piece in pieces_of("mae", ours.config):
        part, parts = piece.part
        assert torch.equal(theirs[piece.source].chunk(parts)[part], ours.state_dict()[piece.target])


@pytest.mark.parametrize(
    ("options", "peers"), [("", ["transformers", "lightly"]), ("--original mae", [*bench_mae.PEERS])]
)
def test_the_original_is_compared_where_there_is_a_clone(options, peers, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["bench_mae.py", *options.split()])
    assert sorted(bench_mae.parse_arguments().peers) == sorted(peers)


def test_an_original_without_a_clone_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench_mae.py", "--peers", "original"])
    with pytest.raises(SystemExit):
        bench_mae.parse_arguments()
    assert "--original DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("mkldnn::_linear_pointwise", "matrix products"),
        ("aten::baddbmm", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::native_layer_norm_backward", "LayerNorm"),
        ("aten::add_", "other"),
    ],
)
def test_a_profile_knows_what_an_operation_is_for(operation: str, kind: str):
    assert bench_mae.kind_of(operation) == kind
