"""Predicted and measured memory of training steps on the CPU, side by side.

    python scripts/bench_memory_plan.py --sizes vit_b16 --batches 8 16

Two measures: the largest sum of the tensors that exist at once, and the growth of the process'
resident memory, which also has what kernels use inside. `--fake` runs the
steps on tensors without memory: any size, the first measure only. `--ranks 2` shards the model over as many processes
(gloo) and counts the tensors of the first.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from side_by_side import need_linux, positive
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.initialization import no_init_weights

from maws_hf import (
    MawsLiTConfig,
    MawsLiTModel,
    MawsMAEForPreTraining,
    MawsViTConfig,
    MawsViTForImageClassification,
)
from maws_hf.evaluation.memory_plan import TASKS, plan_memory
from maws_hf.evaluation.memory_stages import Setting
from maws_hf.evaluation.text_memory import text_config_of
from maws_hf.models.configuration_maws_vit import SIZES
from maws_hf.optim.groups import parameter_groups
from maws_hf.training.initial_weights import meta_model
from maws_hf.training.sharding import own_part, shard_model


def make(config: MawsViTConfig, setting: Setting) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    config.num_labels = setting.labels
    if setting.fsdp:
        return make_sharded(config, setting)
    with no_init_weights():
        if setting.task == "lit":
            # With dropout, attention on a CPU falls back to a form that keeps its probabilities; on a GPU it does not.
            text = text_config_of(setting.text_size).to_dict()
            text |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            model = MawsLiTModel(MawsLiTConfig(vision_config=config, text_config=text)).train()
        else:
            model = (MawsMAEForPreTraining if setting.task == "mae" else MawsViTForImageClassification)(config).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    if setting.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model, torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-4, fused=True)


def make_sharded(config: MawsViTConfig, setting: Setting) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = meta_model(
        MawsMAEForPreTraining if setting.task == "mae" else MawsViTForImageClassification, config
    ).train()
    if setting.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    shard_model(model, torch.device("cpu"), 0, bf16=setting.bf16)
    return model, torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-4, fused=True)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, setting: Setting) -> None:
    config = model.config.vision_config if setting.task == "lit" else model.config
    batches = torch.zeros(
        setting.accumulation, setting.batch, 3, config.image_size, config.image_size, dtype=torch.uint8
    )
    for pixels in batches:
        accumulate(model, pixels, setting)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def accumulate(model: torch.nn.Module, pixels: torch.Tensor, setting: Setting) -> None:
    with torch.autocast("cpu", torch.bfloat16) if setting.bf16 and not setting.fsdp else nullcontext():
        if setting.task == "mae":
            loss = model(pixels).loss
        elif setting.task == "lit":
            ids = torch.full((setting.batch, setting.text_tokens), 5)
            loss = model(ids, pixels, torch.ones_like(ids), return_loss=True).loss
        elif setting.task == "wsp":
            labels = torch.zeros(setting.batch, 16, dtype=torch.int64)
            loss = model(pixels, labels=labels, skip_logits=True).loss
        else:
            loss = model(pixels, labels=torch.zeros(setting.batch, setting.labels)).loss
    loss.backward()


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that exist at once, from those of `tensors` on.

    All of them anew after each operation: what FSDP gathers is in storages that are emptied and filled again.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]):
        super().__init__()
        self.peak = 0
        self._storages = weakref.WeakSet(own_part(tensor).untyped_storage() for tensor in tensors)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._storages.add(own_part(tensor).untyped_storage())
        self.peak = max(self.peak, sum(storage.nbytes() for storage in self._storages))
        return result


def measure_tensors(config: MawsViTConfig, setting: Setting, fake: bool) -> int:
    """Bytes of the tensors that exist at once in the second step, when the moments are there."""
    with FakeTensorMode() if fake else nullcontext():
        model, optimizer = make(config, setting)
        step(model, optimizer, setting)
        gc.collect()
        states = [state for values in optimizer.state.values() for state in values.values()]
        with LiveBytes([*model.parameters(), *model.buffers(), *states]) as live:
            step(model, optimizer, setting)
    return live.peak


def measure_ranks(fields: dict[str, Any], settings: Sequence[Setting]) -> list[int]:
    """As `measure_tensors`, of the first of the processes that share a model; all settings have the same `gpus`."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={settings[0].gpus}"]
    rank = json.dumps([fields, [vars(setting) for setting in settings]])
    output = subprocess.check_output([*launch, __file__, "--rank", rank], text=True)
    return json.loads(output.splitlines()[-1])


def measure_rank(fields: dict[str, Any], settings: Sequence[Setting]) -> None:
    torch.distributed.init_process_group("gloo")
    peaks = [measure_tensors(MawsViTConfig(**fields), setting, fake=False) for setting in settings]
    if torch.distributed.get_rank() == 0:
        print(json.dumps(peaks))
    gc.collect()  # models refer to themselves, and to the process group that must outlive them
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def measure_process(size: str, setting: Setting) -> int:
    """Growth of the resident memory's peak, of this process."""
    need_linux("give --fake")
    config = MawsViTConfig.from_size(size)
    small = MawsViTConfig.from_size(size, num_hidden_layers=1, decoder_num_hidden_layers=1)
    once = replace(setting, batch=1)
    step(*make(small, once), once)  # what is loaded and made once
    gc.collect()
    before = psutil.Process().memory_info().rss
    model, optimizer = make(config, setting)
    for _ in range(2):
        step(model, optimizer, setting)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return peak - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["vit_b16"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["mae", "wsp", "finetune"])
    parser.add_argument("--batches", nargs="+", type=positive, default=[8, 16])
    parser.add_argument("--labels", type=positive, default=1000)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--fake", action="store_true", help="tensors without memory; the process is not measured")
    parser.add_argument("--ranks", type=positive, default=1, help="shard the model over processes, for mae and wsp")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        size, values = json.loads(arguments.one)
        print(measure_process(size, Setting(**values)))
        return
    if arguments.rank:
        fields, settings = json.loads(arguments.rank)
        measure_rank(fields, [Setting(**values) for values in settings])
        return
    print("size        task      batch  predicted   tensors  ratio   process  ratio   (MiB)")
    for size in arguments.sizes:
        for task in arguments.tasks:
            for batch in arguments.batches:
                setting = Setting(
                    task,
                    batch,
                    arguments.labels,
                    gpus=arguments.ranks,
                    bf16=arguments.bf16,
                    checkpointing=arguments.checkpointing,
                    fsdp=arguments.ranks > 1,
                )
                print(row(size, setting, arguments.fake), flush=True)


def row(size: str, setting: Setting, fake: bool) -> str:
    config = MawsViTConfig.from_size(size)
    predicted = plan_memory(config, setting).peak
    if setting.fsdp:
        tensors = measure_ranks(SIZES[size], [setting])[0]
    else:
        tensors = measure_tensors(config, setting, fake)
    text = f"{size:<12}{setting.task:<10}{setting.batch:>5}{predicted / 2**20:>11.0f}{tensors / 2**20:>10.0f}"
    text += f"{predicted / tensors:>7.2f}"
    if fake or setting.fsdp:
        return text
    one = json.dumps([size, vars(setting)])
    # Freed memory goes back at once; otherwise the allocator's habits are measured.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    process = int(subprocess.check_output([sys.executable, __file__, "--one", one], text=True, env=environment))
    return f"{text}{process / 2**20:>10.0f}{predicted / process:>7.2f}"


if __name__ == "__main__":
    main()
