"""Several processes over gloo for the price of one import: the driver forks itself for each scene."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rank_environments import rank_environments

TESTS = Path(__file__).parents[1]
DEADLINE = 60  # seconds for one scene; a hang is a failure with a name


def drive(driver: Path, *arguments: Path) -> dict[str, Any]:
    """Runs `driver` and returns what it prints as its last line: a JSON object, a result for each scene."""
    paths = [TESTS, TESTS / "training", TESTS / "faults"]
    finished = subprocess.run(
        [sys.executable, str(driver), *map(str, arguments)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def scene(world_size: int, act: Callable[..., Any], folder: Path, *arguments: Any) -> list[dict[str, Any]]:
    """Calls `act(rank, *arguments)` in as many new processes; their answers, errors, exit codes and seconds.

    What a rank prints is collected in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    files = [folder / f"rank-{rank}.json" for rank in range(world_size)]
    ranks = [
        context.Process(target=_be_rank, args=(environment, file, act, arguments))
        for environment, file in zip(rank_environments(world_size), files, strict=True)
    ]
    begin = time.monotonic()
    for process in ranks:
        process.start()
    results = []
    for process, file in zip(ranks, files, strict=True):
        process.join(max(0.1, DEADLINE - (time.monotonic() - begin)))
        hangs = process.is_alive()
        if hangs:
            process.kill()
            process.join()
        result = json.loads(file.read_text()) if file.exists() else {}
        printed = file.with_suffix(".txt").read_text()
        seconds = time.monotonic() - begin
        results.append(
            {
                **result,
                "process": process.pid,
                "exit_code": process.exitcode,
                "hangs": hangs,
                "seconds": seconds,
                "printed": printed,
            }
        )
    return results


def _be_rank(environment: dict[str, str], file: Path, act: Callable[..., Any], arguments: tuple) -> None:
    os.environ.update(environment)
    output = os.open(file.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    sys.stdout.reconfigure(line_buffering=True)
    try:
        result, code = {"answer": act(int(environment["RANK"]), *arguments)}, 0
    except Exception as error:
        result, code = {"error": f"{type(error).__name__}: {error}"}, 1
    file.write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(code)  # without waiting for the others
