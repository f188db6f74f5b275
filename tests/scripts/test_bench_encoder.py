"""The benchmark of the encoder, in small: every form runs, and computes the same."""

import re
import subprocess
import sys
from pathlib import Path

import bench_encoder
import pytest
import torch
from bench_encoder import form_of, peer_of
from tiny import tiny_config

from maws_hf import MawsViTForImageClassification

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_all_forms_compute_the_same():
    options = ["--layers", "2", "--batch", "1", "--image_size", "32", "--rounds", "1", "--peers", "transformers"]
    tasks = ["--task", "features", "classification", "--dtype", "float32", "--no_memory"]
    finished = subprocess.run(
        [sys.executable, "scripts/bench_encoder.py", *options, *tasks],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    rows = re.findall(r"^\| (transformers|ours|ours, prepared) +\|.*\| (\S+) +\|$", finished.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == ["transformers", "ours", "ours, prepared"] * 2
    assert all(float(difference) < 2e-6 for _, difference in rows)


def test_a_gpu_holds_one_model_while_its_memory_is_measured(gpu, monkeypatch: pytest.MonkeyPatch, capsys):
    gpu.takes_the_cpu(bench_encoder)
    gpu.allocate(2_000_000)
    monkeypatch.setattr(bench_encoder, "config_of", lambda *_: tiny_config(num_labels=5))
    measured = []

    def form_of(name: str, *options):
        measured.append(name)
        form = usual(name, *options)

        def noted(images: torch.Tensor) -> torch.Tensor:
            gpu.allocate(7_000_000)
            gpu.allocate(-7_000_000)
            return form(images)

        return noted

    usual = bench_encoder.form_of
    monkeypatch.setattr(bench_encoder, "form_of", form_of)
    options = ["--batch", "1", "--image_size", "32", "--rounds", "1", "--peers", "transformers", "--dtype", "float32"]
    monkeypatch.setattr("sys.argv", ["bench_encoder.py", *options])
    bench_encoder.main()
    rows = re.findall(r"^\| (transformers|ours|ours, prepared) .*\| 7 +\|$", capsys.readouterr().out, re.MULTILINE)
    assert rows == ["transformers", "ours", "ours, prepared"]
    assert measured[-3:] == rows
    assert gpu.calls.count("empty_cache") == 1 + 3


@pytest.mark.parametrize("task", ["features", "classification"])
@pytest.mark.parametrize("name", ["transformers", "ours"])
def test_a_form_is_on_its_device(name: str, task: str, on_meta: str):
    ours = MawsViTForImageClassification(tiny_config(num_labels=5)).eval().to(on_meta)
    model = ours if name == "ours" else peer_of(name, ours)
    assert form_of(name, model, task)(torch.zeros(2, 3, 32, 32, device=on_meta)).device.type == on_meta
