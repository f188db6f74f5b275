"""Forms of the same work timed in turns, so that a busy machine slows all of them alike; used by `bench_*.py`.

A ratio is the median over rounds of (seconds of the reference / seconds of the form) within a round; the order is
reversed every other round. Seconds are CPU time of this process where it computes with one thread (other programs do
not count), wall time with several, of which some spin while others work, and between synchronisations with a GPU.

On a GPU products of float32 and convolutions, whose defaults differ, are both computed in float32, or both in TF32.
"""

import argparse
import ctypes
import gc
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

WARM_UPS = 3  # calls on a GPU that are not counted: compilers and libraries choose, AdamW makes its moments
SHORTEST = 0.3  # seconds of a turn on a GPU: of a single short call the launch would be measured


def positive(text: str) -> int:
    """An option's `type`: how many images, rounds, steps.

    Raises:
        argparse.ArgumentTypeError: less than one, of which nothing could be measured.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def device_name(text: str) -> str:
    """An option's `type`: where to compute.

    Raises:
        argparse.ArgumentTypeError: torch knows no device of that name.
    """
    try:
        torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text} is no device; say cpu, cuda or cuda:1") from error
    return text


def add_device_options(parser: argparse.ArgumentParser) -> None:
    where = "cpu (default), cuda, or cuda:1 for the second GPU"
    parser.add_argument("--device", type=device_name, default="cpu", help=where)
    parser.add_argument("--tf32", action="store_true", help="on a GPU: float32 products and convolutions in TF32")


def use_device(device: str, tf32: bool = False) -> None:
    """To be called before anything is computed; from then on "cuda" is this GPU.

    Raises:
        SystemExit: there is no such GPU.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    if on_gpu(device):
        number = torch.device(device).index or 0
        if number >= torch.cuda.device_count():
            raise SystemExit(f"--device {device}: torch finds {torch.cuda.device_count()} GPU(s) here")
        torch.cuda.set_device(number)


def on_gpu(device: str | torch.device) -> bool:
    return torch.device(device).type == "cuda"


def wait_for(device: str | torch.device) -> None:
    """Until a GPU has done what it was told; a CPU has when a call returns."""
    if on_gpu(device):
        torch.cuda.synchronize()


def usual_batch(device: str) -> int:
    """Images: with few of them a GPU waits for the host."""
    return 128 if on_gpu(device) else 8


def take_turns(
    forms: Mapping[str, Callable[[], Result]], rounds: int, device: str = "cpu"
) -> tuple[dict[str, list[float]], dict[str, Result]]:
    """Seconds of each form, round by round, and what its first call returned; that call is not counted.

    On a GPU there are more calls that are not counted, and a turn is as many as take `SHORTEST`; seconds are of one.
    """
    results = {name: form() for name, form in forms.items()}
    calls = {name: _calls_of_a_turn(form, device) if on_gpu(device) else 1 for name, form in forms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    names = list(forms)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            seconds[name].append(_seconds(forms[name], calls[name], device) / calls[name])
    return seconds, results


def _calls_of_a_turn(form: Callable[[], object], device: str) -> int:
    for _ in range(WARM_UPS - 1):
        form()
    calls = 1
    while _seconds(form, calls, device) < SHORTEST:
        calls *= 2
    return calls


def _seconds(form: Callable[[], object], calls: int, device: str) -> float:
    alone = not on_gpu(device) and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    wait_for(device)
    start = clock()
    for _ in range(calls):
        form()
    wait_for(device)
    return clock() - start


def unit_of_time(device: str) -> tuple[str, float]:
    """In which a table has steps, and how many of it are a second."""
    return ("ms", 1000.0) if on_gpu(device) else ("s", 1.0)


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


def let_go() -> None:
    """Between comparisons: what was compiled must not decide how the next is compiled, and memory is given back."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def forget_peak(device: str = "cpu") -> None:
    """Gives freed memory back and has the peak counted anew.

    Raises:
        SystemExit: on a CPU, but not on Linux.
    """
    if on_gpu(device):
        torch.cuda.reset_peak_memory_stats()
        return
    need_linux("give --no_memory")
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def need_linux(advice: str) -> None:
    """To be called before this process's peak of memory is read.

    Raises:
        SystemExit: elsewhere, with the advice.
    """
    if sys.platform != "linux":
        raise SystemExit(f"peaks of memory are read from Linux: {advice}")


def memory_now(device: str = "cpu") -> int:
    """Bytes: resident ones of this process, or of its tensors on the GPU."""
    return torch.cuda.memory_allocated() if on_gpu(device) else _resident_bytes("VmRSS")


def memory_peak(device: str = "cpu") -> int:
    """The most of `memory_now` since `forget_peak`."""
    return torch.cuda.max_memory_allocated() if on_gpu(device) else _resident_bytes("VmHWM")


def _resident_bytes(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024


def describe_machine(device: str = "cpu") -> str:
    """One line: day, device, threads, versions."""
    name = torch.cuda.get_device_name() if on_gpu(device) else processor_name()
    precision = f", products of float32 in {'TF32' if torch.backends.cuda.matmul.allow_tf32 else 'float32'}"
    return (
        f"{date.today()}: {name}, {torch.get_num_threads()} CPU thread(s), torch {torch.__version__}, "
        f"Python {sys.version.split()[0]}{precision if on_gpu(device) else ''}"
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
