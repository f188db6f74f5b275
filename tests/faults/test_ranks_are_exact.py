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


def test_seven_images_on_two_ranks_are_seven_rows(updates: dict[str, Any]):
    expected = [[2 * row + 0.5, 2 * row + 1.5] for row in range(7)]
    for rank in updates["gathered"]:
        assert rank["answer"]["scores"] == expected
        assert rank["answer"]["targets"] == [[int(value > 5) for value in row] for row in expected]
