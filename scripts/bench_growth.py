r"""How do time and memory grow with the batch, the image, the mask and the model?

    OMP_NUM_THREADS=1 python scripts/bench_growth.py --output growth.png
    python scripts/bench_growth.py --device cuda --bf16 --model vit_l16 --batches 32 128 512 --image_sizes 224 448 \
        --sizes vit_b16 vit_l16 vit_h14 --json growth.json

Of the MAE step (forward, backward, AdamW) and of the encoder's forward pass for the
class token's feature. One thing varies at a time, from `--model` with `--batch` images of `--image_size` pixels and
`--mask_ratio`. Every point has a fresh process, so no point inherits memory or caches of another.

Time: the median over `--rounds`, step and encoder in turns; CPU time with one thread, else wall time.

Memory: of the tensors of a GPU (`max_memory_allocated`), or on a CPU the growth of the resident memory's peak, in a
process of its own in which freed memory goes back at once (which takes time, so that process is not timed). "MiB an
image" is the peak less what stands between two steps (weights and moments; weights), divided by the batch; with few
images it is mostly gradients. "plan" is the same from `maws_hf.evaluation.memory_plan`, which knows the step only.

An exponent p says that a quantity grows as the varied one to the power of p, fitted over all points; in brackets is
that of the operations, which a machine without fixed costs and bottlenecks would follow.
"""

import argparse
import gc
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from side_by_side import (
    add_device_options,
    describe_machine,
    markdown_table,
    need_linux,
    on_gpu,
    positive,
    take_turns,
    use_device,
    usual_batch,
)

from maws_hf import MawsMAEForPreTraining, MawsViTConfig
from maws_hf.evaluation.flops import image_tower_flops, mae_training_flops
from maws_hf.evaluation.memory_plan import plan_memory
from maws_hf.evaluation.memory_stages import Setting
from maws_hf.models.configuration_maws_vit import SIZES
from maws_hf.optim.groups import parameter_groups
from maws_hf.visualization import save_picture

MIB = 2**20
# Beside the paper's: sizes of which a laptop makes many steps, with a decoder as small in proportion.
SMALL_SIZES = {
    name: {
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "decoder_hidden_size": 2 * width // 3,
        "decoder_num_hidden_layers": 4,
        "decoder_num_attention_heads": width // 48,
        "decoder_intermediate_size": 8 * width // 3,
    }
    for name, width in (("vit_tiny16", 192), ("vit_small16", 384))
}
AXES = {
    "batch": "images a batch",
    "image_size": "pixels a side",
    "mask_ratio": "share of patches hidden",
    "size": "model",
}


@dataclass(frozen=True)
class Point:
    """What one process measures."""

    size: str
    batch: int
    image_size: int
    mask_ratio: float
    device: str = "cpu"
    tf32: bool = False
    bf16: bool = False
    compiled: bool = False
    rounds: int = 5

    @property
    def config(self) -> MawsViTConfig:
        return config_of(self.size, self.image_size, self.mask_ratio)


def config_of(size: str, image_size: int, mask_ratio: float) -> MawsViTConfig:
    fields = {"image_size": image_size, "mask_ratio": mask_ratio}
    if size in SMALL_SIZES:
        return MawsViTConfig(**SMALL_SIZES[size], **fields)
    return MawsViTConfig.from_size(size, **fields)


# ---------------------------------------------------------------- in the process of a point


@dataclass(frozen=True)
class Work:
    """The two pieces of work on one model and one resident batch."""

    step: Callable[[], torch.Tensor]
    encode: Callable[[], torch.Tensor]


def build_work(point: Point) -> Work:
    device = torch.device(point.device)
    torch.manual_seed(0)
    with device:
        model = MawsMAEForPreTraining(point.config).train()
        pixels = torch.randint(0, 256, (point.batch, 3, point.image_size, point.image_size), dtype=torch.uint8)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-4, fused=True)
    if point.compiled:
        model.compile()
        model.vit.compile()

    def precision() -> AbstractContextManager[None]:
        return torch.autocast(device.type, torch.bfloat16, enabled=point.bf16)

    def step() -> torch.Tensor:
        with precision():
            loss = model(pixels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def encode() -> torch.Tensor:
        with torch.inference_mode(), precision():
            return model.vit(pixels, class_token_only=True).pooler_output

    return Work(step, encode)


def measure_time(point: Point) -> dict[str, float]:
    """Seconds of a whole batch."""
    work = build_work(point)
    seconds, results = take_turns({"mae": work.step, "encoder": work.encode}, point.rounds, point.device)
    if not torch.isfinite(results["mae"]):
        raise RuntimeError(f"the loss of {point} is {results['mae']}")
    return {f"{name}_seconds": statistics.median(times) for name, times in seconds.items()}


def measure_memory(point: Point) -> dict[str, float]:
    """Bytes above what the process had before: at the peak of either work, and between two steps or calls."""
    meter = GpuMeter() if on_gpu(point.device) else ProcessMeter()
    once = replace(point, batch=1, compiled=False)
    warm_up = build_work(once)
    warm_up.encode(), warm_up.step()  # libraries load, kernels choose their buffers
    del warm_up
    meter.start()
    work = build_work(point)
    measured = {}
    for name, call in (("encoder", work.encode), ("mae", work.step)):
        call()  # AdamW makes its moments
        meter.reset()
        call()
        measured |= {f"{name}_peak": meter.peak(), f"{name}_standing": meter.now()}
    return measured


class ProcessMeter:
    """Resident memory of this process, from the kernel's own record of the peak (Linux)."""

    def start(self) -> None:
        need_linux("give --device cuda")
        gc.collect()
        self.base = psutil.Process().memory_info().rss

    def reset(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew from what is resident now

    def now(self) -> float:
        gc.collect()
        return psutil.Process().memory_info().rss - self.base

    def peak(self) -> float:
        status = Path("/proc/self/status").read_text()
        peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
        return peak - self.base


class GpuMeter:
    """Memory of the tensors of this process on the GPU."""

    def start(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        self.base = torch.cuda.memory_allocated()

    def reset(self) -> None:
        gc.collect()
        torch.cuda.reset_peak_memory_stats()

    def now(self) -> float:
        gc.collect()
        return torch.cuda.memory_allocated() - self.base

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated() - self.base


# ---------------------------------------------------------------- all points


def main() -> None:
    arguments = parse_arguments()
    if arguments.point:
        point = Point(**json.loads(arguments.point))
        use_device(point.device, point.tf32)
        measure = measure_time if arguments.measure == "time" else measure_memory
        print(json.dumps(measure(point)))
        return
    use_device(arguments.device, arguments.tf32)
    start = Point(
        arguments.model,
        arguments.batch,
        arguments.image_size,
        arguments.mask_ratio,
        arguments.device,
        arguments.tf32,
        arguments.bf16,
        arguments.compile,
        arguments.rounds,
    )
    values = {
        "batch": arguments.batches,
        "image_size": arguments.image_sizes,
        "mask_ratio": arguments.mask_ratios,
        "size": arguments.sizes,
    }
    points = {axis: [replace(start, **{axis: value}) for value in values[axis]] for axis in arguments.axes}
    try:
        for point in [start, *itertools.chain(*points.values())]:
            config_of(point.size, point.image_size, point.mask_ratio)
    except ValueError as error:
        raise SystemExit(f"bench_growth.py: error: {error}") from None
    precision = "bfloat16 autocast" if arguments.bf16 else "float32"
    print(describe_machine(arguments.device))
    print(f"{start.size}, {start.batch} images of {start.image_size}, {start.mask_ratio:.0%} hidden, {precision}; or:")
    known: dict[Point, dict[str, Any]] = {}
    records: dict[str, list[dict[str, Any]]] = {}
    for axis in arguments.axes:
        for point in points[axis]:
            if point not in known:
                known[point] = record_of(point)
        records[axis] = [known[point] for point in points[axis]]
        print(f"\n{axis}\n\n{table_of(axis, records[axis])}\n{growth_of(axis, records[axis])}", flush=True)
        if arguments.json:
            content = {"machine": describe_machine(arguments.device), "records": list(known.values())}
            arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if arguments.output:
        draw(records, arguments.output)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    sizes = [*SMALL_SIZES, *SIZES]
    add_device_options(parser)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--rounds", type=positive, default=5, help="default: 5")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES), help="what varies (default: all)")
    parser.add_argument("--model", choices=sizes, default="vit_tiny16", help="default: vit_tiny16, 192 wide")
    parser.add_argument(
        "--batch", type=positive, help="default: 8; 128 on a GPU, which waits for the host with few images"
    )
    parser.add_argument("--image_size", type=positive, default=224, help="default: 224")
    parser.add_argument("--mask_ratio", type=float, default=0.75, help="default: 0.75")
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--image_sizes", type=positive, nargs="+", default=[96, 160, 224, 320, 448])
    parser.add_argument("--mask_ratios", type=float, nargs="+", default=[0.25, 0.5, 0.75, 0.9])
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=["vit_tiny16", "vit_small16", "vit_b16"])
    parser.add_argument("--json", type=Path, help="file of the numbers, for simulate_weak_scaling.py")
    parser.add_argument("--output", type=Path, help="picture to draw")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=["time", "memory"], help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.batch is None:
        arguments.batch = usual_batch(arguments.device)
    return arguments


def record_of(point: Point) -> dict[str, Any]:
    """Everything about a point: of a whole batch, in seconds, operations and bytes."""
    config = point.config
    plan = plan_memory(config, Setting("mae", point.batch, bf16=point.bf16))
    return {
        **asdict(point),
        "parameters": plan.parameters,
        "mae_flops": point.batch * mae_training_flops(config),
        "encoder_flops": point.batch * image_tower_flops(config),
        "plan_peak": plan.peak,
        "plan_standing": plan.standing,
        **in_fresh_process(point, "time"),
        **in_fresh_process(point, "memory"),
    }


def in_fresh_process(point: Point, measure: str) -> dict[str, float]:
    environment = dict(os.environ)
    if measure == "memory":  # what is freed goes back at once: otherwise the allocator's habits are measured
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, __file__, "--measure", measure, "--point", json.dumps(asdict(point))]
    output = subprocess.check_output(command, text=True, env=environment)
    return json.loads(output.splitlines()[-1])


def table_of(axis: str, records: Sequence[dict[str, Any]]) -> str:
    header = [AXES[axis], "step ms/image", "GFLOP/s", "peak MiB", "MiB/image", "plan", "peak/plan"]
    header += ["encoder ms/image", "GFLOP/s", "peak MiB", "MiB/image"]
    rows = []
    for record in records:
        digits = 4 if on_gpu(record["device"]) else 2
        row = [str(record[axis])]
        for work in ("mae", "encoder"):
            seconds, peak = record[f"{work}_seconds"], record[f"{work}_peak"]
            row += [f"{1000 * seconds / record['batch']:.{digits}f}", f"{record[f'{work}_flops'] / seconds / 1e9:.1f}"]
            row += [f"{peak / MIB:.0f}", f"{memory_per_image(record, work) / MIB:.2f}"]
            if work == "mae":
                row += [f"{memory_per_image(record, 'plan') / MIB:.2f}", f"{peak / record['plan_peak']:.2f}"]
        rows.append(row)
    return markdown_table(header, rows)


def memory_per_image(record: dict[str, Any], work: str) -> float:
    return (record[f"{work}_peak"] - record[f"{work}_standing"]) / record["batch"]


def growth_of(axis: str, records: Sequence[dict[str, Any]]) -> str:
    """One line with the exponents, or nothing where there is only one point."""
    if len(records) < 2:
        return ""
    varied = {
        "batch": ("the batch", lambda record: record["batch"]),
        "image_size": ("the side", lambda record: record["image_size"]),
        "mask_ratio": ("the share that is shown", lambda record: 1 - record["mask_ratio"]),
        "size": ("the number of parameters", lambda record: record["parameters"]),
    }
    name, cost = varied[axis]
    costs = [cost(record) for record in records]

    def power(value: Callable[[dict[str, Any]], float]) -> str:
        return f"{exponent(costs, [value(record) for record in records]):.2f}"

    def of_work(work: str) -> str:
        time = power(lambda record: record[f"{work}_seconds"] / record["batch"])
        operations = power(lambda record: record[f"{work}_flops"] / record["batch"])
        return f"{time} ({operations})"

    return (
        f"\nTime an image grows with {name} to the power of {of_work('mae')} in the step, {of_work('encoder')} in the "
        f"encoder; memory of the step {power(lambda record: memory_per_image(record, 'mae'))}."
    )


def exponent(costs: Sequence[float], values: Sequence[float]) -> float:
    """Of the power law that fits best (least squares of the logarithms); NaN if a value is not positive."""
    if min(*costs, *values) <= 0:
        return math.nan
    return statistics.linear_regression(list(map(math.log, costs)), list(map(math.log, values))).slope


def draw(records: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Time above, memory below; a column for each thing that varies."""
    import matplotlib

    matplotlib.use("Agg")  # a file is wanted, and there may be no screen
    from matplotlib import pyplot, ticker

    columns = len(records)
    figure, axes = pyplot.subplots(2, columns, figsize=(3.1 * columns, 5.4), layout="constrained", squeeze=False)
    for column, (axis, points) in enumerate(records.items()):
        places = [record[axis] for record in points]
        time, memory = axes[:, column]
        for number, (work, label) in enumerate((("mae", "MAE step"), ("encoder", "encoder"))):
            style = {"color": f"C{number}", "marker": ".", "label": label}
            time.plot(places, [1000 * record[f"{work}_seconds"] / record["batch"] for record in points], **style)
            memory.plot(places, [memory_per_image(record, work) / MIB for record in points], **style)
        planned = [memory_per_image(record, "plan") / MIB for record in points]
        memory.plot(places, planned, color="grey", linestyle="--", label="step, planned")
        for panel in (time, memory):
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter(ticker.NullFormatter())
            if axis in ("batch", "image_size"):
                panel.set_xscale("log", base=2)
                panel.set_xticks(places, labels=places)
                panel.set_xticks([], minor=True)
        memory.set_xlabel(AXES[axis])
    axes[0, 0].set_ylabel("ms an image")
    axes[1, 0].set_ylabel("MiB an image")
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    save_picture(lambda path: figure.savefig(path, dpi=120, format="png"), file)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
