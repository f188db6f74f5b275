import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import line_run
import pytest
from accelerate import Accelerator

from maws_hf.training.output_lock import lock_output

HOLD = """
import sys, time
from pathlib import Path
from maws_hf.training.output_lock import lock_output
lock = lock_output(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=rf"process {holder.pid} is training in .*kill {holder.pid}"):
            lock_output(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    lock = lock_output(tmp_path)
    assert (tmp_path / ".lock").read_text() == str(os.getpid())
    lock.close()


def test_a_file_system_without_locks_is_told_and_no_process_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match=r"has no locks \(No locks available\)"):
        lock_output(tmp_path).close()


def test_on_windows_it_is_told_where_to_train():
    program = "import sys; sys.modules['fcntl'] = None; import maws_hf.training.output_lock"
    windows = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert windows.stderr.endswith("ImportError: maws_hf trains on Linux and macOS: on Windows run it in WSL 2\n")


def test_a_run_keeps_its_folder_until_its_script_has_written_the_model(
    image_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    of_the_script: list[Accelerator] = []

    def make(**options: object) -> Accelerator:
        of_the_script.append(Accelerator(**options))
        return of_the_script[0]

    monkeypatch.setattr(line_run, "Accelerator", make)
    line_run.run(image_shards, tmp_path, max_steps=1)
    claim = HOLD.replace("time.sleep(60)", "")
    other = subprocess.run([sys.executable, "-c", claim, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert f"process {os.getpid()} is training in {tmp_path}" in other.stderr
