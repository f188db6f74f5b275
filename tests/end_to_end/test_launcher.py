"""Two real processes of `examples/run_mae.py` under `accelerate launch`: one is killed, then the launcher stopped."""

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from runs import finish, script, start, steps_logged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=2", "--cpu"]
TINY = (
    "image_size=16,patch_size=4,hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,"
    "decoder_hidden_size=8,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=16"
)


def launch(corpus: Path, output_dir: Path):
    options = {
        "dataset_name": corpus,
        "output_dir": output_dir,
        "config_overrides": TINY,
        "max_steps": 100_000,
        "save_steps": 5,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "dataloader_num_workers": 1,
        "picture_steps": 99_999,
    }
    return start(LAUNCH + script("run_mae.py", **options)[1:])


def wait_for(output_dir: Path, step: int, process) -> None:
    while (steps_logged(output_dir) or [0])[-1] < step and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]


def rank_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("RANK")
    except psutil.Error:
        return None


def kill_rank(launcher: int, rank: int) -> int:
    """Returns its process id. Its data worker has the same environment, and another parent."""
    ranks = [child for child in psutil.Process(launcher).children(recursive=True) if rank_of(child) == str(rank)]
    (main,) = [child for child in ranks if child.ppid() not in {other.pid for other in ranks}]
    os.kill(main.pid, signal.SIGKILL)
    return main.pid


def checkpoints(output_dir: Path) -> list[str]:
    return sorted(path.name for path in (output_dir / "checkpoints").iterdir())


def test_a_killed_rank_ends_the_run_and_a_terminated_launcher_saves_one_step(image_shards: Path, tmp_path: Path):
    first = launch(image_shards, tmp_path)
    wait_for(tmp_path, 12, first)
    killed = kill_rank(first.pid, 1)
    began = time.monotonic()
    output, _ = first.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert first.returncode != 0
    # The launcher may end the survivor before it has spoken; then its own report names the rank.
    survivor, launcher = f"rank 1 (process {killed}) has ended", f"Signal 9 (SIGKILL) received by PID {killed}"
    assert survivor in output or launcher in output
    before = [name for name in checkpoints(tmp_path) if name.startswith("step-")]

    resumed_from, logged = int(before[-1][-8:]), steps_logged(tmp_path)[-1]
    second = launch(image_shards, tmp_path)
    wait_for(tmp_path, logged + 3, second)  # the lines of the first run are there until the second cuts them back
    second.terminate()
    output = finish(second, expected=-signal.SIGTERM)
    assert f"resuming after step {resumed_from} from" in output
    assert "the same command continues" in output
    newest = checkpoints(tmp_path)[-1]
    assert int(newest[-8:]) == steps_logged(tmp_path)[-1] > resumed_from
    ranks = sorted(path.name for path in (tmp_path / "checkpoints" / newest).glob("rank-*.json"))
    assert ranks == ["rank-00000.json", "rank-00001.json"]
