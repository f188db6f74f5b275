r"""How much longer is a step of the training loop than the same step on a batch that lies ready?

    OMP_NUM_THREADS=1 python scripts/bench_loop.py
    OMP_NUM_THREADS=1 python scripts/bench_loop.py --rates "my GPU=3000" --device_batch 512 --workers 16

Part 1, measured: MAE steps of the laptop's recipe on this CPU. The bare step (forward, backward, AdamW) on one batch,
the training loop on that same batch, and the loop with the real loader (Parquet, decoding, crops) and one worker take
turns. Wall time counts, because waiting does; so other programs of the machine do too. Beside it is CPU time of the
main process, which they touch less.

Part 2, measured: what the loader supplies, with the CPU time of its workers for an image; and the loop around an
accelerator of so many images a second, whose step is a wait of batch / rate seconds. What the loop's step takes beyond
that wait is the loop's: getting the batch, bookkeeping, a wait for the loader. A real accelerator works while the main
process does the later part of that, so it loses less.

Part 3, calculated from part 2, for accelerators that are not here: how many cores feed them (rate x CPU time of an
image), and by how much the loop's step is longer: CPU time of the main process (fixed + for each image, through the
measured batches with most workers) and the copy of a batch of bytes over `--pcie_gbps`, which the loop does not
overlap. An upper bound: beside a GPU a thread of its own takes batches over and frees their memory (`pin_memory`),
which here the main thread does, and that share grows with the batch. Other cores are not these.

Saving checkpoints is left out everywhere.
"""

import argparse
import contextlib
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from accelerate import Accelerator
from bench_data import SOURCES, synthetic_jpeg
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from side_by_side import describe_machine, markdown_table, ratio, take_turns
from transformers import PreTrainedModel
from transformers.utils import logging

from maws_hf import MawsMAEForPreTraining, MawsViTConfig, MawsViTModel
from maws_hf.optim.groups import parameter_groups
from maws_hf.training.images import ImageRecipe, build_training_loader
from maws_hf.training.loop import BatchLoss, train

LAPTOP = Path(__file__).parents[1] / "examples" / "recipes" / "mae_laptop.yaml"
SIDE = 224  # of the crops that an accelerator gets
SHARDS = 16
WARM_UP = 3  # steps of a run that are not counted: the workers start, and fill their queues
# Images a second at half of the 790 TFLOP/s that a large bfloat16 product reached on an H200.
RATES = {
    **{"MAE ViT-B": 6757.0, "MAE ViT-L": 3180.0, "MAE ViT-H": 1357.0, "MAE ViT-2B": 504.0, "MAE ViT-6.5B": 154.0},
    **{"WSP ViT-B": 4022.0, "WSP ViT-L": 1107.0},
}


def main() -> None:
    arguments = parse_arguments()
    logging.disable_progress_bar()
    print(describe_machine())
    print(f"{os.cpu_count()} cores; load of the last minute {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        corpora = []
        for height, width, quality in SOURCES:
            corpus = Path(folder, f"{width} x {height}")
            write_pictures(corpus, arguments.pictures, (height, width, quality))
            corpora.append(corpus)
        print(f"\n1. Real steps\n\n{compare_real_steps(corpora[-1], arguments)}")
        supply = [measure_supply(corpus, arguments) for corpus in corpora]
        print(f"\n2. The loader, and a device that waits\n\n{supply_table(corpora, supply)}\n")
        loops = [
            simulate_device(corpora[-1], batch, workers, load * supply[-1].rate)
            for batch in arguments.batches
            for workers in arguments.workers
            for load in arguments.loads
        ]
        if arguments.device_images_per_second:
            rates = arguments.device_images_per_second
            loops += [
                simulate_device(corpora[-1], arguments.batches[-1], arguments.workers[0], rate) for rate in rates
            ]
        print(loop_table(loops))
        print(f"\n3. Calculated for {arguments.device_batch} images a step: cores, and at most so much longer\n")
        print(calculated_table(corpora, supply, loops, arguments))


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    cores = os.cpu_count() or 1
    parser.add_argument("--pictures", type=int, default=256, help="of each kind, on disk (default: 256)")
    parser.add_argument("--rounds", type=int, default=5, help="of part 1 (default: 5)")
    parser.add_argument("--steps", type=int, default=20, help="counted in each run of the loop (default: 20)")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512], help="of part 2 (default: 64 512)")
    parser.add_argument("--workers", type=int, nargs="+", default=[cores, 8], help=f"of part 2 (default: {cores} 8)")
    parser.add_argument(
        "--loads", type=float, nargs="+", default=[0.5], help="rates, as shares of the loader's supply (default: 0.5)"
    )
    parser.add_argument("--device_images_per_second", type=float, nargs="+", default=[], help="more rates, as such")
    parser.add_argument("--rates", type=named_rate, nargs="+", default=list(RATES.items()), metavar="NAME=IMAGES_A_S")
    parser.add_argument("--device_batch", type=int, default=1024, help="of part 3 (default: 1024)")
    parser.add_argument("--pcie_gbps", type=float, default=50.0, help="GB/s to the accelerator (default: 50)")
    return parser.parse_args(argv)


def named_rate(text: str) -> tuple[str, float]:
    name, _, rate = text.rpartition("=")
    return name or text, float(rate)


def write_pictures(folder: Path, count: int, source: tuple[int, int, int]) -> None:
    """JPEG bytes in Parquet shards."""
    folder.mkdir()
    features = Features({"image": ImageFeature()})
    for shard in range(SHARDS):
        numbers = range(shard, count, SHARDS)
        rows = [{"bytes": synthetic_jpeg(*source, seed), "path": f"{seed}.jpg"} for seed in numbers]
        file = folder / f"train-{shard:05d}-of-{SHARDS:05d}.parquet"
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars of `datasets`
            Dataset.from_dict({"image": rows}, features=features).to_parquet(file)


class Resident:
    """One batch again and again, in the place of a loader."""

    def __init__(self, batch: dict[str, Any]):
        self.batch = batch
        self.dataset = self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return itertools.repeat(self.batch)

    def identity(self) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}


class Watched:
    """A loader, and the seconds that the loop has waited for each batch."""

    def __init__(self, loader: Any):
        self.loader = loader
        self.waits: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        iterator = iter(self.loader)  # now, and not with the first batch: a state may be asked for before
        return self._batches(iterator)

    def _batches(self, iterator: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        while True:
            start = time.perf_counter()
            batch = next(iterator)
            self.waits.append(time.perf_counter() - start)
            yield batch


def open_loader(corpus: Path, side: int, batch: int, workers: int) -> Any:
    recipe = ImageRecipe(
        output_dir="unused",
        dataset_name=str(corpus),
        per_device_train_batch_size=batch,
        dataloader_num_workers=workers,
        shuffle_block_size=128,
    )
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars of `datasets`
        return build_training_loader(recipe, side, Accelerator(cpu=True))


@dataclass(frozen=True)
class StepTimes:
    """Seconds a step of a run, in the mean."""

    wall: float
    cpu: float
    waited: float


def run_loop(model: PreTrainedModel, objective: BatchLoss, loader: Any, steps: int) -> StepTimes:
    """`steps` of the real training loop, after the first ones."""
    ticks: list[tuple[float, float]] = []

    def tick(_step: int, _model: PreTrainedModel) -> None:
        ticks.append((time.perf_counter(), time.process_time()))

    watched = Watched(loader)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        recipe = ImageRecipe(
            output_dir=folder, dataset_name="", max_steps=WARM_UP + steps, logging_steps=10, learning_rate=1e-4
        )
        train(model, objective, watched, recipe, Accelerator(cpu=True), after_step=tick)
    (start, cpu_start), (end, cpu_end) = ticks[WARM_UP - 1], ticks[-1]
    return StepTimes((end - start) / steps, (cpu_end - cpu_start) / steps, sum(watched.waits[WARM_UP:]) / steps)


# ---------------------------------------------------------------- 1. real steps


def compare_real_steps(corpus: Path, arguments: argparse.Namespace) -> str:
    recipe = yaml.safe_load(LAPTOP.read_text(encoding="utf-8"))
    torch.manual_seed(0)
    model = MawsMAEForPreTraining(MawsViTConfig(**recipe["config_overrides"])).train()
    side, size = model.config.image_size, recipe["per_device_train_batch_size"]
    loader = open_loader(corpus, side, size, 1)
    batch = next(iter(loader))
    times: dict[str, list[StepTimes]] = {}

    def note(name: str, measure: Callable[[], StepTimes]) -> Callable[[], None]:
        times[name] = []
        return lambda: times[name].append(measure())

    bare, resident, real = "bare step, resident batch", "loop, resident batch", "loop, real loader, 1 worker"
    forms = {
        bare: note(bare, lambda: run_bare(model, batch["pixel_values"], arguments.steps)),
        resident: note(resident, lambda: run_loop(model, masked_pixels, Resident(batch), arguments.steps)),
        real: note(real, lambda: run_loop(model, masked_pixels, open_loader(corpus, side, size, 1), arguments.steps)),
    }
    take_turns(forms, arguments.rounds)  # a run times its own steps: starting and saving do not count
    wall = {name: [step.wall for step in runs[1:]] for name, runs in times.items()}
    cpu = {name: [step.cpu for step in runs[1:]] for name, runs in times.items()}
    rows = []
    for name, runs in times.items():
        longer = [own / base for own, base in zip(wall[name], wall[bare], strict=True)]
        rows.append(
            [
                name,
                f"{1000 * statistics.median(wall[name]):.1f}",
                f"{percent(1 / ratio(wall, name, bare))} ({percent(min(longer))} to {percent(max(longer))})",
                f"{1000 * statistics.median(step.waited for step in runs[1:]):.2f}",
                f"{1000 * statistics.median(cpu[name]):.1f}",
                percent(1 / ratio(cpu, name, bare)),
            ]
        )
    header = ["step", "ms", "longer than bare: median (range)", "waits for a batch, ms", "CPU ms", "longer"]
    return f"{size} images of {side} pixels, {arguments.steps} steps a turn\n\n{markdown_table(header, rows)}"


def masked_pixels(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    return model(batch["pixel_values"]).loss


def run_bare(model: MawsMAEForPreTraining, pixels: torch.Tensor, steps: int) -> StepTimes:
    """What a step cannot do without."""
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-4, betas=(0.9, 0.95), fused=True)
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            start, cpu_start = time.perf_counter(), time.process_time()
        model(pixels).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return StepTimes((time.perf_counter() - start) / steps, (time.process_time() - cpu_start) / steps, 0.0)


def percent(factor: float) -> str:
    return f"{100 * (factor - 1):+.1f} %"


# ---------------------------------------------------------------- 2. the loader, and a device that waits


@dataclass(frozen=True)
class Supply:
    """Of a loader that is read without a pause."""

    workers: int
    rate: float  # images a second
    cpu: float  # seconds of the workers for an image


def measure_supply(corpus: Path, arguments: argparse.Namespace) -> Supply:
    workers, size = arguments.workers[0], arguments.batches[0]
    batches = iter(open_loader(corpus, SIDE, size, workers))
    for _ in range(4 * max(1, workers)):  # what the workers had ready before the clock starts
        next(batches)
    start, cpu_start, count = time.perf_counter(), cpu_of_children(), 0
    while time.perf_counter() - start < 4:
        count += len(next(batches)["keys"])
    return Supply(workers, count / (time.perf_counter() - start), (cpu_of_children() - cpu_start) / count)


def cpu_of_children() -> float:
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(time.user + time.system for time in times)


def supply_table(corpora: Sequence[Path], supply: Sequence[Supply]) -> str:
    rows = [
        [corpus.name, str(own.workers), f"{own.rate:.0f}", f"{1000 * own.cpu:.3f}", f"{1 / own.cpu:.0f}"]
        for corpus, own in zip(corpora, supply, strict=True)
    ]
    header = ["pictures", "workers", "images/s here", "worker CPU ms/image", "images/s of a core"]
    return markdown_table(header, rows)


@dataclass(frozen=True)
class Loop:
    """The loop around a device of `rate` images a second; seconds a step."""

    batch: int
    workers: int
    rate: float
    device: float
    times: StepTimes


def simulate_device(corpus: Path, batch: int, workers: int, rate: float, steps: int = 12) -> Loop:
    model = MawsViTModel(
        MawsViTConfig(hidden_size=16, num_hidden_layers=0, num_attention_heads=1, intermediate_size=16)
    )
    busy: list[float] = []

    def objective(model: torch.nn.Module, data: dict[str, Any]) -> torch.Tensor:
        start = time.perf_counter()
        time.sleep(len(data["keys"]) / rate)
        busy.append(time.perf_counter() - start)  # the system wakes sleepers late
        return next(model.parameters()).square().mean()

    times = run_loop(model, objective, open_loader(corpus, SIDE, batch, workers), steps)
    return Loop(batch, workers, rate, sum(busy[WARM_UP:]) / steps, times)


def loop_table(loops: Sequence[Loop]) -> str:
    rows = [
        [
            str(loop.batch),
            str(loop.workers),
            f"{loop.rate:.0f}",
            f"{1000 * loop.device:.1f}",
            f"{1000 * loop.times.wall:.1f}",
            percent(loop.times.wall / loop.device),
            f"{1000 * loop.times.waited:.2f}",
            f"{1000 * loop.times.cpu:.2f}",
        ]
        for loop in loops
    ]
    header = ["batch", "workers", "device images/s", "device ms", "loop ms", "longer", "waits for a batch, ms"]
    return markdown_table([*header, "main process CPU ms"], rows)


# ---------------------------------------------------------------- 3. calculated


def calculated_table(
    corpora: Sequence[Path], supply: Sequence[Supply], loops: Sequence[Loop], arguments: argparse.Namespace
) -> str:
    most = [loop for loop in loops if loop.workers == max(arguments.workers)]
    fixed, each = overhead_of_main_process([loop.batch for loop in most], [loop.times.cpu for loop in most])
    batch = arguments.device_batch
    main_process = fixed + each * batch
    copying = batch * 3 * SIDE * SIDE / (arguments.pcie_gbps * 1e9)
    rows = [
        [
            name,
            f"{rate:.0f}",
            *(f"{rate * own.cpu:.1f}" for own in supply),
            f"{1000 * batch / rate:.0f}",
            f"{1000 * main_process:.2f}",
            f"{1000 * copying:.2f}",
            percent(1 + (main_process + copying) * rate / batch),
        ]
        for name, rate in arguments.rates
    ]
    header = ["device", "images/s", *(f"cores, {corpus.name}" for corpus in corpora)]
    return markdown_table([*header, "device ms", "main process ms", "copy ms", "longer"], rows)


def overhead_of_main_process(batches: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds a step, and an image of it: a straight line through steps of several batch sizes, neither below 0."""
    if len(set(batches)) < 2:
        return statistics.median(seconds), 0.0
    line = statistics.linear_regression(batches, seconds)
    if line.slope < 0:
        return statistics.median(seconds), 0.0
    return max(0.0, line.intercept), line.slope


if __name__ == "__main__":
    main()
