"""A disk that is full while a run writes what is no checkpoint: the file is named, and is what it was."""

import errno
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from maws_hf import MawsViTModel
from maws_hf.processing.image_processors import image_processor_of
from maws_hf.training.ledger import Stage, write_ledger
from maws_hf.training.model import save_trained_model
from maws_hf.training.records import JsonLines, write_json
from maws_hf.visualization import plot_curve, save_picture
from maws_hf.whole_files import write_atomically

ROOM = 600  # bytes that a file may have
LINES = "".join(
    json.dumps({"step": step, "images_seen": step, "loss": 0.5, "learning_rate": 0.1}) + "\n" for step in range(40)
)


@contextmanager
def full_disk() -> Iterator[None]:
    """The kernel refuses to let a file grow, as it does on a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def picture(file: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    save_picture(lambda path: noise.save(path, format="png"), file)


WRITERS: dict[str, Callable[[Path], None]] = {
    "results.json": lambda file: write_json({"rows": list(range(500))}, file),
    "table.md": lambda file: write_atomically(file, b"x" * 5000),
    "training.json": lambda file: write_ledger(file.parent, [Stage("a" * 1000, 1, 1)]),
    "grid.png": picture,
    "loss.png": lambda file: plot_curve(file.parent.parent / "metrics.jsonl", file),
    "metrics.jsonl": lambda file: JsonLines(file).append({"step": 41, "loss": 0.5, "more": "x" * 1000}),
    "skipped.jsonl": lambda file: JsonLines(file).cut_back(30),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_finds_no_room_is_named_and_the_old_one_is_whole(name: str, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(LINES)
    folder = tmp_path / "run"
    folder.mkdir()
    file = folder / name
    file.write_text(LINES)
    if not name.endswith(".jsonl"):
        WRITERS[name](file)
    before = file.read_bytes()
    with full_disk(), pytest.raises(OSError, match="File too large") as refused:
        WRITERS[name](file)
    assert refused.value.errno == errno.EFBIG
    assert str(refused.value).endswith(f"'{file}'")
    assert file.read_bytes() == before
    assert list(folder.iterdir()) == [file], "what was begun is gone"


def test_a_model_that_finds_no_room_is_one_sentence_with_its_folder(tmp_path: Path):
    model, stages = MawsViTModel(tiny_config()), [Stage("mae", 1, 1)]
    with full_disk(), pytest.raises(OSError, match=f"the model cannot be written to {tmp_path} .*checkpoints are"):
        save_trained_model(model, image_processor_of(model.config), tmp_path, stages)
    save_trained_model(model, image_processor_of(model.config), tmp_path, stages)
    assert MawsViTModel.from_pretrained(tmp_path).config.hidden_size == 32


def test_a_picture_that_its_library_cannot_write_is_named(tmp_path: Path):
    def fail(path: Path) -> None:
        raise OSError("encoder error -2 when writing image file")

    with pytest.raises(OSError, match=r"grid\.png cannot be written: encoder error -2"):
        save_picture(fail, tmp_path / "grid.png")


def test_a_picture_that_lacks_its_font_does_not_blame_the_disk(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"font\.ttf"):
        save_picture(lambda path: (tmp_path / "font.ttf").read_bytes(), tmp_path / "grid.png")
