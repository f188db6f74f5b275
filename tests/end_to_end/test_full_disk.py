"""A disk that fills up while a run saves."""

import resource
import time
from pathlib import Path

import pytest
from runs import assert_same_run_weights, finish
from test_run_mae import command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def checkpoints(output_dir: Path) -> list[str]:
    return sorted(path.name for path in (output_dir / "checkpoints").glob("*"))


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are Linux's")
def test_a_full_disk_is_one_line_with_the_last_checkpoint_intact_and_room_continues(
    image_shards: Path, tmp_path: Path, prepare
):
    # At a constant rate it does not matter when a run would end: this one goes on until the disk is full.
    options = {"min_learning_rate": 1e-3, "logging_steps": 100, "save_steps": 20, "picture_steps": 100_000}
    full = tmp_path / "full"
    run = prepare(command(image_shards, full, **options, max_steps=100_000))
    while not any((full / "checkpoints").glob("step-*")) and run.poll() is None:
        time.sleep(0.005)
    assert run.poll() is None, run.communicate()[0]
    # The kernel refuses to let a file grow beyond this, as it does on a disk without room: the weights, of 33 kB, but
    # not the file with what the run prints, of 2.
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (16_384, 16_384))
    output = finish(run, expected=1)
    (left,) = checkpoints(full)[-1:]
    (message,) = (line for line in output.splitlines() if "error: " in line)
    assert "error: cannot write" in message
    assert "MiB are free" in message
    assert f"{left} is intact" in message
    assert "Traceback" not in output
    assert not list((full / "checkpoints").glob(".tmp-*"))
    options["max_steps"] = int(left.removeprefix("step-")) + 20
    for folder in (full, tmp_path / "straight"):
        finish(prepare(command(image_shards, folder, **options)))
    assert_same_run_weights(tmp_path / "straight", full)
