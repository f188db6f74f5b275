"""Starting, killing and comparing runs of the example scripts."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers.utils import logging

from maws_hf.training.loop import Outcome

ROOT = Path(__file__).parents[2]


def script(name: str, **options: object) -> list[str]:
    """The command of `examples/<name>`."""
    return [sys.executable, f"examples/{name}", *(f"--{option}={value}" for option, value in options.items())]


def load_script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`examples/<name>`, to call what is in it."""
    specification = importlib.util.spec_from_file_location(Path(name).stem, ROOT / "examples" / name)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, Path(name).stem, module)  # where its dataclasses look their annotations up
    specification.loader.exec_module(module)
    return module


@contextmanager
def called_with(flags: Iterable[object], run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Around the script's `main` in this process, where nothing needs to be imported again."""
    monkeypatch.setattr(sys, "argv", [f"{run.__name__}.py", *map(str, flags)])
    verbosity = logging.get_verbosity()
    try:
        yield
    finally:  # what a script may set for itself, but not for the tests after it
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def leave_out_training(
    run: ModuleType, arguments: list[str], monkeypatch: pytest.MonkeyPatch, *, exit_code: int = 0
) -> SimpleNamespace:
    """Calls the script's `main` in this process, without a single update.

    Returns:
        What `train` was given, its options by name. It says that it has seen 7 images.
    """
    given = SimpleNamespace()

    def train(model, batch_loss, loader, recipe, accelerator, **options) -> Outcome:
        vars(given).update(model=model, batch_loss=batch_loss, loader=loader, recipe=recipe, **options)
        metrics = {"step": 1, "loss": 1.0, "images_seen": 7, "learning_rate": 0.1}
        Path(recipe.output_dir).mkdir(parents=True, exist_ok=True)
        Path(recipe.output_dir, "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
        model.train()  # as training leaves it
        return Outcome(step=1, exit_code=exit_code, images_seen=7)

    alone = {"process_index": 0, "num_processes": 1, "is_main_process": True, "device": torch.device("cpu")}
    alone |= {"gather": lambda rows: rows, "reduce": lambda rows, reduction: rows, "end_training": lambda: None}
    monkeypatch.setattr(run, "build_accelerator", lambda recipe: SimpleNamespace(**alone, print=print))
    monkeypatch.setattr(run, "train", train)
    with called_with(arguments[2:], run, monkeypatch):
        assert run.main() == exit_code
    return given


def start(arguments: list[str], **options) -> subprocess.Popen:
    # One thread and the CPU: what is compared bit for bit must be computed in the same order.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )


def finish(process: subprocess.Popen, expected: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == expected, output
    return output


def steps_logged(output_dir: Path) -> list[int]:
    file = output_dir / "metrics.jsonl"
    if not file.exists():
        return []
    return [json.loads(line)["step"] for line in file.read_text().split("\n")[:-1]]


def kill_after(process: subprocess.Popen, output_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (steps_logged(output_dir) or [0])[-1] >= step:
            break
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[0]
    while os.getpgid(process.pid) != process.pid:  # it has just begun, and is to make a group of its own
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def comparable_metrics(output_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "flops_utilization")} for line in lines]


def assert_same_run(left: Path, right: Path) -> None:
    assert_same_run_weights(left, right)
    newest = max((left / "checkpoints").iterdir()).name
    for file in sorted((left / "checkpoints" / newest).glob("*.safetensors")):
        name = file.relative_to(left)
        first, second = load_file(file), load_file(right / name)
        assert first.keys() == second.keys()
        for key in first:
            assert torch.equal(first[key], second[key]), f"{name}: {key}"
    assert comparable_metrics(left) == comparable_metrics(right)


def assert_same_run_weights(left: Path, right: Path) -> None:
    first, second = load_file(left / "model.safetensors"), load_file(right / "model.safetensors")
    for key in first:
        assert torch.equal(first[key], second[key]), key
