"""Shared by the tests of several scripts."""

import time
from pathlib import Path

import pytest
import torch
from prepared_runs import Prepared
from tiny import tiny_config

from maws_hf import MawsMAEForPreTraining


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    environment = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    for name, value in {**environment, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)  # before the first fork, whose imports read some of them
    runs: list[Prepared] = []

    def prepare(arguments: list[str], start_method: str | None = None, **more: str) -> Prepared:
        output = tmp_path / f"{time.monotonic_ns()}.txt"
        runs.append(Prepared(arguments, output, {**environment, **more}, start_method))
        return runs[-1]

    yield prepare
    for run in runs:
        run.kill()  # what a failed test has left; pytest would wait for it


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny autoencoder with random weights."""
    folder = tmp_path_factory.mktemp("mae")
    torch.manual_seed(0)
    MawsMAEForPreTraining(tiny_config()).save_pretrained(folder)
    return folder
