"""Probes that torchrun starts on several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def launch(probe: Path, *arguments: Path, processes: int = 2, **environment: str) -> Any:
    """What `probe` prints after "ANSWER ", if anything; its processes import the same package as this one."""
    paths = [str(probe.parents[1]), os.environ.get("PYTHONPATH", "")]
    options = ["--standalone", f"--nproc_per_node={processes}"]
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, str(probe), *map(str, arguments)],
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    answers = [line.removeprefix("ANSWER ") for line in finished.stdout.splitlines() if line.startswith("ANSWER ")]
    return json.loads(answers[0]) if answers else None
