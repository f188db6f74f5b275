"""Loss and gradients of an update do not depend on how its images are divided over ranks and accumulation steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import drive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
DIVISIONS = ["1 x 2 x 4", "2 x 4", "2 x 2 x 2"]  # ranks x accumulation steps x images


@pytest.fixture(scope="module")
def updates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return drive(Path(__file__).with_name("exact_driver.py"), tmp_path_factory.mktemp("exact"))


def gradients(rank: dict[str, Any]) -> torch.Tensor:
    found = rank["answer"]["gradients"]
    return torch.cat([torch.tensor(found[name], dtype=torch.float64) for name in sorted(found)])


@pytest.mark.parametrize("kind", ["mae", "wsp"])
@pytest.mark.parametrize("division", DIVISIONS)
def test_a_divided_update_is_that_of_all_images_at_once(kind: str, division: str, updates: dict[str, Any]):
    (whole,), parts = updates[f"{kind} 1 x 8"], updates[f"{kind} {division}"]
    assert gradients(whole).abs().max() > 1e-3
    for rank in parts:
        assert rank["exit_code"] == 0, rank
        difference = (gradients(rank) - gradients(whole)).abs().max()
        assert difference < 1e-6 * gradients(whole).abs().max(), "losses are float32"
    assert parts[0]["answer"]["loss"] == pytest.approx(whole["answer"]["loss"], rel=1e-6)
    assert parts[0]["answer"]["grad_norm"] == pytest.approx(whole["answer"]["grad_norm"], rel=1e-6)


@pytest.mark.parametrize("division", DIVISIONS)
def test_images_without_labels_would_weigh_the_others_unevenly(division: str, updates: dict[str, Any]):
    """The loss is a mean over the labelled images of a batch, then over batches. No such image reaches a WSP run: see
    `test_rows_without_labels_are_left_out_at_ratio_one` in tests/data/test_resampling.py."""
    (whole,), parts = updates["wsp 1 x 8 unlabelled"], updates[f"wsp {division} unlabelled"]
    assert (gradients(parts[0]) - gradients(whole)).abs().max() > 0.05 * gradients(whole).abs().max()


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", ["uneven", "last only", "alone"])
def test_images_dealt_to_ranks_are_scored_as_if_one_had_them_all(
    name: str, multi_label: bool, updates: dict[str, Any]
):
    """One rank of three has five of 21 images, one none and one the rest; of two, the second has all; one has all."""
    scene = updates[f"gathered {name} {multi_label}"]
    main, *others = [rank["answer"] for rank in scene["found"]]
    ranks = len(others) + 1
    assert main["results"] == {**scene["expected"], "skipped": ranks * (ranks + 1) // 2}
    assert all(other["results"] == {} for other in others)
    assert 0 < max(main["sent"]) <= 60, "more scores at once than a device is to hold"
    assert len(main["sent"]) > 1
