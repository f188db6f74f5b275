"""SIGKILL at any instant, many times in a row, changes nothing in what a run ends with.

`MAWS_HF_KILLS=20` in the environment asks for so many; `tests/faults/README.md` has the figures of long tests.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from runs import assert_same_run, finish, steps_logged
from test_run_mae import command

from maws_hf.training.checkpoint import find_latest

KILLS = int(os.environ.get("MAWS_HF_KILLS", "4"))
STEPS_A_LIFE = 25
pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 * max(KILLS, 5))]


def last_step(output_dir: Path) -> int:
    return (steps_logged(output_dir) or [0])[-1]


def newest_checkpoint(output_dir: Path) -> int:
    latest = find_latest(output_dir / "checkpoints", warn=pytest.fail)  # a damaged one is a failure, too
    return latest.step if latest else 0


def kill_at_random(run, output_dir: Path, chance: random.Random) -> bool:
    """Some steps after the run's first new one and then anywhere in a step; whether a save was cut."""
    goal = last_step(output_dir) + chance.randint(1, STEPS_A_LIFE // 3)
    deadline = time.monotonic() + 60
    while last_step(output_dir) < goal and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.05))
    assert run.poll() is None, run.communicate()[0]
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    return any((output_dir / "checkpoints").glob(".tmp-step-*"))


def test_kills_at_random_instants_lose_nothing(image_shards: Path, tmp_path: Path, prepare):
    options = {"max_steps": STEPS_A_LIFE * (KILLS + 2), "save_steps": 2, "picture_steps": 10_000, "ema_decay": 0.9}
    finish(prepare(command(image_shards, tmp_path / "straight", **options)))
    killed, chance, newest, cut = tmp_path / "killed", random.SystemRandom(), 0, 0
    arguments = command(image_shards, killed, **options)
    for _ in range(KILLS):
        cut += kill_at_random(prepare(arguments), killed, chance)
        before, newest = newest, newest_checkpoint(killed)
        assert newest >= before
        assert newest >= last_step(killed) - 3, "a save every two steps"
    finish(prepare(arguments))
    print(f"{KILLS} kills survived, {cut} of them within a save")
    assert_same_run(tmp_path / "straight", killed)
