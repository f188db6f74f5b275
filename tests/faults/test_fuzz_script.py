"""`scripts/fuzz_inputs.py` blames the file that hangs, not one before it."""

import argparse
import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz_inputs.py"
# Says two lines in one go, as a fast worker's lie in the pipe of a slow reader, and hangs in the file after them.
WORKER = """
import json, sys, time
print(json.dumps({"number": -1}), flush=True)
time.sleep(0.2)
said = {"outcome": "read", "peak": 0, "seconds": 0}
print(*(json.dumps({"number": number, **said}) for number in range(2)), sep="\\n", flush=True)
time.sleep(60)
"""


def test_the_file_that_hangs_is_blamed(tmp_path: Path, monkeypatch):
    spec = importlib.util.spec_from_file_location("fuzz_inputs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    monkeypatch.setattr(module, "__file__", str(worker))
    arguments = argparse.Namespace(target="decode", mutations=5, seed=0, seconds=1.0)
    outcomes = [(line["number"], line["outcome"]) for line in module.worker_lines(arguments, 0)]
    assert outcomes == [(0, "read"), (1, "read"), (2, "FAULT hangs for 1 s")]
