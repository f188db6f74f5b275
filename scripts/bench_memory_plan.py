"""Predicted and measured memory of training steps on the CPU, side by side.

    python scripts/bench_memory_plan.py --sizes vit_b16 --batches 8 16

Two measures: the largest sum of the tensors that exist at once, and the growth of the process'
resident memory, which also has what kernels use inside. `--fake` runs the
steps on tensors without memory: any size, the first measure only.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import psutil
import torch
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
from maws_hf.evaluation.memory_plan import Setting, plan_memory
from maws_hf.evaluation.text_memory import text_config_of
from maws_hf.optim.groups import parameter_groups


def make(config: MawsViTConfig, setting: Setting) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    config.num_labels = setting.labels
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


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, setting: Setting) -> None:
    config = model.config.vision_config if setting.task == "lit" else model.config
    pixels = torch.zeros(setting.batch, 3, config.image_size, config.image_size, dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16) if setting.bf16 else nullcontext():
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
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that exist at once, from those of `tensors` on."""

    def __init__(self, tensors: Iterable[torch.Tensor]):
        super().__init__()
        self.now = self.peak = 0
        self._known: set[weakref.ref] = set()
        for tensor in tensors:
            self._note(tensor)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor)
        self.peak = max(self.peak, self.now)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        size = storage.nbytes()

        def forget(reference: weakref.ref) -> None:
            self._known.discard(reference)
            self.now -= size

        reference = weakref.ref(storage, forget)
        if reference not in self._known:
            self._known.add(reference)
            self.now += size


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


def measure_process(size: str, setting: Setting) -> int:
    """Growth of the resident memory's peak, of this process."""
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
    parser.add_argument("--sizes", nargs="+", default=["vit_b16"])
    parser.add_argument("--tasks", nargs="+", default=["mae", "wsp", "finetune"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--fake", action="store_true", help="tensors without memory; the process is not measured")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        size, values = json.loads(arguments.one)
        print(measure_process(size, Setting(**values)))
        return
    print("size        task      batch  predicted   tensors  ratio   process  ratio   (MiB)")
    for size in arguments.sizes:
        for task in arguments.tasks:
            for batch in arguments.batches:
                setting = Setting(
                    task, batch, arguments.labels, bf16=arguments.bf16, checkpointing=arguments.checkpointing
                )
                print(row(size, setting, arguments.fake), flush=True)


def row(size: str, setting: Setting, fake: bool) -> str:
    config = MawsViTConfig.from_size(size)
    predicted = plan_memory(config, setting).peak
    tensors = measure_tensors(config, setting, fake)
    text = f"{size:<12}{setting.task:<10}{setting.batch:>5}{predicted / 2**20:>11.0f}{tensors / 2**20:>10.0f}"
    text += f"{predicted / tensors:>7.2f}"
    if fake:
        return text
    one = json.dumps([size, vars(setting)])
    # Freed memory goes back at once; otherwise the allocator's habits are measured.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    process = int(subprocess.check_output([sys.executable, __file__, "--one", one], text=True, env=environment))
    return f"{text}{process / 2**20:>10.0f}{predicted / process:>7.2f}"


if __name__ == "__main__":
    main()
