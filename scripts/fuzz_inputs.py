"""Damages files and feeds them to what reads files of others, in a process with limited memory and a clock.

    python scripts/fuzz_inputs.py --target decode --mutations 50000
    python scripts/fuzz_inputs.py --target parquet --mutations 2000 --seed 1 --output_dir outputs/fuzz

File number N of a seed is always the same. A file is read, or refused by the error that its reader promises. Anything
else is a fault: another error, a process that dies, one that takes longer than `--seconds` or more memory than it is
given. Such a file is kept in `--output_dir`. The exit status is 1 if there was one. Tests run a few hundred files of
every target (tests/faults); this is for many.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "faults"))
from hostile_targets import TARGETS, Target, target

_QUIET = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
_QUIET |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
_STARTING = 120.0  # seconds that a worker may take to import what it needs


def main() -> int:
    arguments = parse_arguments()
    if arguments.first is not None:
        work(arguments)
        return 0
    outcomes, faults, peak, slowest = Counter(), [], 0, 0.0
    start, number = time.monotonic(), 0
    while number < arguments.mutations:
        for line in worker_lines(arguments, number):
            outcomes[line["outcome"]] += 1
            peak, slowest = max(peak, line["peak"]), max(slowest, line["seconds"])
            if line["outcome"].startswith("FAULT"):
                faults.append((line["number"], line["outcome"]))
                keep(arguments, line["number"], line["outcome"])
            number = line["number"] + 1
            if number % 5000 == 0:
                print(f"... {number} of {arguments.mutations}, {len(faults)} faults", flush=True)
    print(f"{arguments.target}, seed {arguments.seed}: {sum(outcomes.values())} damaged files", end=" ")
    print(f"in {time.monotonic() - start:.0f} s; slowest {slowest:.2f} s; at most {peak / 2**20:.0f} MiB more memory")
    for outcome, count in outcomes.most_common():
        print(f"  {count:8d}  {outcome}")
    print(f"{len(faults)} faults" + (f", kept in {arguments.output_dir}" if faults else ""))
    return int(bool(faults))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--target", choices=TARGETS, required=True, help="what reads the files")
    parser.add_argument("--mutations", type=int, default=1000, help="damaged files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for one file (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/fuzz"), help="for files that make a fault")
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)  # the worker: from this number on
    arguments = parser.parse_args()
    if arguments.mutations < 1:
        parser.error(f"--mutations {arguments.mutations} would try nothing")
    return arguments


def worker_lines(arguments: argparse.Namespace, first: int) -> Iterator[dict]:
    """What a worker says of each file; of the last one, that it hung or died, if it did."""
    options = ("target", "mutations", "seed")
    command = [sys.executable, __file__, *(f"--{name}={getattr(arguments, name)}" for name in options)]
    with tempfile.TemporaryFile() as errors, selectors.DefaultSelector() as selector:
        command.append(f"--first={first}")
        # Unbuffered: a line that was read ahead would not wake `select`, and an innocent file be blamed for the hang.
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=_QUIET, bufsize=0)
        selector.register(worker.stdout, selectors.EVENT_READ)
        number, patience, hung, ready = first, _STARTING, False, False
        while True:
            if not selector.select(timeout=patience):
                hung = True
                worker.kill()
                break
            line = worker.stdout.readline()
            if not line:
                break
            said = json.loads(line)
            number, patience, ready = said["number"] + 1, arguments.seconds, True
            if "outcome" in said:
                yield said
        status = worker.wait()
        worker.stdout.close()
        if not ready:
            errors.seek(0)
            sys.exit(f"the worker does not start: {errors.read().decode(errors='replace')[-2000:]}")
        if hung or status:
            what = f"hangs for {arguments.seconds:g} s" if hung else f"ends the process with status {status}"
            yield {"number": number, "outcome": f"FAULT {what}", "peak": 0, "seconds": 0.0}


def keep(arguments: argparse.Namespace, number: int, outcome: str) -> None:
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    file = arguments.output_dir / f"{arguments.target}-seed{arguments.seed}-{number:08d}"
    file.write_bytes(damaged_file(target(arguments.target), arguments.seed, number))
    print(f"{file}: {outcome}", flush=True)


def damaged_file(reader: Target, seed: int, number: int) -> bytes:
    return reader.make(np.random.default_rng([seed, number]))


def work(arguments: argparse.Namespace) -> None:
    """The worker: reads files from `--first` on, and says a line about each."""
    from maws_hf.hub.conversion_process import limit_memory

    warnings.simplefilter("ignore")
    reader = target(arguments.target)
    with tempfile.TemporaryDirectory() as folder:
        outcome_of(reader, damaged_file(reader, arguments.seed, 0), Path(folder))  # imports what is left
    limit_memory(reader.memory)
    before = peak_bytes()
    print(json.dumps({"number": arguments.first - 1}), flush=True)  # ready: from here on the clock runs
    for number in range(arguments.first, arguments.mutations):
        data = damaged_file(reader, arguments.seed, number)
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            outcome = outcome_of(reader, data, Path(folder))
        said = {"number": number, "outcome": outcome, "peak": peak_bytes() - before}
        print(json.dumps({**said, "seconds": time.monotonic() - start}), flush=True)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def outcome_of(reader: Target, data: bytes, folder: Path) -> str:
    try:
        reader.attempt(data, folder)
    except reader.refusals as error:
        return f"refused: {type(error).__name__}"
    except Exception as error:
        return f"FAULT {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return "read"


if __name__ == "__main__":
    sys.exit(main())
