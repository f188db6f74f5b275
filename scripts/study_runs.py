"""Commands that a study runs one by one, each on one thread, and what their models scored; used by `study_*.py`."""

import json
import os
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def as_flags(options: dict[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def call(command: list[object], log: Path) -> None:
    """Runs a command on one thread, its output in a file beside what it makes; its last line if it fails."""
    log = log.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["no output"]
        raise RuntimeError(f"{log.stem} failed: {lines[-1]} (all of it: {log})")


def read_scores(folder: Path) -> dict[str, float]:
    """Accuracies of the probes of a run's model, in `probe/`."""
    (result,) = json.loads((folder / "probe" / "results.json").read_text(encoding="utf-8"))["results"]
    return {"linear probe": result["linear"]["top1"], "20-NN": result["knn"]["20"]["top1"]}


def spread(values: list[float] | None) -> str:
    """Mean and standard deviation in percent."""
    if values is None:
        return ""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1%} +- {deviation:.1%}"
