"""What a run leaves to read: metrics, skipped images, refused steps, and a progress bar."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm

from ..whole_files import write_atomically


def make_output_dir(folder: str) -> Path:
    """Made before anything is computed, for it may be impossible.

    Raises:
        ValueError: nothing can be written there.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Path(folder)
    except OSError as error:
        raise ValueError(
            f"--output_dir {folder} cannot be written to ({error.strerror}): choose another folder"
        ) from error


def write_json(content: Any, file: Path) -> None:
    """In one step, in a folder that is made if it is not there; NaN is refused, which JSON does not have."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


class JsonLines:
    """An append-only `.jsonl` file whose lines carry a `step` and that can be cut back to a checkpoint."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, line: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise OSError(
                error.errno, error.strerror, str(self.path)
            ) from error  # a full disk does not say which file

    def cut_back(self, step: int) -> None:
        """Drops lines after `step`: updates that a killed run did but could not save will be done again."""
        if not self.path.exists():
            return
        kept = [json.dumps(line) for line in self.read() if line["step"] <= step]
        write_atomically(self.path, "".join(f"{line}\n" for line in kept).encode())

    def read(self) -> list[dict[str, Any]]:
        """The lines that are whole: a kill or a full disk may have torn one, which is no reason to stop a run."""
        lines = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
        return lines


def cut_back_ranks(output_dir: Path, world_size: int, step: int) -> None:
    """Cuts back the lines of ranks from `world_size` on: those of an earlier run on more processes."""
    for file in output_dir.glob("*-rank*.jsonl"):
        rank = file.stem.rpartition("-rank")[2]
        if rank.isdecimal() and int(rank) >= world_size:
            JsonLines(file).cut_back(step)


class Progress:
    """The bar, `metrics.jsonl` and Accelerate's trackers; only the main process shows and writes."""

    def __init__(self, accelerator: Accelerator, output_dir: Path, first_step: int, max_steps: int):
        self.accelerator = accelerator
        self.metrics = JsonLines(output_dir / "metrics.jsonl")
        if accelerator.is_main_process:
            self.metrics.cut_back(first_step)
        self.bar = tqdm(
            total=max_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            disable=not accelerator.is_main_process,
            mininterval=0.1 if sys.stderr.isatty() else 10,  # seconds; a log file keeps every update
        )

    def advance(self) -> None:
        self.bar.update()

    def log(self, step: int, metrics: dict[str, float | None]) -> None:
        """Metrics that are None were not to be had, such as the loss where every update was refused."""
        if not self.accelerator.is_main_process:
            return
        self.metrics.append({"step": step, **metrics})
        self.accelerator.log({name: value for name, value in metrics.items() if value is not None}, step=step)
        loss = "refused" if metrics["loss"] is None else f"{metrics['loss']:.4f}"
        shown = {"loss": loss, "img/s": f"{metrics['images_per_second']:.0f}"}
        if "flops_utilization" in metrics:
            shown["of peak"] = f"{metrics['flops_utilization']:.0%}"
        self.bar.set_postfix(shown)

    def say(self, message: str) -> None:
        """A line above the bar, from the main process only."""
        if self.accelerator.is_main_process:
            self.bar.write(message)

    def close(self) -> None:
        self.bar.close()
