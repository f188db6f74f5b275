"""Forms of the same work timed in turns, so that a busy machine slows all of them alike; used by `bench_*.py`.

A ratio is the median over rounds of (seconds of the reference / seconds of the form) within a round; the order is
reversed every other round. Seconds are CPU time of this process where there is no GPU (other programs do not count),
wall time between synchronisations where there is one.
"""

import ctypes
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from typing import TypeVar

import torch

Result = TypeVar("Result")
Seconds = Mapping[str, list[float]]


def take_turns(
    forms: Mapping[str, Callable[[], Result]], rounds: int, device: str = "cpu"
) -> tuple[dict[str, list[float]], dict[str, Result]]:
    """Seconds of each form, round by round, and what its first call returned; that call is not counted."""
    on_gpu = torch.device(device).type == "cuda"
    results = {name: form() for name, form in forms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    names = list(forms)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            if on_gpu:
                torch.cuda.synchronize()
            start = _clock(on_gpu)
            forms[name]()
            if on_gpu:
                torch.cuda.synchronize()
            seconds[name].append(_clock(on_gpu) - start)
    return seconds, results


def ratio(seconds: Seconds, name: str, reference: str) -> float:
    """How many times as fast as the reference a form is: the median of the ratios within a round."""
    return statistics.median(base / own for base, own in zip(seconds[reference], seconds[name], strict=True))


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns also line up in a terminal."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (header, rule, *rows)
    )


def forget_peak() -> None:
    """Gives freed memory back and lets the kernel count the peak of resident memory anew.

    Raises:
        SystemExit: not on Linux.
    """
    if sys.platform != "linux":
        raise SystemExit("peaks of memory are read from Linux: give --no_memory")
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def resident_bytes(field: str) -> int:
    """Of this process: "VmRSS" now, "VmHWM" at the peak since `forget_peak`."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024


def describe_machine(device: str = "cpu") -> str:
    """One line: day, device, threads, versions."""
    name = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else processor_name()
    return (
        f"{date.today()}: {name}, {torch.get_num_threads()} CPU thread(s), torch {torch.__version__}, "
        f"Python {sys.version.split()[0]}"
    )


def processor_name() -> str:
    """As the system calls it; on Linux with its vector units, which decide what is fast."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    units = [
        unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if unit in fields.get("flags", "").split()
    ]
    return f"{fields.get('model name', platform.machine())} ({', '.join(units) or 'no vector units named'})"


def _clock(on_gpu: bool) -> float:
    return time.perf_counter() if on_gpu else time.process_time()
