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


@pytest.mark.parametrize(("tile", "scale"), [(1, 1), (6, 1), (7, 2), (12, 2), (13, 3)])
def test_small_pictures_are_enlarged_to_the_least_height_without_smoothing(tile, scale):
    pixels = torch.randint(0, 256, (1, 3, 6, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = pixels[0].permute(1, 2, 0).numpy().repeat(scale, axis=0).repeat(scale, axis=1)
    parts = MawsMAEReconstruction(masked=pixels / 255, reconstruction=pixels / 255, original=pixels / 255)
    grid = np.asarray(reconstruction_grid(parts, tile=tile, gap=2, across=1))
    assert np.array_equal(grid[20 + 2 : -2, 2 : 2 + 4 * scale], expected)
    predictions = np.asarray(prediction_grid(pixels, [[("a", True)]], tile=tile))
    assert np.array_equal(predictions[8 : 8 + 6 * scale, 8 : 8 + 4 * scale], expected)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures = []
    savefig = Figure.savefig

    def keep(figure, *arguments, **options):
        figures.append(figure)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_a_curve_is_the_loss_over_the_images_seen_beside_what_it_is_compared_with(tmp_path, drawn):
    losses, rates = [2.0, None, 0.5], [0.3, 0.2, 0.1]
    lines = [
        {"step": step, "images_seen": 4 * step, "loss": loss, "learning_rate": rate}
        for step, loss, rate in zip((1, 2, 3), losses, rates, strict=True)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png", references={"mean": 0.9, "colour": 0.6})
    loss_axis, rate_axis = drawn[0].axes
    curve, *references = loss_axis.lines
    assert curve.get_xydata().tolist() == [[4, 2.0], [12, 0.5]]
    assert [list(line.get_ydata()) for line in references] == [[0.9, 0.9], [0.6, 0.6]]
    assert [(text.get_text(), text.xy[1]) for text in loss_axis.texts] == [("mean", 0.9), ("colour", 0.6)]
    assert rate_axis.lines[0].get_xydata().tolist() == [[4, 0.3], [12, 0.1]]


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


def test_lines_join_the_means_of_the_seeds_by_rising_cost(tmp_path, drawn):
    points = {"MAE": {2e12: [0.3, 0.5], 1e12: [0.1, 0.2]}}
    plot_scaling({"kNN": points}, tmp_path / "study.png", xlabel="operations", ylabel="accuracy")
    (axis,) = drawn[0].axes
    np.testing.assert_allclose(axis.lines[0].get_xydata(), [[1e12, 0.15], [2e12, 0.4]])
    dots = [[1e12, 0.1], [1e12, 0.2], [2e12, 0.3], [2e12, 0.5]]
    np.testing.assert_allclose(axis.collections[0].get_offsets(), dots)
    assert axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1e+12", "2e+12"]


def test_an_axis_ends_at_the_highest_possible_score(tmp_path, drawn):
    for scores in ([90.0, 100.0], [10.0, 20.0]):
        points = {"probe": {1.0: scores, 5.0: scores}}
        plot_scaling({"top-1": points}, tmp_path / "a.png", xlabel="shots", ylabel="%", highest=100)
    high, low = (figure.axes[0].get_ylim()[1] for figure in drawn)
    assert high == 100
    assert 20 < low < 25


def test_the_extremes_are_the_highest_and_the_lowest_in_falling_order(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("maws_hf.visualization.plot_bars", lambda bars, *_, xlabel: drawn.append((bars, xlabel)))
    scores = [("c", 3.0), ("a", 1.0), ("e", 5.0), ("b", 2.0), ("d", 4.0)]
    for some in (scores, scores[:4]):
        plot_extremes(some, tmp_path / "bars.png", label="top-1", xlabel="%", most=2)
    (many, told), (few, plain) = drawn
    assert list(many.items()) == [(name, {"top-1": value}) for name, value in zip("edba", (5, 4, 2, 1), strict=True)]
    assert told == "%\n2 highest and 2 lowest of 5"
    assert (list(few), plain) == (["e", "c", "b", "a"], "%")


def test_groups_of_bars_stand_from_the_top_with_their_values(tmp_path, drawn):
    scores = {"MAE": {"linear": 40.25, "kNN": 20.0}, "WSP": {"linear": 80.0, "kNN": 60.0}}
    plot_bars(scores, tmp_path / "bars.png", xlabel="%")
    (axis,) = drawn[0].axes
    assert axis.yaxis_inverted()
    assert [label.get_text() for label in axis.get_yticklabels()] == ["MAE", "WSP"]
    middles = [bar.get_y() + bar.get_height() / 2 for bar in axis.patches]
    assert middles == pytest.approx([-0.2, 0.8, 0.2, 1.2])  # linear above kNN, in both groups
    assert [bar.get_width() for bar in axis.patches] == [40.25, 80.0, 20.0, 60.0]
    assert [text.get_text() for text in axis.texts] == ["40.2", "80", "20", "60"]


def test_bars_have_the_lengths_of_their_scores(tmp_path):
    plot_bars({"MAE": {"linear": 40.0}, "WSP": {"linear": 80.0}}, tmp_path / "bars.png", xlabel="%")
    with Image.open(tmp_path / "bars.png") as picture:
        blue = (np.asarray(picture.convert("RGB")) == (31, 119, 180)).all(axis=2)
    lengths = blue.sum(axis=1)
    bars = np.bincount(lengths[lengths > 60]).argsort()[-2:]  # the legend's sample is shorter
    assert bars.max() / bars.min() == pytest.approx(2, rel=0.02)
    with pytest.raises(ValueError, match="no scores to draw"):
        plot_bars({}, tmp_path / "none.png", xlabel="%")
