import multiprocessing
import time

import pytest
import torch

from maws_hf.training.entry_point import from_here, run_script


def _send_a_tensor_and_wait(queue) -> None:
    queue.put(torch.ones(10))
    time.sleep(600)


@pytest.mark.skipif(
    torch.multiprocessing.get_sharing_strategy() != "file_descriptor", reason="tensors are no connections here"
)
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_connection_to_a_killed_worker_is_a_killed_worker(start_method: str):
    context = torch.multiprocessing.get_context(start_method)
    queue = context.Queue()
    worker = context.Process(target=_send_a_tensor_and_wait, args=(queue,), daemon=True)
    worker.start()
    assert queue._reader.poll(60)
    worker.kill()
    worker.join()
    with pytest.raises(SystemExit, match=r"error: a process that reads data was killed .*The same command continues$"):
        run_script(queue.get)


def test_a_connection_to_something_else_is_not():
    reading, writing = multiprocessing.Pipe()
    writing.close()
    with pytest.raises(EOFError):
        run_script(reading.recv)


def test_a_path_is_told_as_a_shell_takes_it_from_where_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert from_here(tmp_path / "bin" / "python") == "bin/python"
    assert from_here(tmp_path / "my env" / "python") == "'my env/python'"
    assert from_here(tmp_path.parent / "run.py") == "../run.py"
    assert from_here(tmp_path / "python") == "./python"
