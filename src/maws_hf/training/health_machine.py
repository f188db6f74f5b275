"""Devices, threads, speed and attention backends of this machine, by trying them."""

import os
import warnings
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..evaluation.flops import measure_matmul_peak
from .health_findings import Finding, in_bytes

_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "plain": SDPBackend.MATH,
}
_MODEL = {"image_size": 32, "patch_size": 8, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def the_device() -> torch.device:
    """The one that a single process would train on."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def usable_cores() -> int:
    """Cores that this process may run on, which in a container are fewer than the machine's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such limit
        return cores


def check_devices() -> Iterator[Finding]:
    """Accelerators and memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    yield Finding("processor", "ok", f"{usable_cores()} cores, {in_bytes(memory)} of memory")
    for number in range(torch.cuda.device_count()):
        try:
            free, total = torch.cuda.mem_get_info(number)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            yield Finding(f"GPU {number}", "fails", f"does not answer ({reason})", "look at nvidia-smi")
            continue
        found = f"{torch.cuda.get_device_name(number)}, {in_bytes(free)} of {in_bytes(total)} free"
        busy = free < total / 2
        advice = "another program holds most of its memory: see nvidia-smi" if busy else ""
        yield Finding(f"GPU {number}", "warning" if busy else "ok", found, advice)
    if the_device().type == "cpu":
        advice = "" if torch.version.cuda is None and torch.version.hip is None else "see nvidia-smi and the driver"
        found = "none: the processor does all the work"
        yield Finding("accelerator", "warning" if advice else "ok", found, advice)


def check_threads() -> Iterator[Finding]:
    """Threads of this process against the cores it may use: more of them than cores wait for each other."""
    threads, cores = torch.get_num_threads(), usable_cores()
    setting = os.environ.get("OMP_NUM_THREADS", "not set")
    found = f"{threads} of this process on {cores} cores, OMP_NUM_THREADS {setting}"
    if threads > cores:
        yield Finding("threads", "warning", found, f"type export OMP_NUM_THREADS={cores} first")
    else:
        yield Finding("threads", "ok", found)


def check_matmul(seconds: float = 0.3) -> Iterator[Finding]:
    """The best rate of matrix products, and whether bfloat16 is worth `--bf16`."""
    device = the_device()
    peaks = {}
    for name, advice in (("float32", "see the driver's messages"), ("bfloat16", "leave --bf16 out")):
        what, dtype = f"products in {name}", getattr(torch, name)
        try:
            peaks[name] = measure_matmul_peak(device, dtype, seconds)
        except RuntimeError as error:
            status = "fails" if name == "float32" else "warning"
            yield Finding(what, status, f"fail ({str(error).splitlines()[0]})", advice)
            continue
        found = f"{peaks[name] / 1e12:.3g} trillion operations a second on {device.type}"
        if name == "bfloat16" and peaks[name] < peaks.get("float32", 0):
            yield Finding(what, "warning", f"{found}, fewer than in float32", advice)
        else:
            yield Finding(what, "ok", found)


def check_attention() -> Iterator[Finding]:
    """Which attention backends run one forward and backward pass."""
    device = the_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    kernels = [name for name, kernel in _KERNELS.items() if _kernel_runs(kernel, device, dtype)]
    named = f"kernels: {', '.join(kernels) or 'none'}"
    for name in ("eager", "sdpa", "flash_attention_2", "flex_attention"):
        if name in ("flash_attention_2", "flex_attention") and device.type == "cpu":
            yield Finding(f"attention {name}", "ok", "is not for processors, and was not tried")
        elif reason := _why_attention_fails(name, device, dtype):
            status, other = ("fails", "eager") if name == "sdpa" else ("warning", "sdpa")
            advice = f"use --attn_implementation {other}"
            yield Finding(f"attention {name}", status, f"does not run ({reason})", advice)
        else:
            yield Finding(f"attention {name}", "ok", "runs" + (f"; {named}" if name == "sdpa" else ""))


def _kernel_runs(kernel: SDPBackend, device: torch.device, dtype: torch.dtype) -> bool:
    query = torch.ones(1, 2, 16, 32, device=device, dtype=dtype)
    try:
        with sdpa_kernel([kernel]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which say why a kernel cannot be used
            torch.nn.functional.scaled_dot_product_attention(query, query, query)
    except RuntimeError:
        return False
    return True


def _why_attention_fails(name: str, device: torch.device, dtype: torch.dtype) -> str:
    from ..models.configuration_maws_vit import MawsViTConfig
    from ..models.modeling_maws_vit import MawsViTModel

    try:
        model = MawsViTModel._from_config(MawsViTConfig(**_MODEL), attn_implementation=name).to(device, dtype)
        pixels = torch.zeros(1, 3, 32, 32, device=device, dtype=dtype)
        model(pixels).last_hidden_state.sum().backward()
    except Exception as error:  # of whatever the backend is made of
        return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return ""


__all__ = ["check_attention", "check_devices", "check_matmul", "check_threads", "the_device", "usable_cores"]
