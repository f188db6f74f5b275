import subprocess
import sys
from pathlib import Path

from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from tiny import draw_image

COLUMNS = Features({"image": ImageFeature(), "label": Value("int64")})
INTERRUPTED_WHILE_FORKING = """
import multiprocessing, os, signal, sys
from maws_hf.data.sources import open_stream
from maws_hf.evaluation.rows import read_rows

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
multiprocessing.set_start_method("fork")
interrupted = []

def once() -> None:
    if not interrupted:
        interrupted.append(os.getpid())
        os.kill(os.getpid(), signal.SIGINT)

os.register_at_fork(after_in_parent=once)
rows = read_rows(
    open_stream(sys.argv[1]), image_column="image", label_column="label", transform=None, batch_size=1, num_workers=2
)
try:
    next(rows)
except KeyboardInterrupt:
    print("interrupted" if interrupted else "too early")
"""


def test_an_interrupt_while_workers_are_forked_is_not_lost(tmp_path: Path):
    images = [{"bytes": draw_image(row), "path": None} for row in range(4)]
    table = Dataset.from_dict({"image": images, "label": [*range(4)]}, features=COLUMNS)
    for shard in range(2):
        table.shard(2, shard).to_parquet(tmp_path / f"train-{shard}.parquet")
    finished = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_FORKING, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert finished.stdout == "interrupted\n", finished.stderr
    assert "Exception ignored" not in finished.stderr
