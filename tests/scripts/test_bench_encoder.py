"""The benchmark of the encoder, in small: every form runs, and computes the same."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
