"""The loader: exact batches with real workers, and a position that is nothing but JSON."""

import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from maws_hf.data.loader import build_loader, collate, loader_state, restore_loader
from maws_hf.data.samples import prepare_image
from maws_hf.data.sources import open_stream
from maws_hf.data.streaming import ImageStream, StreamError, StreamStateError
from maws_hf.processing.decode import ImageDecodeError

pytestmark = pytest.mark.filterwarnings("ignore:.*shards cannot be dealt evenly", "ignore:.*worker processes in total")


def shards(folder, count, rows_each=10):
    """Parquet shards whose pictures are all of the grey value of their id; every tenth holds no image."""
    folder.mkdir(exist_ok=True)
    features = Features({"id": Value("int64"), "image": Image()})
    for shard in range(count):
        numbers = range(shard * rows_each, (shard + 1) * rows_each)
        images = [{"bytes": picture(number) if number % 10 else b"<html>", "path": None} for number in numbers]
        table = Dataset.from_dict({"id": list(numbers), "image": images}, features=features)
        table.to_parquet(str(folder / f"train-{shard:05d}.parquet"), batch_size=4)
    return open_stream(folder)


def picture(shade):
    file = io.BytesIO()
    PILImage.new("RGB", (6, 4), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def jitter(image, rng):
    """A transform that shows both the picture and the generator in its result."""
    noise = rng.integers(0, 50, size=3, dtype=np.uint8)
    return torch.from_numpy(image + noise).permute(2, 0, 1).contiguous()


PREPARE = partial(prepare_image, image_column="image", transform=jitter)


def loader_of(dataset, workers, batch_size=4, transform=PREPARE, seed=6, **options):
    stream = ImageStream(dataset, transform, seed=seed, num_workers=workers, block_size=7, **options)
    return build_loader(stream, batch_size=batch_size, num_workers=workers)


def take(loader, count):
    """Comparable batches; closes the iterator, so that no worker outlives its test."""
    return [plain(batch) for batch in itertools.islice(iter(loader), count)]


def plain(batch):
    return {**batch, "pixel_values": batch["pixel_values"].tolist()}


def test_batch_has_pixels_keys_and_skips(tmp_path):
    loader = loader_of(shards(tmp_path, 2), workers=0)
    batches = list(itertools.islice(loader, 5))
    assert batches[0]["pixel_values"].shape == (4, 3, 4, 6)
    assert batches[0]["pixel_values"].dtype == torch.uint8
    for batch in batches:
        for key, pixels in zip(batch["keys"], batch["pixel_values"], strict=True):
            assert 0 <= int(pixels.min()) - int(key) < 50
    records = [record for batch in batches for record in batch["skipped"] if record["epoch"] == 0]
    assert sorted(record["key"] for record in records) == ["0", "10"]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_ranks_and_real_workers_lose_and_repeat_nothing(tmp_path, ranks, workers):
    dataset = shards(tmp_path, 3, rows_each=8)  # 24 rows: every number of consumers here divides them
    seen = []
    for rank in range(ranks):
        loader = loader_of(dataset, workers, 1, keep_key, rank=rank, world_size=ranks)
        seen += [batch["keys"][0] for batch in itertools.islice(loader, 24 // ranks)]
    assert sorted(map(int, seen)) == list(range(24))


def keep_key(sample, rng):
    return {"key": sample["__key__"]}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_loader_resumes_at_every_batch_through_json(tmp_path, workers):
    dataset = shards(tmp_path, 5)
    last, ahead = 14, 6  # an epoch is 45 good samples in batches of 4
    expected = take(loader_of(dataset, workers), last + ahead)
    loader = loader_of(dataset, workers)
    states = [json.dumps(loader_state(loader))]
    states += [json.dumps(loader_state(loader)) for _ in itertools.islice(iter(loader), last)]
    for k in range(last + 1):
        fresh = loader_of(dataset, workers)
        restore_loader(fresh, json.loads(states[k]))
        assert json.loads(json.dumps(loader_state(fresh))) == json.loads(states[k]), k
        assert take(fresh, ahead) == expected[k : k + ahead], k


def test_state_is_of_the_last_batch_handed_out_not_of_the_prefetched(tmp_path):
    dataset = shards(tmp_path, 4)
    loader = loader_of(dataset, workers=2)
    iterator = iter(loader)
    head = [plain(next(iterator)) for _ in range(3)]
    state = loader_state(loader)
    tail = [plain(next(iterator)) for _ in range(4)]
    fresh = loader_of(dataset, workers=2)
    restore_loader(fresh, state)
    assert take(fresh, 4) == tail
    assert head + tail == take(loader_of(dataset, workers=2), 7)


@pytest.mark.parametrize("workers", [0, 2])
def test_batch_size_may_change_on_resume(tmp_path, workers):
    dataset = shards(tmp_path, 3, rows_each=8)
    loader = loader_of(dataset, workers, 3, keep_key)
    seen = [key for batch in itertools.islice(iter(loader), 4) for key in batch["keys"]]
    fresh = loader_of(dataset, workers, 2, keep_key)
    restore_loader(fresh, loader_state(loader))
    seen += [key for batch in itertools.islice(iter(fresh), 6) for key in batch["keys"]]
    assert sorted(map(int, seen)) == list(range(24))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_are_neither_used_nor_moved(tmp_path, workers):
    dataset = shards(tmp_path, 2)
    torch.manual_seed(0)
    expected = take(loader_of(dataset, workers), 3)
    untouched = torch.rand(4)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(4), untouched)
    torch.manual_seed(123)
    assert take(loader_of(dataset, workers), 3) == expected


def test_other_stream_is_refused_before_anything_is_read(tmp_path):
    dataset = shards(tmp_path, 2)
    state = loader_state(loader_of(dataset, workers=0))
    with pytest.raises(StreamStateError, match=r"seed 6 \(now 7\), num_workers 0 \(now 2\)"):
        restore_loader(loader_of(dataset, workers=2, seed=7), state)
    with pytest.raises(StreamStateError, match="format 99, this version reads 1"):
        restore_loader(loader_of(dataset, workers=0), {**state, "format": 99})


def test_worker_error_reaches_the_main_process(tmp_path):
    iterator = iter(loader_of(shards(tmp_path, 2), workers=2, transform=refuse))
    with pytest.raises(StreamError, match="no good sample among 10"):
        next(iterator)
    for worker in iterator._workers:  # torch waits five seconds for each worker that has raised
        worker.terminate()


def test_a_process_that_still_holds_an_iterator_can_end(tmp_path):
    shards(tmp_path / "shards", 2)
    program = (
        "import sys, test_loader\n"
        f"dataset = test_loader.open_stream({str(tmp_path / 'shards')!r})\n"
        "sys.held = iter(test_loader.loader_of(dataset, workers=2))\n"
        "next(sys.held)\n"
    )
    paths = [os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they do not know who sent it")
def test_workers_outlive_a_signal_that_is_not_from_the_main_process(tmp_path):
    iterator = iter(loader_of(shards(tmp_path, 2), workers=1))
    next(iterator)
    worker = iterator._workers[0]
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    worker.join(timeout=0.5)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(timeout=10)
    assert worker.exitcode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers look for their main process every 5 seconds")
def test_a_worker_whose_main_process_is_killed_before_it_has_begun_does_not_stay(tmp_path):
    program = (
        "import multiprocessing, os, signal, time\n"
        "from maws_hf.data import loader\n"
        "def late_worker():\n"
        "    while os.getppid() == multiprocessing.parent_process().pid:\n"
        "        time.sleep(0.01)\n"
        "    loader._live_and_die_with_the_main_process(0)\n"
        "    time.sleep(60)\n"
        "multiprocessing.get_context('fork').Process(target=late_worker).start()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # The output ends when the last process that can write to it has ended.
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=40)
    assert killed.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers look for their main process every 5 seconds")
def test_a_fork_server_survives_sigterm_and_its_workers_end_with_a_killed_main_process(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, os, signal, time\n"
        "from maws_hf.data import loader\n"
        "def worker(begun):\n"
        "    loader._live_and_die_with_the_main_process(0)\n"
        "    begun.set()\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('forkserver')\n"
        "    loader._shield_the_fork_server()\n"
        "    begun = multiprocessing.Event()\n"
        "    multiprocessing.Process(target=worker, args=(begun,)).start()\n"
        "    begun.wait()\n"
        "    server = multiprocessing.forkserver._forkserver._forkserver_pid\n"
        "    print(open(f'/proc/{server}/status').read(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=50)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    blocked = int(re.search(r"SigBlk:\s*(\w+)", killed.stdout)[1], 16)
    assert blocked >> (signal.SIGTERM - 1) & 1


def refuse(sample, rng):
    raise ImageDecodeError(sample["__key__"], "refused")


def test_stream_read_without_its_workers_is_refused(tmp_path):
    stream = ImageStream(shards(tmp_path, 2), keep_key, seed=0, num_workers=2)
    with pytest.raises(StreamError, match=r"num_workers=2 and is read by 0: iterate over build_loader"):
        next(iter(stream))
    with pytest.raises(ValueError, match="num_workers is 1, but the stream was made for 2"):
        build_loader(stream, batch_size=4, num_workers=1)
    with pytest.raises(ValueError, match="batch_size is 0, it must be at least 1"):
        build_loader(stream, batch_size=0)


def test_missing_torchdata_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdata.stateful_dataloader", None)
    with pytest.raises(ImportError, match="pip install torchdata"):
        loader_of(shards(tmp_path, 1), workers=0)


def test_state_that_json_would_change_is_refused(tmp_path, monkeypatch):
    loader = loader_of(shards(tmp_path, 1), workers=0)
    for value, message in (
        ((1, 2), r"loader\.x is tuple"),
        (float("nan"), "is float nan"),
        (torch.zeros(1), "Tensor"),
    ):
        monkeypatch.setattr(loader, "state_dict", lambda value=value: {"x": value})
        with pytest.raises(TypeError, match=message):
            loader_state(loader)
    monkeypatch.setattr(loader, "state_dict", lambda: {"x": [{1: 2}]})
    with pytest.raises(TypeError, match=r"loader\.x\[0\] has the key 1"):
        loader_state(loader)


def test_collate_stacks_numbers_and_arrays_and_lists_the_rest():
    skips = [{"key": "bad", "reason": "torn", "epoch": 0, "consumer": 0}]
    samples = [
        {"key": "a", "skipped": [], "label": 3, "mix": np.ones(2, np.float32), "caption": "one"},
        {"key": "b", "skipped": skips, "label": 4, "mix": np.zeros(2, np.float32), "caption": "two"},
    ]
    batch = collate(samples)
    assert batch["label"].tolist() == [3, 4]
    assert batch["mix"].shape == (2, 2)
    assert batch["caption"] == ["one", "two"]
    assert (batch["keys"], batch["skipped"]) == (["a", "b"], skips)


def test_pictures_of_different_shapes_name_the_sample():
    samples = [{"key": key, "skipped": [], "pixel_values": torch.zeros(3, 4, w)} for key, w in (("a", 4), ("b", 5))]
    with pytest.raises(ValueError, match=r"pixel_values of b has the shape \(3, 4, 5\), of a \(3, 4, 4\)"):
        collate(samples)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere tensors in shared memory are no open files")
def test_batches_behind_a_slow_worker_may_be_many_open_files(tmp_path):
    import resource

    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, usual[1]), usual[1]))
        loader_of(shards(tmp_path, 1), workers=0)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == usual[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
