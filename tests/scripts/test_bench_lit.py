"""The benchmark of LiT, in small: forms agree, on a CPU and on what is taken for a GPU."""

import re
import sys

import bench_lit
import pytest
from bench_lit import NO_DROPOUT, PLAIN, PLAIN_BF16, main
from tiny import tiny_config
from tiny_lit import random_captions, tiny_lit_config

OURS = [f"ours, {precision}{cached}" for cached in ("", ", cached features") for precision in ("float32", "bfloat16")]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    vision = tiny_config(image_size=224, patch_size=56)
    config = tiny_lit_config({"max_position_embeddings": 120, **NO_DROPOUT}, vision_config=vision)
    monkeypatch.setattr(bench_lit, "MawsLiTConfig", lambda **_: config)
    monkeypatch.setattr(bench_lit, "random_captions", lambda count, longest: random_captions(count))
    monkeypatch.setattr("sys.argv", ["bench_lit.py", "--rounds", "1"])


def test_forms_agree(small, capsys):
    main()
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| (.*?) +\|.*\((\S+)\) +\| (\S+) +\|$", printed, re.MULTILINE)
    assert [name for name, *_ in rows if name != "form"] == [PLAIN, PLAIN_BF16, *OURS]
    found = {name: (abs(float(loss)), float(gradients)) for name, loss, gradients in rows if name != "form"}
    for name, (loss, gradients) in found.items():
        assert loss < (1e-2 if "bfloat16" in name else 1e-5)
        assert gradients < (1e-1 if "bfloat16" in name else 1e-4)
    assert printed.splitlines()[1].startswith("16 pairs; ")


@pytest.mark.parametrize(("packs", "calls"), [(True, 4), (False, 0)])
def test_matrices_are_packed_for_cpus_only(packs: bool, calls: int, small, on_meta, monkeypatch: pytest.MonkeyPatch):
    device = "cpu" if packs else on_meta
    packed = []

    def encode(vision_model, images, *, bf16):
        packed.append(bf16)
        return vision_model(images, class_token_only=True).pooler_output.detach()

    def report(forms, arguments):
        names = [name for name in forms if packs or name in OURS]  # of the others transformers' mask needs values
        for name in (*names, *names):
            loss, gradients = forms[name]()
            assert {tensor.device.type for tensor in (loss, *gradients)} == {device}

    monkeypatch.setattr(bench_lit, "encode_locked", encode)
    monkeypatch.setattr(bench_lit, "report", report)
    monkeypatch.setattr("sys.argv", [*sys.argv, "--device", device])
    main()
    assert len(packed) == calls


def test_a_gpu_has_more_pairs_and_less_time(small, gpu, monkeypatch: pytest.MonkeyPatch, capsys):
    gpu.takes_the_cpu(bench_lit)
    with monkeypatch.context() as patch:
        patch.setattr(bench_lit, "report", lambda *_: None)
        main()
    assert "\n128 pairs; " in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*sys.argv, "--pairs", "2"])
    main()
    assert "| ms " in capsys.readouterr().out
