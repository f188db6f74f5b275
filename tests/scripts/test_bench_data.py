"""The pipelines that are compared do the same work."""

import numpy as np
import pytest
import torch
from bench_data import (
    FASTEST,
    all_of,
    all_pipelines,
    mean_difference,
    synthetic_jpeg,
    table_of,
)


@pytest.fixture(scope="module")
def pipelines() -> dict:
    return all_pipelines()


def test_every_pipeline_makes_the_same_crop(pipelines: dict):
    files = [synthetic_jpeg(120, 160, 90, seed) for seed in range(3)]
    for name, pipeline in pipelines.items():
        pixels = pipeline(files[0], np.random.default_rng(3))
        assert pixels.shape == (3, 224, 224), name
        if pixels.dtype == torch.uint8:
            assert mean_difference(files, pipelines["Pillow, uint8"], pipeline) < 0.02, name


def test_a_difference_is_told_in_grey_levels():
    def constant(level: int):
        return lambda data, rng: torch.full((3, 2, 2), level, dtype=torch.uint8)

    assert mean_difference([b"", b""], constant(7), constant(4)) == 3


def test_rounds_have_other_crops_and_pipelines_the_same():
    drawn: dict[str, list[float]] = {"a": [], "b": []}
    forms = [all_of(lambda data, rng, name=name: drawn[name].append(rng.random()), [b"", b""]) for name in drawn]
    for _ in range(3):
        for form in forms:
            form()
    assert drawn["a"] == drawn["b"]
    assert len(set(drawn["a"])) == 6


def test_ratios_are_taken_round_by_round():
    table = table_of({"Pillow, uint8": [2.0, 4.0, 6.0], FASTEST: [1.0, 1.0, 2.0]}, pictures=10)
    assert "3.00 (2.00 to 4.00)" in table.splitlines()[3]
    assert table.splitlines()[3].split("|")[2].strip() == "10"
