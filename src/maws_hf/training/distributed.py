"""The processes of a run, as Accelerate sees them."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from transformers.utils import is_torch_tf32_available

from .arguments import TrainingArguments
from .interruption import PATIENCE
from .sharding import copies_wanted

# How long a process waits for the others. The 10 minutes of NCCL would end runs in which all is well: one process
# writes a large checkpoint to a slow disk, reads all labels of a split, or scores one that lies in a single shard. One
# that dies is noticed at once all the same (seen with gloo); only one that hangs is given up so late. Two hours: ours.
LONGEST_WAIT = timedelta(hours=2)


def build_accelerator(recipe: TrainingArguments) -> Accelerator:
    """Devices, precision, gradient synchronisation and trackers of this run; makes `output_dir`.

    Raises:
        ValueError: if the tracker of `--report_to` is not installed, `--tf32` is not possible here, or the launcher
            asks for DeepSpeed, Megatron, or copies of the model that its processes do not make.
    """
    for engine in ("DEEPSPEED", "MEGATRON_LM"):  # Accelerate would train with its own optimizer and step
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise ValueError(
                f"the accelerate config asks for {engine}, which these scripts do not train with: use "
                "examples/accelerate/fsdp2.yaml, which shards parameters, gradients and moments, too"
            )
    start_cpu_ranks()
    copies_wanted(int(os.environ.get("WORLD_SIZE", "1")))  # Accelerate would fail on them without saying why
    output_dir = Path(recipe.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    wanted = None if recipe.report_to == "none" else recipe.report_to
    accelerator = Accelerator(
        mixed_precision="bf16" if recipe.bf16 else "no",
        log_with=wanted,
        project_dir=output_dir,
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=LONGEST_WAIT),
        ],
    )
    launched, ours = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), accelerator.mixed_precision
    if launched not in ("no", ours):
        accelerator.print(
            f"warning: the launcher's mixed_precision {launched} changes nothing, this run has {ours}: --bf16 alone "
            "decides, give it for bfloat16"
        )
    if wanted is not None and not accelerator.log_with:
        raise ValueError(f"--report_to {wanted}: that tracker is not installed; pip install {wanted}")
    if recipe.tf32:
        if not is_torch_tf32_available():
            raise ValueError("--tf32 needs an NVIDIA GPU, of the generation of the A100 or later; leave it out")
        torch.set_float32_matmul_precision("high")  # what convolutions do by default
    options = {name: value for name, value in asdict(recipe).items() if value is not None}
    accelerator.init_trackers("maws_hf", config=options)
    return accelerator


def launcher_process() -> int | None:
    """The process id of `accelerate launch`, which does not pass SIGTERM on; None under torchrun or plain python."""
    if "MAWS_HF_LAUNCHER" in os.environ:
        return int(os.environ["MAWS_HF_LAUNCHER"])
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ:
        return os.getppid()
    return None


def start_cpu_ranks() -> None:
    """Makes `accelerate launch --cpu --num_processes N` start N processes.

    Without MPI, Accelerate starts a single one there, silently: it sets the rendezvous address, but no rank. This
    process then replaces itself by torchrun with N of its kind. N is known only to the launcher, our parent.

    Raises:
        ValueError: if the launcher's command does not tell N, or the processes are to be on several machines.
    """
    if "MASTER_PORT" not in os.environ or "ACCELERATE_USE_CPU" not in os.environ or "RANK" in os.environ:
        return
    if any(name in os.environ for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")):
        return
    if os.environ.get("MASTER_ADDR", "127.0.0.1") not in ("127.0.0.1", "localhost"):
        # Each machine would become a run of its own.
        raise ValueError(
            "accelerate launch does not start CPU processes on several machines; use `torchrun --nnodes M "
            "--nproc_per_node N --rdzv_backend c10d --rdzv_endpoint HOST:PORT` on each, with ACCELERATE_USE_CPU=true"
        )
    launcher = psutil.Process().parent()
    count = _num_processes(launcher.cmdline() if launcher else [])
    if count is None:
        raise ValueError(
            "accelerate launch asked for several CPU processes but started one; use "
            "`torchrun --nproc_per_node N` with ACCELERATE_USE_CPU=true instead"
        )
    os.environ["MAWS_HF_LAUNCHER"] = str(launcher.pid)
    os.environ.setdefault(PATIENCE, "600")  # a save may take longer than torchrun's 30 s
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    os.execv(sys.executable, [*ranks, *sys.argv])


def _num_processes(command: Sequence[str]) -> int | None:
    match = re.search(r"--num[_-]processes[= ](\d+)", " ".join(command))
    return int(match[1]) if match else None
