"""Two real processes over gloo."""

import json
from pathlib import Path

import pytest
from launching import launch

PROBE = Path(__file__).with_name("ranks_probe.py")


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(image_shards: Path, output_dir: Path) -> list[dict]:
    return launch(PROBE, image_shards, output_dir)


@pytest.mark.slow
def test_ranks_end_with_the_same_weights(ranks: list[dict]):
    assert len(ranks) == 2
    assert ranks[0]["weights"] == ranks[1]["weights"]


@pytest.mark.slow
def test_masks_differ_between_ranks_steps_and_micro_batches(ranks: list[dict]):
    masks = [tuple(mask) for rank in ranks for mask in rank["masks"]]
    assert len(masks) == 2 * 4 * 2
    assert len(set(masks)) == len(masks)


@pytest.mark.slow
def test_ranks_read_different_images(ranks: list[dict]):
    first, second = (set(rank["keys"]) for rank in ranks)
    assert len(first) == len(second) == 4 * 2 * 4
    assert not first & second


@pytest.mark.slow
def test_a_nan_on_one_rank_is_refused_by_all_at_the_same_step(ranks: list[dict], output_dir: Path):
    assert all(rank["finite"] for rank in ranks)
    for name in ("refused.jsonl", "refused-rank1.jsonl"):
        (refused,) = (json.loads(line) for line in (output_dir / name).read_text().splitlines())
        assert refused["step"] == 2


@pytest.mark.slow
def test_a_loss_that_jumps_on_one_rank_is_left_out_by_all(ranks: list[dict], output_dir: Path):
    for name in ("spikes.jsonl", "spikes-rank1.jsonl"):
        (spike,) = (json.loads(line) for line in (output_dir / name).read_text().splitlines())
        assert (spike["step"], spike["skipped"]) == (4, True)
