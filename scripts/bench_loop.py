r"""How much longer is a step of the training loop than the same step on a batch that lies ready?

    OMP_NUM_THREADS=1 python scripts/bench_loop.py
    OMP_NUM_THREADS=1 python scripts/bench_loop.py --rates "my GPU=3000" --device_batch 512 --workers 16
    python scripts/bench_loop.py --device cuda --size vit_l16 --device_batch 512

Part 1, measured: MAE steps of the laptop's recipe on this CPU. The bare step (forward, backward, AdamW) on one batch,
the training loop on that same batch, and the loop with the real loader (Parquet, decoding, crops) and one worker take
turns. Wall time counts, because waiting does; so other programs of the machine do too. Beside it is CPU time of the
main process, which they touch less.

Part 2, measured: what the loader supplies, with the CPU time of its workers for an image; then the loop around a
simulated accelerator of so many images a second. Like a real one it works by itself: the objective only notes until
when it is busy, batch / rate seconds more, and the loop waits for that where it reads its results. Batches are read
ahead as on an accelerator; a copy to ordinary memory stands for the transfer. What a step takes beyond batch / rate is
time in which the accelerator idles (and, some 0.1 ms, the system that wakes sleepers late).

A laptop decodes hundreds of images a second. To send thousands through the main process, the second table has
workers that decode nothing: they fill shared memory with random crops and hand it to the real `StatefulDataLoader`
(`--ready_batches`: for devices of these rates). Beside it is the same loop on one batch that lies on the device, and
what the host needs between two steps of a model that has as many modules as ViT-L (their width plays no part there).

Not simulated: the launch of kernels, for which the main thread of a real run needs the interpreter that the reading
thread needs as well; bandwidth that transfers take from the device; other processes of the same host.

Part 3, calculated from part 2, for accelerators that are not here: how many cores feed them (rate x CPU time of an
image), and by how much the loop's step is longer. It is taken to be the longer of two times: the device's and the CPU
time of the main thread, as if none of that were hidden; or that of the reading thread (its CPU time and the copy of a
batch over `--pcie_gbps`). Both CPU times are on lines through the measured batch sizes, of decoded batches with most
workers. Cores and memory of another machine are not this one's.

With `--device` there are no parts, but real MAE steps of `--size` on that device, in bfloat16, of `--device_batch`
crops: the bare step on a batch that lies there, the training loop on that batch, and the loop on crops that workers
hand out as above, copied to the device during the step before where it is a GPU. They take turns, each with a new
model.

Saving checkpoints is left out everywhere.
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
import yaml
from accelerate import Accelerator
from bench_data import SOURCES, synthetic_jpeg
from bench_growth import SMALL_SIZES, config_of
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from side_by_side import describe_machine, let_go, markdown_table, positive, ratio, take_turns, use_device, wait_for
from timed_loop import SIDE, WARM_UP, Device, ReadyBatches, Resident, StepTimes, open_ready, run_loop
from transformers.utils import logging

from maws_hf import MawsMAEForPreTraining, MawsViTConfig, MawsViTModel
from maws_hf.models.configuration_maws_vit import SIZES
from maws_hf.optim.groups import parameter_groups
from maws_hf.training import loop as training_loop
from maws_hf.training.images import ImageRecipe, build_training_loader

LAPTOP = Path(__file__).parents[1] / "examples" / "recipes" / "mae_laptop.yaml"
SHARDS = 16
STEP_HEADER = ["step", "ms", "longer than bare: median (range)", "waits for a batch, ms"]
# Images a second at half of the 790 TFLOP/s that a large bfloat16 product reached on an H200, by the operations of the
# plain models; what ours leaves out would make it 2 % more for MAE ViT-B, and 1 % and less for the others.
RATES = {
    **{"MAE ViT-B": 6757.0, "MAE ViT-L": 3180.0, "MAE ViT-H": 1357.0, "MAE ViT-2B": 504.0, "MAE ViT-6.5B": 154.0},
    **{"WSP ViT-B": 4022.0, "WSP ViT-L": 1107.0},
}


def main() -> None:
    arguments = parse_arguments()
    logging.disable_progress_bar()
    use_device(arguments.device or "cpu")
    print(describe_machine(arguments.device or "cpu"))
    print(f"{os.cpu_count()} cores; load of the last minute {os.getloadavg()[0]:.1f}")
    if arguments.device:
        print(f"\n{compare_on_device(arguments)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        corpora = []
        for height, width, quality in SOURCES:
            corpus = Path(folder, f"{width} x {height}")
            write_pictures(corpus, arguments.pictures, (height, width, quality))
            corpora.append(corpus)
        print(f"\n1. Real steps\n\n{compare_real_steps(corpora[-1], arguments)}")
        supply = [measure_supply(corpus, arguments) for corpus in corpora]
        print(f"\n2. The loader, and a device that works by itself\n\n{supply_table(corpora, supply)}\n")
        settings = [
            (batch, workers, load * supply[-1].rate)
            for batch in arguments.batches
            for workers in arguments.workers
            for load in arguments.loads
        ]
        fixed = [(arguments.batches[-1], arguments.workers[0], rate) for rate in arguments.device_images_per_second]
        loops = [
            simulate_device("decoded", open_loader(corpora[-1], SIDE, batch, workers), batch, workers, rate)
            for batch, workers, rate in settings + fixed
        ]
        print(loop_table(loops))
        milliseconds = 1000 * seconds_between_steps("vit_l16", arguments.steps)
        print(
            f"\nfrom a result to the next forward pass, with the modules of vit_l16: {milliseconds:.2f} ms of the host"
        )
        if arguments.ready_batches:
            ready = run_ready(arguments)
            print(f"\n{loop_table(ready)}")
            loops += [loop for loop in ready if loop.data == "ready"]
        print(f"\n3. Calculated for {arguments.device_batch} images a step\n")
        print(calculated_table(corpora, supply, loops, arguments))


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    cores = os.cpu_count() or 1
    parser.add_argument("--pictures", type=positive, default=256, help="of each kind, on disk (default: 256)")
    parser.add_argument("--rounds", type=positive, default=5, help="of part 1, or with --device (default: 5)")
    parser.add_argument("--steps", type=positive, default=20, help="counted in each run of the loop (default: 20)")
    parser.add_argument("--batches", type=positive, nargs="+", default=[64, 512], help="of part 2 (default: 64 512)")
    workers = f"of part 2 (default: {cores} 8); the last number with --device"
    parser.add_argument("--workers", type=positive, nargs="+", default=[cores, 8], help=workers)
    parser.add_argument(
        "--loads", type=float, nargs="+", default=[0.5], help="rates, as shares of the loader's supply (default: 0.5)"
    )
    parser.add_argument("--device_images_per_second", type=float, nargs="+", default=[], help="more rates, as such")
    parser.add_argument(
        "--ready_batches",
        type=float,
        nargs="*",
        default=[6757.0, 4022.0, 3180.0, 1357.0],
        metavar="RATE",
        help="images a second of devices that get batches which nobody decodes (default: 6757 4022 3180 1357)",
    )
    parser.add_argument("--rates", type=named_rate, nargs="+", default=list(RATES.items()), metavar="NAME=IMAGES_A_S")
    parser.add_argument(
        "--device_batch", type=positive, default=1024, help="of ready batches and part 3 (default: 1024)"
    )
    parser.add_argument("--device", help="cuda, cuda:1 or cpu: real steps there, instead of the three parts")
    parser.add_argument("--size", default="vit_b16", choices=[*SMALL_SIZES, *SIZES], help="there (default: vit_b16)")
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


# ---------------------------------------------------------------- 1. real steps


def compare_real_steps(corpus: Path, arguments: argparse.Namespace) -> str:
    recipe = yaml.safe_load(LAPTOP.read_text(encoding="utf-8"))
    torch.manual_seed(0)
    model = MawsMAEForPreTraining(MawsViTConfig(**recipe["config_overrides"])).train()
    side, size = model.config.image_size, recipe["per_device_train_batch_size"]
    loader = open_loader(corpus, side, size, 1)
    batch = next(iter(loader))
    bare = "bare step, resident batch"
    times = in_turns(
        {
            bare: lambda: run_bare(model, batch["pixel_values"], arguments.steps),
            "loop, resident batch": lambda: run_loop(model, masked_pixels, Resident(batch), arguments.steps),
            "loop, real loader, 1 worker": lambda: run_loop(
                model, masked_pixels, open_loader(corpus, side, size, 1), arguments.steps
            ),
        },
        arguments.rounds,
    )
    cpu = {name: [step.cpu for step in runs] for name, runs in times.items()}
    rows = [
        [*row, f"{1000 * statistics.median(cpu[name]):.1f}", percent(1 / ratio(cpu, name, bare))]
        for name, row in zip(times, step_rows(times, bare), strict=True)
    ]
    table = markdown_table([*STEP_HEADER, "CPU ms", "longer"], rows)
    return f"{size} images of {side} pixels, {arguments.steps} steps a turn\n\n{table}"


def in_turns(measures: dict[str, Callable[[], StepTimes]], rounds: int) -> dict[str, list[StepTimes]]:
    """Round by round, after a first one: a run times its own steps, so that its start does not count."""
    times: dict[str, list[StepTimes]] = {name: [] for name in measures}
    take_turns({name: lambda name=name: times[name].append(measures[name]()) for name in measures}, rounds)
    return {name: runs[1:] for name, runs in times.items()}


def step_rows(times: dict[str, list[StepTimes]], bare: str) -> list[list[str]]:
    wall = {name: [step.wall for step in runs] for name, runs in times.items()}
    rows = []
    for name, runs in times.items():
        longer = [own / base for own, base in zip(wall[name], wall[bare], strict=True)]
        rows.append(
            [
                name,
                f"{1000 * statistics.median(wall[name]):.1f}",
                f"{percent(1 / ratio(wall, name, bare))} ({percent(min(longer))} to {percent(max(longer))})",
                f"{1000 * statistics.median(step.waited for step in runs):.2f}",
            ]
        )
    return rows


def masked_pixels(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    return model(batch["pixel_values"]).loss


def run_bare(model: MawsMAEForPreTraining, pixels: torch.Tensor, steps: int, *, bf16: bool = False) -> StepTimes:
    """What a step cannot do without."""
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-4, betas=(0.9, 0.95), fused=True)
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            wait_for(pixels.device)
            start, cpu_start = time.perf_counter(), time.process_time()
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            loss = model(pixels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    wait_for(pixels.device)
    wall, cpu = (time.perf_counter() - start) / steps, (time.process_time() - cpu_start) / steps
    return StepTimes(wall, cpu, cpu, 0.0)


def percent(factor: float) -> str:
    return f"{100 * (factor - 1):+.1f} %"


def compare_on_device(arguments: argparse.Namespace) -> str:
    device, size, workers = torch.device(arguments.device), arguments.device_batch, arguments.workers[-1]
    batch = next(iter(ReadyBatches(size)))
    batch["pixel_values"] = batch["pixel_values"].to(device)

    def new_model() -> MawsMAEForPreTraining:
        let_go()
        with device:
            return MawsMAEForPreTraining(config_of(arguments.size, SIDE, 0.75)).train()

    def loop(loader: Any) -> StepTimes:
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16")
        return run_loop(new_model(), masked_pixels, loader, arguments.steps, accelerator=accelerator)

    bare = "bare step, resident batch"
    times = in_turns(
        {
            bare: lambda: run_bare(new_model(), batch["pixel_values"], arguments.steps, bf16=True),
            "loop, resident batch": lambda: loop(Resident(batch)),
            f"loop, ready batches, {workers} workers": lambda: loop(open_ready(size, workers)),
        },
        arguments.rounds,
    )
    table = markdown_table(STEP_HEADER, step_rows(times, bare))
    return f"{arguments.size}, {size} images of {SIDE} pixels, {arguments.steps} steps a turn\n\n{table}"


# ---------------------------------------------------------------- 2. the loader, and a device that works by itself


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
    """The loop around a device of `rate` images a second."""

    data: str
    batch: int
    workers: int
    rate: float
    times: StepTimes

    @property
    def device(self) -> float:
        """Seconds that the device works on a step."""
        return self.batch / self.rate


def simulate_device(data: str, loader: Any, batch: int, workers: int, rate: float, steps: int = 12) -> Loop:
    model = MawsViTModel(
        MawsViTConfig(hidden_size=16, num_hidden_layers=0, num_attention_heads=1, intermediate_size=16)
    )
    device = Device(rate, transfers=data != "resident")
    return Loop(data, batch, workers, rate, run_loop(model, device.objective, loader, steps, device=device))


def seconds_between_steps(size: str, steps: int) -> float:
    """What the host needs from the result of a step to the next forward pass, while an accelerator has no work."""
    narrow = {"hidden_size": 16, "num_attention_heads": 1, "intermediate_size": 16}
    narrow |= {f"decoder_{name}": value for name, value in narrow.items()}
    side = 2 * MawsViTConfig.from_size(size).patch_size
    model = MawsMAEForPreTraining(MawsViTConfig.from_size(size, image_size=side, **narrow)).train()
    batch = {"pixel_values": torch.zeros(2, 3, side, side, dtype=torch.uint8), "keys": ["a", "b"], "skipped": []}
    results: list[float] = []
    spent: list[float] = []

    def read(numbers: torch.Tensor) -> list[float]:
        values = numbers.tolist()
        results.append(time.perf_counter())
        return values

    def objective(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        spent.extend(time.perf_counter() - result for result in results[-1:])
        return masked_pixels(model, batch)

    with mock.patch.object(training_loop, "wait_for", read):
        run_loop(model, objective, Resident(batch), steps)
    return statistics.median(spent[WARM_UP - 1 :])


def run_ready(arguments: argparse.Namespace) -> list[Loop]:
    """A batch that lies on the device, and batches that nobody decodes, for devices of the wanted rates."""
    batch, workers = arguments.device_batch, arguments.workers[0]
    resident = Resident(next(iter(ReadyBatches(batch))))
    return [
        loop
        for rate in arguments.ready_batches
        for loop in (
            simulate_device("resident", resident, batch, 0, rate),
            simulate_device("ready", open_ready(batch, workers), batch, workers, rate),
        )
    ]


def loop_table(loops: Sequence[Loop]) -> str:
    rows = [
        [
            loop.data,
            str(loop.batch),
            str(loop.workers),
            f"{loop.rate:.0f}",
            f"{1000 * loop.device:.1f}",
            f"{1000 * loop.times.wall:.1f}",
            percent(loop.times.wall / loop.device),
            f"{1000 * loop.times.waited:.2f}",
            f"{1000 * loop.times.thread:.2f}",
            f"{1000 * (loop.times.cpu - loop.times.thread):.2f}",
        ]
        for loop in loops
    ]
    header = ["data", "batch", "workers", "device images/s", "device ms", "loop ms", "longer", "waits for a batch, ms"]
    return markdown_table([*header, "main thread CPU ms", "reading thread CPU ms"], rows)


# ---------------------------------------------------------------- 3. calculated


def calculated_table(
    corpora: Sequence[Path], supply: Sequence[Supply], loops: Sequence[Loop], arguments: argparse.Namespace
) -> str:
    most = [loop for loop in loops if loop.data == "ready" or loop.workers == max(arguments.workers)]
    batch = arguments.device_batch
    sizes = [loop.batch for loop in most]
    main_thread = seconds_at(batch, sizes, [loop.times.thread for loop in most])
    reading = seconds_at(batch, sizes, [loop.times.cpu - loop.times.thread for loop in most])
    copying = batch * 3 * SIDE * SIDE / (arguments.pcie_gbps * 1e9)
    rows = [
        [
            name,
            f"{rate:.0f}",
            *(f"{rate * own.cpu:.1f}" for own in supply),
            f"{1000 * batch / rate:.0f}",
            f"{1000 * main_thread:.2f}",
            f"{1000 * (reading + copying):.2f}",
            percent(max(batch / rate + main_thread, reading + copying) * rate / batch),
        ]
        for name, rate in arguments.rates
    ]
    header = ["device", "images/s", *(f"cores, {corpus.name}" for corpus in corpora)]
    return markdown_table([*header, "device ms", "main thread ms", "reading and copy ms", "longer"], rows)


def seconds_at(batch: int, batches: Sequence[int], seconds: Sequence[float]) -> float:
    """Where a straight line through the times of steps of several batch sizes is at `batch`; it does not fall."""
    if len(set(batches)) > 1:
        line = statistics.linear_regression(batches, seconds)
        if line.slope >= 0:
            return max(0.0, line.intercept) + line.slope * batch
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
