"""Run a step of a conversion in a process that may take only so much memory, and may die without harm.

Request and answer are JSON: the request comes on standard input, the answer leaves on standard output.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from .original_archive import ConversionError

ROOM = 2 << 30  # bytes beside what is mapped: stacks and arenas of threads, chunks, and the pickle's objects
_STATM = Path("/proc/self/statm")


def run_in_child(request: dict[str, Any], *, mapped_bytes: int) -> dict[str, Any]:
    """The answer of `conversion_steps.run_step`, computed in a child process.

    Args:
        request: what is asked for; plain values.
        mapped_bytes: address space that the step needs beside `ROOM` and its program.

    Raises:
        ConversionError: what the step raised; or the child died, with how.
    """
    command = [sys.executable, "-P", "-m", "maws_hf.hub.conversion_process"]
    text = json.dumps({**request, "limit": mapped_bytes + ROOM})
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    what = f"the process that was to {request['step']} {request['file']}"
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        limit = f"it was allowed {mapped_bytes + ROOM:,} bytes of memory" if _STATM.exists() else "no limit was set"
        raise ConversionError(f"{what} was ended by {name}; {limit}. Nothing was kept")
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        raise ConversionError(
            f"{what} failed with exit status {done.returncode} (its last words are above). Nothing was kept"
        ) from error
    if "error" in answer:
        raise ConversionError(answer["error"])
    return answer


def main() -> None:
    """The child: limit itself, do the step, answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints must not be taken for the answer
    request = json.loads(sys.stdin.read())
    from transformers.utils.logging import disable_progress_bar

    from .conversion_steps import run_step

    disable_progress_bar()  # of loading, which takes a moment
    limit_memory(request["limit"])
    try:
        answer = run_step(request)
    except ConversionError as error:
        answer = {"error": str(error)}
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        answer = {
            "error": f"{request['file']} needs more than the {request['limit']:,} bytes of memory that a file of its "
            "size is allowed: it is not what it claims to be. Nothing was kept"
        }
    json.dump(answer, answers)
    answers.close()


def limit_memory(more: int) -> None:
    """No more than `more` bytes of address space beyond what this process has now; for good.

    Where the system does not tell how much that is (it is not Linux), the limit is not set.
    """
    if not _STATM.exists():
        return
    import resource  # not everywhere there

    now = int(_STATM.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = now + more if hard == resource.RLIM_INFINITY else min(now + more, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
