r"""How long would a step take on 8 to 1024 GPUs? A simulation from a compute rate and link speeds; no GPU is involved.

    python scripts/simulate_weak_scaling.py
    python scripts/simulate_weak_scaling.py --measured growth.json --images_per_gpu 128 --ib_gbps 25

Weak scaling: every GPU has the same number of images, so a step without communication takes the same time on any
number of them; efficiency is that time over the step's. All GPUs are alike, and none waits for data.

Compute. A block takes images x operations / rate, forward and backward (`maws_hf.evaluation.flops`); `--tflops` is the
rate, or `--measured` a file that bench_growth.py wrote. The optimizer's share is left out, and so is what kernels of
the network take from the others.

Messages of B bytes among n GPUs in m nodes, with links of w bytes/s:

    all-gather, reduce-scatter   (n - 1)/n B / w + (n - m) a + (m - 1) b      the ring
    all-reduce, the less of    2 (n - 1)/n B / w + 2 (n - m) a + 2 (m - 1) b  the ring, there and back
                                         2 B / w + 2 (n/m - 1) a + 2 ceil(log2 m) b  a tree over nodes of chains

a and b are the latencies of a hop inside and between nodes. Inside a node w is `--nvlink_gbps`. Between nodes NCCL
lays as many rings as there are network cards, each with its part of the bytes: w is the less of `--nvlink_gbps` and
`--rings` x `--ib_gbps`. With `--rings 1` all bytes pass one card, the worst case.

Ways to share the work, as `maws_hf.training` does it:

    DDP    gradients (float32, 4 B a parameter) are summed in buckets of `--bucket_mb` as the backward pass fills them.
    FSDP2  weights of a block (bfloat16, 2 B; float32 of what is in no block) are gathered before its forward and again
           before its backward pass, while the block before computes; gradients (4 B) are scattered after it. The norms
           of all blocks (float32) are one more message each time. Of every tensor as many rows pass from each GPU:
           ceil(rows / n) n in all.
    HSDP   the same inside a node only; then each GPU sums its part of the gradients with its peers in other nodes,
           over its own card and at the same time as the next messages inside the node; how to ask for it is in
           `examples/accelerate/hsdp.yaml`.

Messages of one kind of link follow each other in the order in which they are asked for. A setting that does not fit
`--memory_gib` (`maws_hf.evaluation.memory_plan`) is computed with checkpointed blocks (one forward pass more; marked
c), or left out (-).
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from side_by_side import markdown_table, positive
from simulated_step import TASKS, WAYS, Cluster, Stage, simulate, stages_of

from maws_hf import MawsViTConfig
from maws_hf.evaluation.memory_plan import GIB, RESERVED, plan_memory
from maws_hf.evaluation.memory_stages import Setting
from maws_hf.models.configuration_maws_vit import SIZES
from maws_hf.visualization import save_picture


def main() -> None:
    arguments = parse_arguments()
    cluster = Cluster(
        arguments.nvlink_gbps * 1e9,
        arguments.ib_gbps * 1e9,
        arguments.nvlink_us * 1e-6,
        arguments.ib_us * 1e-6,
        arguments.gpus_per_node,
        arguments.rings or arguments.gpus_per_node,
    )
    measured = rates_of(arguments.measured) if arguments.measured else {}
    print(about(arguments, cluster, measured))
    panels: dict[str, dict[str, list[float]]] = {}
    for task in arguments.tasks:
        rows = []
        for size in arguments.sizes:
            rate = measured.get(size, arguments.tflops * 1e12)
            for way in WAYS:
                cells = [cell(task, size, way, gpus, cluster, rate, arguments) for gpus in arguments.gpus]
                panels.setdefault(f"{task} {size}", {})[way] = [efficiency for _, efficiency in cells]
                rows.append([size, way, *(text for text, _ in cells)])
        print(f"\n{task}: milliseconds a step (efficiency)\n")
        print(markdown_table(["size", "way", *(f"{gpus} GPUs" for gpus in arguments.gpus)], rows))
    if arguments.output:
        draw(panels, arguments.gpus, arguments.output)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--gpus_per_node", type=int, default=8)
    parser.add_argument("--images_per_gpu", type=int, default=64)
    parser.add_argument("--labels", type=positive, default=28_000, help="classes of wsp (default: 28000)")
    parser.add_argument(
        "--tflops", type=float, default=395.0, help="useful rate of a GPU; the default is half of an H200's 790"
    )
    parser.add_argument("--measured", type=Path, help="file of bench_growth.py --json; its rates, by model size")
    parser.add_argument("--nvlink_gbps", type=float, default=450.0, help="GB/s of a GPU inside a node (default: 450)")
    parser.add_argument("--ib_gbps", type=float, default=50.0, help="GB/s of a GPU's network card (default: 50)")
    # Between the constants in NCCL's tuning.cc: 1.9 and 4.0 for its protocol LL128, 3.4 and 14 for Simple.
    parser.add_argument("--nvlink_us", type=float, default=2.0, help="latency of a hop in a node (default: 2)")
    parser.add_argument("--ib_us", type=float, default=5.0, help="latency of a hop between nodes (default: 5)")
    parser.add_argument("--rings", type=positive, help="cards a message is spread over (default: one a GPU)")
    parser.add_argument("--bucket_mb", type=float, default=25.0, help="of DDP (default: 25, as in PyTorch)")
    parser.add_argument("--memory_gib", type=float, default=139.0, help="of a GPU (default: 139)")
    parser.add_argument("--no_overlap", action="store_true", help="communication waits for compute, and the reverse")
    parser.add_argument("--output", type=Path, help="picture to draw")
    arguments = parser.parse_args(argv)
    above_zero = ("gpus_per_node", "images_per_gpu", "tflops", "nvlink_gbps", "ib_gbps", "bucket_mb", "memory_gib")
    for name in above_zero:
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name} {getattr(arguments, name)} must be more than 0")
    for gpus in arguments.gpus:
        if gpus < 1 or (gpus > arguments.gpus_per_node and gpus % arguments.gpus_per_node):
            parser.error(f"--gpus {gpus} do not fill nodes of --gpus_per_node {arguments.gpus_per_node}")
    return arguments


def rates_of(file: Path) -> dict[str, float]:
    """Operations a second of an MAE step, the best of each model size in a file of bench_growth.py."""
    rates: dict[str, float] = {}
    for record in json.loads(file.read_text(encoding="utf-8"))["records"]:
        rate = record["mae_flops"] / record["mae_seconds"]
        rates[record["size"]] = max(rates.get(record["size"], 0.0), rate)
    return rates


def about(arguments: argparse.Namespace, cluster: Cluster, measured: dict[str, float]) -> str:
    rates = [f"{size} {rate / 1e12:.4g}" for size, rate in measured.items() if size in arguments.sizes]
    stated = [size for size in arguments.sizes if size not in measured]
    if stated:
        rates.append(f"{'all' if not rates else ', '.join(stated)} {arguments.tflops:.4g} (stated)")
    return (
        "A simulation, not a measurement: no step was run on these GPUs.\n"
        f"Assumed: {arguments.images_per_gpu} images a GPU; useful TFLOP/s a GPU: {'; '.join(rates)};\n"
        f"nodes of {cluster.per_node}, {cluster.nvlink / 1e9:.4g} GB/s and {cluster.inside * 1e6:.3g} us a hop inside,"
        f" {cluster.rings} x {cluster.network / 1e9:.4g} GB/s and {cluster.between * 1e6:.3g} us between them;\n"
        f"bfloat16 weights and float32 gradients on the wire, DDP buckets of {arguments.bucket_mb:.4g} MB, "
        f"{arguments.memory_gib:.4g} GiB a GPU; messages {'wait for' if arguments.no_overlap else 'overlap'} compute; "
        "no optimizer, no waiting for data.\n"
        "c: blocks checkpointed, because otherwise it does not fit; -: does not fit."
    )


def cell(
    task: str, size: str, way: str, gpus: int, cluster: Cluster, rate: float, arguments: argparse.Namespace
) -> tuple[str, float]:
    """Text for the table, and the efficiency; NaN if the step does not fit."""
    share = 1 if way == "DDP" else min(gpus, cluster.per_node) if way == "HSDP" else gpus
    setting = Setting(task, arguments.images_per_gpu, arguments.labels, max(share, min(gpus, 2)), bf16=True)
    setting = replace(setting, fsdp=share > 1)
    memory = arguments.memory_gib * GIB * (1 - RESERVED)
    checkpointing = _peak(size, setting) > memory
    if checkpointing and _peak(size, replace(setting, checkpointing=True)) > memory:
        return "-", math.nan
    step = simulate(
        _stages_of_size(task, size, arguments.labels),
        way,
        gpus,
        cluster,
        images=arguments.images_per_gpu,
        rate=rate,
        overlap=not arguments.no_overlap,
        checkpointing=checkpointing,
        bucket=arguments.bucket_mb * 1e6,
    )
    mark = " c" if checkpointing else ""
    return f"{1000 * step.seconds:.0f} ({100 * step.efficiency:.0f} %){mark}", step.efficiency


@cache
def _stages_of_size(task: str, size: str, labels: int) -> list[Stage]:
    return stages_of(task, MawsViTConfig.from_size(size), labels)


@cache
def _peak(size: str, setting: Setting) -> float:
    return plan_memory(MawsViTConfig.from_size(size), setting).peak


def draw(panels: dict[str, dict[str, list[float]]], gpus: list[int], file: Path) -> None:
    """Efficiency over the number of GPUs, a panel for each task and size."""
    import matplotlib

    matplotlib.use("Agg")  # a file is wanted, and there may be no screen
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(title.split()[0] for title in panels))
    columns = len(panels) // len(tasks)
    figure, axes = pyplot.subplots(
        len(tasks), columns, figsize=(2.6 * columns, 0.8 + 2.3 * len(tasks)), layout="constrained", squeeze=False,
        sharex=True, sharey=True,
    )  # fmt: skip
    for axis, (title, ways) in zip(axes.flat, panels.items(), strict=True):
        for number, (way, efficiencies) in enumerate(ways.items()):
            percent = [100 * efficiency for efficiency in efficiencies]
            axis.plot(gpus, percent, color=f"C{number}", marker=".", label=way)
        axis.set(title=title, ylim=(0, 105))
        axis.set_xscale("log", base=2)
        axis.set_xticks(gpus[::3], labels=gpus[::3])
    figure.supxlabel("GPUs")
    figure.supylabel("efficiency, % (simulated)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(WAYS))
    save_picture(lambda path: figure.savefig(path, dpi=120, format="png"), file)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
