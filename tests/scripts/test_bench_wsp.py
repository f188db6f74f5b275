"""The benchmark of WSP, in small: variants agree, on a CPU and on what is taken for a GPU."""

import re
import sys
from functools import partial

import bench_wsp
import pytest
from bench_wsp import main
from tiny import tiny_config

from maws_hf import MawsViTConfig

FORMS = ["dense targets, cross_entropy", "index targets", "index targets, gradient in place"]
BLOCKS = ["all tokens", "class token only"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    config = partial(tiny_config, image_size=224, patch_size=56)
    monkeypatch.setattr(MawsViTConfig, "from_size", lambda size, **fields: config(**fields))
    monkeypatch.setattr(
        "sys.argv", ["bench_wsp.py", "--images", "6", "--classes", "40", "--width", "8", "--rounds", "1"]
    )


def test_variants_agree(small, capsys):
    main()
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| (\w.*?) +\|.*\| (\S+) +\| (\S+) +\|$", printed, re.MULTILINE)
    rows = [row for row in rows if row[0] != "form"]
    assert [name for name, *_ in rows] == FORMS * 2 + BLOCKS
    assert all(float(loss) < 1e-5 and float(gradients) < 1e-2 for _, loss, gradients in rows)
    assert all(float(gradients) < 1e-5 for _, _, gradients in [*rows[:3], *rows[-2:]])
    assert "ms" not in printed


def test_a_gpu_has_more_images_and_autocast(small, gpu, capsys):
    gpu.takes_the_cpu(bench_wsp)
    main()
    printed = capsys.readouterr().out
    encoders = re.findall("encoder: .*", printed)
    assert [line.split(", ", 1)[1] for line in encoders] == [
        f"128 images of 224 pixels, {precision}" for precision in ("torch.float32", "bfloat16 autocast")
    ]
    assert printed.count("| ms ") == 4


def test_all_tensors_are_on_the_device(small, on_meta: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", [*sys.argv, "--device", on_meta])
    ran = []

    def report(variants, arguments):
        ran.extend(tensor.device.type for step in variants.values() for tensor in step())

    monkeypatch.setattr(bench_wsp, "report", report)
    main()
    assert len(ran) > 18
    assert set(ran) == {"meta"}
