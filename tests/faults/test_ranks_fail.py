"""What happens to one of two ranks: the other ends in seconds and says so, and a restart loses nothing."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ranks import drive

from maws_hf.training.distributed import LONGEST_WAIT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SECONDS = 15  # of a whole scene: start, a few steps, failure


@pytest.fixture(scope="module")
def scenes(image_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return drive(Path(__file__).with_name("ranks_driver.py"), image_shards, tmp_path_factory.mktemp("scenes"))


def test_nothing_happens_to_two_ranks_left_alone(scenes: dict[str, Any]):
    first, second = scenes["train"]
    assert first["answer"] == second["answer"]
    assert first["answer"]["step"] == 8


def test_two_ranks_save_plain_names_and_the_weights_that_both_have(scenes: dict[str, Any]):
    for rank in scenes["train"]:
        in_memory = dict(zip(("line.weight", "line.bias"), rank["answer"]["weights"], strict=True))
        assert in_memory == scenes["saved"] == scenes["loaded"]


def test_a_killed_rank_ends_the_other_in_seconds_and_is_named(scenes: dict[str, Any]):
    survivor, victim = scenes["killed"]
    assert victim["exit_code"] == -9
    assert survivor["exit_code"] == 1
    assert survivor["seconds"] < SECONDS
    told = f"TrainingError: rank 0 cannot go on in step 5: rank 1 (process {victim['process']}) has ended"
    assert survivor["error"].startswith(told)
    assert scenes["killed checkpoints"] == ["step-00000003"]


def test_an_exception_on_one_rank_is_named_and_ends_the_other(scenes: dict[str, Any]):
    survivor, raising = scenes["raising"]
    assert raising["error"] == "MemoryError: no room for a batch"
    assert "rank 1 fails in step 5: MemoryError: no room for a batch" in raising["printed"]
    assert f"rank 0 cannot go on in step 5: rank 1 (process {raising['process']}) has ended" in survivor["error"]
    assert survivor["seconds"] < SECONDS
    assert scenes["raising checkpoints"] == ["step-00000003"]


def test_uneven_data_stop_both_ranks_at_the_same_step_with_that_step_saved(scenes: dict[str, Any]):
    for rank in scenes["uneven"]:
        assert rank["error"].startswith("TrainingError: step 6 has no images on rank 1: TrainingError: the data of")
        assert rank["seconds"] < SECONDS
    assert scenes["uneven checkpoints"] == ["step-00000003", "step-00000005"]


def test_an_unreadable_shard_of_one_rank_is_the_same_text_on_both_and_the_place_is_saved(scenes: dict[str, Any]):
    first, second = scenes["broken_reader"]
    assert (
        first["error"] == second["error"] == "TrainingError: step 6 has no images on rank 1: OSError: the disk is gone"
    )
    assert scenes["broken_reader checkpoints"] == ["step-00000003", "step-00000005"]


def test_ranks_that_find_different_checkpoints_do_not_train(scenes: dict[str, Any]):
    for rank in scenes["unlike"]:
        assert "do not find the same checkpoint" in rank["error"]
        assert "step-00000008 (rank 0: whole; rank 1: " in rank["error"]
        assert "model.safetensors cannot be read ([Errno 116] Stale file handle))" in rank["error"]


def test_ranks_share_the_reading_of_a_damaged_checkpoint_and_fall_back_together(scenes: dict[str, Any]):
    first, second = scenes["flipped"]
    assert first["answer"]["weights"] == second["answer"]["weights"] == scenes["train"][0]["answer"]["weights"]
    assert (
        "step-00000008/model.safetensors is not what was written; falling back to the one before" in first["printed"]
    )
    before = [[file for file in rank["answer"]["read"] if "step-00000006" in file] for rank in (first, second)]
    assert before[0]
    assert before[1]
    assert not set(before[0]) & set(before[1])


def test_a_process_that_is_late_is_waited_for_as_long_as_a_run_says(scenes: dict[str, Any]):
    late, waiting = scenes["late"]
    assert waiting["error"].startswith(
        "TrainingError: rank 1 cannot go on at its start: another process has not answered in time"
    )
    assert late["exit_code"] == 1
    assert timedelta(hours=1) <= LONGEST_WAIT  # of a run; in this scene it is 3 s


def test_a_rank_that_fails_at_its_start_is_named_by_the_other(scenes: dict[str, Any]):
    failing, other = scenes["taken"]
    assert failing["error"].startswith("ValueError: process 4711 is training in ")
    assert f"rank 1 cannot go on at its start: rank 0 (process {failing['process']}) has ended" in other["error"]
    assert other["seconds"] < SECONDS


def test_reading_ahead_changes_nothing_of_a_failure(scenes: dict[str, Any]):
    assert [rank["answer"] for rank in scenes["train ahead"]] == [rank["answer"] for rank in scenes["train"]]
    survivor, victim = scenes["killed ahead"]
    assert survivor["error"].startswith(
        f"TrainingError: rank 0 cannot go on in step 5: rank 1 (process {victim['process']}) has ended"
    )
    assert survivor["seconds"] < SECONDS
    for ahead, plain in zip(scenes["broken_reader ahead"], scenes["broken_reader"], strict=True):
        assert ahead["error"] == plain["error"]


@pytest.mark.parametrize(
    "name", ["killed", "raising", "uneven", "broken_reader", "killed ahead", "broken_reader ahead"]
)
def test_a_restart_ends_in_the_weights_of_an_untroubled_run(name: str, scenes: dict[str, Any]):
    straight = scenes["train"][0]["answer"]
    assert [rank["answer"] for rank in scenes[f"{name} again"]] == [straight, straight]


@pytest.mark.parametrize(("name", "before", "now"), [("fewer", 2, 1), ("more", 1, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(name: str, before: int, now: int, scenes: dict[str, Any]):
    ranks = scenes[name]
    assert len(ranks) == now
    for rank in ranks:
        assert rank["answer"]["step"] == 8
        assert rank["answer"]["images_seen"] == 4 * 2 * before + 4 * 2 * now
        assert rank["answer"]["weights"] == ranks[0]["answer"]["weights"]
    said = ranks[0]["printed"]
    assert f"was written by {before} processes, this run has {now}" in said
    assert f"an update had {2 * before} images (batch x accumulation x processes), now {2 * now}" in said
    assert f"{before} processes x 0 data workers, now {now} x 0: reading goes on with epoch 1" in said


def test_hosts_that_share_no_disk_are_told_at_the_first_save(scenes: dict[str, Any]):
    for rank in scenes["apart"]:
        assert rank["error"].startswith("CheckpointError: cannot write")
        assert "host-1/checkpoints/.tmp-step-00000003, which the first process has made, is not there" in rank["error"]
        assert "all hosts of a run need the same --output_dir" in rank["error"]


def test_a_disk_that_refuses_one_rank_is_the_reason_on_both_and_nothing_is_left_of_the_save(scenes: dict[str, Any]):
    first, second = scenes["full"]
    assert "cannot write" in first["error"]
    assert "(rank 1: OSError: [Errno 28] No space left on device)" in first["error"]
    assert "([Errno 28] No space left on device)" in second["error"]
    assert all("step-00000003 is intact" in rank["error"] for rank in (first, second))
    assert scenes["full files"] == ["step-00000003"]


def test_ranks_that_find_different_checkpoints_continue_from_none(scenes: dict[str, Any]):
    for rank in scenes["apart again"]:
        assert "the processes do not find the same checkpoint" in rank["error"]
        assert "step-00000004 (rank 0: whole; rank 1: " in rank["error"]
        assert "host-1/checkpoints/step-00000004/manifest.json cannot be read (FileNotFoundError" in rank["error"]
