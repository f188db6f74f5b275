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
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    for name, value in {**environment, "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)  # before the first fork, which hands them on
    return lambda arguments, **options: Prepared(arguments, tmp_path / f"{time.monotonic_ns()}.txt", **options)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny autoencoder with random weights."""
    folder = tmp_path_factory.mktemp("mae")
    torch.manual_seed(0)
    MawsMAEForPreTraining(tiny_config()).save_pretrained(folder)
    return folder
