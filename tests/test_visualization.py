import json

import pytest
import torch
from PIL import Image

from maws_hf.models.modeling_maws_mae import MawsMAEReconstruction
from maws_hf.visualization import plot_curve, reconstruction_grid, save_picture


def test_a_grid_has_masked_reconstructed_original_of_each_image():
    shades = torch.tensor([[0.0, 0.2, 0.25], [0.4, 0.6, 0.75], [0.8, 1.0, 0.85]])  # column, image
    tiles = shades[:, :, None, None, None].expand(3, 3, 3, 6, 4)
    grid = reconstruction_grid(
        MawsMAEReconstruction(masked=tiles[0], reconstruction=tiles[1], original=tiles[2]), tile=12, gap=2, across=2
    )
    cell_height, cell_width, header = 16, 12, 20
    assert grid.size == (6 * cell_width, header + 2 * cell_height)
    for column in range(3):
        for image in range(3):
            left = (image % 2 * 3 + column) * cell_width
            middle = (left + cell_width // 2, header + image // 2 * cell_height + cell_height // 2)
            assert grid.getpixel(middle) == (round(shades[column, image].item() * 255),) * 3


def test_a_curve_is_drawn_from_the_metrics_file(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [{"step": s, "images_seen": 4 * s, "loss": 1 / s, "learning_rate": 0.1} for s in (1, 2, 3)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot_curve(file, tmp_path / "new" / "loss.png", references={"mean": 0.9})
    with Image.open(tmp_path / "new" / "loss.png") as picture:
        assert picture.size == (840, 480)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
    file.write_text("")
    with pytest.raises(ValueError, match="no metrics yet"):
        plot_curve(file, tmp_path / "loss.png")


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one(tmp_path):
    file = tmp_path / "picture.png"
    file.write_bytes(b"old")

    def fail(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_picture(fail, file)
    assert file.read_bytes() == b"old"
