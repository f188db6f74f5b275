import json

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageFont

from maws_hf.models.modeling_maws_mae import MawsMAEReconstruction
from maws_hf.visualization import (
    dejavu,
    drawable,
    plot_bars,
    plot_curve,
    plot_extremes,
    plot_scaling,
    prediction_grid,
    reconstruction_grid,
    save_picture,
    save_predictions,
)


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


def test_drawing_leaves_the_backend_of_a_notebook(tmp_path):
    before = matplotlib.get_backend()
    matplotlib.use("svg")
    try:
        plot_bars({"a": {"b": 1.0}}, tmp_path / "bars.png", xlabel="")
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(before)


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one(tmp_path):
    file = tmp_path / "picture.png"
    file.write_bytes(b"old")

    def fail(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_picture(fail, file)
    assert file.read_bytes() == b"old"


def test_predictions_stand_below_their_pictures_in_the_colour_of_their_truth():
    pixels = torch.full((7, 3, 16, 16), 200, dtype=torch.uint8)
    captions = [[("a dog", True), ("a cat whose name is far too long to fit", False)]] * 7
    picture = prediction_grid(pixels, captions, tile=64)
    tiles = np.asarray(picture)
    assert picture.size == (6 * 72 + 8, 2 * (64 + 26 + 8) + 8)
    assert (tiles[8:72, 8:72] == 200).all()
    red, green, _ = tiles[72:98, 8:72].astype(int).transpose(2, 0, 1)
    assert (green - red)[:13].max() > 50, "the right name is green"
    assert (green - red)[13:].max() == 0, "the wrong name is grey"
    assert green[13:].min() < 200, "but there it is"
    assert (tiles[8:72, 72:80] == 255).all()
    assert (tiles[:, -8:] == 255).all(), "a long name runs out of its column"
    assert (tiles[106:170, 80:] == 255).all(), "seven pictures"


def test_classes_are_named_in_letters_that_the_font_has(monkeypatch, tmp_path):
    given = {}

    def grid(pixels: torch.Tensor, captions: list, font: ImageFont.FreeTypeFont) -> Image.Image:
        given.update(captions=captions, font=font.getname()[0])
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr("maws_hf.visualization.prediction_grid", grid)
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    save_predictions(pixels, [[0, 1, 2]], [{0, -100}], ("Käse", "青い", "🌿"), tmp_path / "predictions.png")
    assert given == {
        "captions": [[("Käse", True), ("class 1", False), ("class 2", False)]],
        "font": "DejaVu Sans",
    }


def test_only_names_whose_letters_the_font_has_are_drawn():
    assert drawable("犬", "собака", "dog") == "собака"
    assert drawable("כלב", "الكلب", "कुत्ता", "หมา") is None
    assert drawable("", "red\ndisc") == "red disc"
    pixels = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    grids = [
        prediction_grid(pixels, [[(name, True)]], tile=64, font=dejavu()) for name in ("собака", "кошкаа", "犬", "猫")
    ]
    russian, other, *boxes = (np.asarray(grid)[72:] for grid in grids)
    assert (russian != other).any(), "Russian letters are letters"
    assert (boxes[0] == boxes[1]).all(), "Chinese ones would be boxes"


def test_of_many_scores_the_ends_are_drawn(tmp_path):
    scores = [("the same name", float(number)) for number in range(9)]
    heights = []
    for some in (scores[:4], scores):
        plot_extremes(some, tmp_path / "bars.png", label="top-1", xlabel="%\n", most=2)
        with Image.open(tmp_path / "bars.png") as picture:
            heights.append(picture.height)
    assert heights[0] == heights[1], "all of four, and two high and two low ones of nine"
    plot_extremes(scores[:2], tmp_path / "bars.png", label="top-1", xlabel="%\n", most=2)
    with Image.open(tmp_path / "bars.png") as picture:
        assert picture.height < heights[0], "of two bars with one name none is lost"


def test_scores_over_cost_have_a_line_a_method_and_a_dot_a_seed(tmp_path):
    points = {"MAE": {1e12: [0.1, 0.2], 2e12: [0.3, 0.5]}, "WSP": {1e12: [0.2], 2e12: [0.4]}}
    plot_scaling({"kNN": points, "linear": points}, tmp_path / "study.png", xlabel="operations", ylabel="accuracy")
    with Image.open(tmp_path / "study.png") as picture:
        assert picture.size == (1008, 456)
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):  # the first two of matplotlib's cycle
        assert (colours == colour).all(axis=1).any()


def test_an_axis_ends_at_the_highest_possible_score(tmp_path, monkeypatch):
    limits = []
    savefig = Figure.savefig

    def look(figure, *arguments, **options):
        limits.append(figure.axes[0].get_ylim())
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", look)
    for scores in ([90.0, 100.0], [10.0, 20.0]):
        points = {"probe": {1.0: scores, 5.0: scores}}
        plot_scaling({"top-1": points}, tmp_path / "a.png", xlabel="shots", ylabel="%", highest=100)
    assert limits[0][1] == 100
    assert 20 < limits[1][1] < 25


def test_bars_have_the_lengths_of_their_scores(tmp_path):
    plot_bars({"MAE": {"linear": 40.0}, "WSP": {"linear": 80.0}}, tmp_path / "bars.png", xlabel="%")
    with Image.open(tmp_path / "bars.png") as picture:
        blue = (np.asarray(picture.convert("RGB")) == (31, 119, 180)).all(axis=2)
    lengths = blue.sum(axis=1)
    bars = np.bincount(lengths[lengths > 60]).argsort()[-2:]  # the legend's sample is shorter
    assert bars.max() / bars.min() == pytest.approx(2, rel=0.02)
    with pytest.raises(ValueError, match="no scores to draw"):
        plot_bars({}, tmp_path / "none.png", xlabel="%")
