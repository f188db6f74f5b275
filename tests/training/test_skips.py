"""Which of the bad images count for the rate that ends a run, and what it is told to have been."""

import json
from pathlib import Path

import pytest

from maws_hf.training.records import JsonLines
from maws_hf.training.skips import SKIP_WINDOW, most_in_a_row, note_skipped, too_many_bad_images


def batch(good: int, bad: int = 0, name: str = "") -> dict:
    return {"keys": ["good"] * good, "skipped": [{"key": f"{name}{number}"} for number in range(bad)]}


@pytest.fixture
def file(tmp_path: Path) -> JsonLines:
    return JsonLines(tmp_path / "skipped.jsonl")


def test_all_batches_of_an_update_count(file: JsonLines):
    recent: list[list] = []
    count, ends = note_skipped([batch(3, 1, "a"), batch(4), batch(5, 2, "b")], 7, recent, file, 0.5)
    assert (count, ends) == (3, False)
    assert recent == [[12, ["a0", "b0", "b1"]]]
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert lines == [{"step": 7, "key": key} for key in ("a0", "b0", "b1")]


def test_bad_images_are_forgotten_once_a_whole_window_has_followed(file: JsonLines):
    recent: list[list] = []
    assert note_skipped([batch(1, 50)], 1, recent, file, 0.002) == (50, True)
    assert note_skipped([batch(SKIP_WINDOW - 1)], 2, recent, file, 0.002) == (0, True)
    assert note_skipped([batch(1)], 3, recent, file, 0.002) == (0, False)
    assert recent == [[SKIP_WINDOW - 1, []], [1, []]]


def test_one_large_update_outlives_many_small_ones(file: JsonLines):
    recent: list[list] = []
    for step in range(5):
        assert not note_skipped([batch(1, 3, f"{step} ")], step, recent, file, 0.002)[1]
    assert note_skipped([batch(SKIP_WINDOW, 5, "last ")], 5, recent, file, 0.002) == (5, False)
    assert recent == [[SKIP_WINDOW, [f"last {number}" for number in range(5)]]]


def test_a_rate_is_reached_without_harm_and_bad_images_are_part_of_all(file: JsonLines):
    def ends(good: int, bad: int, rate: float) -> bool:
        return note_skipped([batch(good, bad)], 1, [], file, rate)[1]

    assert [ends(100, bad, 0.002) for bad in (20, 21)] == [False, True]  # of a window
    assert [ends(20_000, bad, 0.01) for bad in (202, 203)] == [False, True]  # of 20,202 and 20,203


def test_a_share_of_an_image_in_a_row_is_a_whole_one():
    assert most_in_a_row(0.12341) == 1235


def test_the_end_is_told_in_numbers_of_all_recent_updates(file: JsonLines):
    recent = [[30, ["a"]], [50, ["b", "c"]]]
    told = too_many_bad_images(recent, file, 0.015, here=True)
    assert told.startswith(f"3 of the last 83 images could not be read (each with its reason: {file.path}). Repair")
    assert "more than 1.5% with --max_skip_rate" in told
    assert too_many_bad_images(recent, file, 0.015, here=False).startswith("another process could not read")
