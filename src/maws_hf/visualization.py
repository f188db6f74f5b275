"""Pictures of a run: what was hidden and what the model made of it, and curves.

Curves are figures of their own, without pyplot: its backend is the notebook's that calls these, or the screen's.
"""

import json
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .whole_files import moved_to, temporary_beside

if TYPE_CHECKING:
    from .models.modeling_maws_mae import MawsMAEReconstruction


PICTURES_ACROSS = 6  # of predictions
MOST_TICKS = 6  # values of an axis that are all named


def reconstruction_grid(
    reconstruction: "MawsMAEReconstruction", *, tile: int = 112, gap: int = 6, across: int = 2
) -> Image.Image:
    """Masked, reconstructed and original picture of each image, side by side under their names.

    Args:
        reconstruction: of B images, from `MawsMAEForPreTraining.reconstruct`.
        tile: least height of a picture in pixels; small ones are enlarged by a whole number, without smoothing.
        gap: white pixels around each picture.
        across: images in a row.
    """
    columns = {
        "masked": reconstruction.masked,
        "reconstructed": reconstruction.reconstruction,
        "original": reconstruction.original,
    }
    count, _, height, width = reconstruction.original.shape
    scale = max(1, -(-tile // height))
    cell_height, cell_width = height * scale + 2 * gap, width * scale + 2 * gap
    header = 20
    rows = -(-count // across)
    picture = Image.new("RGB", (across * 3 * cell_width, header + rows * cell_height), "white")
    drawing = ImageDraw.Draw(picture)
    for column, (name, pictures) in enumerate(columns.items()):
        for index in range(count):
            left = (index % across * 3 + column) * cell_width + gap
            top = header + index // across * cell_height + gap
            pixels = (pictures[index] * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            image = Image.fromarray(np.ascontiguousarray(pixels))
            picture.paste(image.resize((width * scale, height * scale), Image.Resampling.NEAREST), (left, top))
            if index < across:
                drawing.text((left, gap), name, fill="black")
    return picture


def prediction_grid(
    pixel_values: torch.Tensor,
    captions: Sequence[Sequence[tuple[str, bool]]],
    *,
    tile: int = 112,
    font: ImageFont.FreeTypeFont | None = None,
) -> Image.Image:
    """Pictures with the names predicted for them below, right ones in green and wrong ones in grey.

    Args:
        pixel_values: uint8 `(B, 3, H, W)`.
        captions: of each picture: names, likeliest first, and whether they are right.
        tile: least side of a picture in pixels; small ones are enlarged by a whole number, without smoothing.
        font: for more than Latin letters, `dejavu()`; Pillow's own if None.
    """
    count, _, height, width = pixel_values.shape
    scale = max(1, -(-tile // height))
    gap, line = 8, 13
    lines = max(len(names) for names in captions)
    cell_width, cell_height = max(width * scale, tile) + gap, height * scale + lines * line + gap
    columns = min(PICTURES_ACROSS, count)
    picture = Image.new("RGB", (columns * cell_width + gap, -(-count // columns) * cell_height + gap), "white")
    drawing = ImageDraw.Draw(picture)
    for index, names in enumerate(captions):
        left, top = gap + index % columns * cell_width, gap + index // columns * cell_height
        pixels = np.ascontiguousarray(pixel_values[index].permute(1, 2, 0).cpu().numpy())
        image = Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        picture.paste(image, (left, top))
        for row, (name, right) in enumerate(names):
            text, longest = name, len(name)
            while longest > 1 and drawing.textlength(text, font=font) > cell_width - gap:
                longest -= 1
                text = f"{name[:longest].rstrip()}…"
            colour = "darkgreen" if right else "grey"
            drawing.text((left, top + height * scale + row * line), text, fill=colour, font=font)
    return picture


def save_predictions(
    pixel_values: torch.Tensor,
    predicted: Sequence[Sequence[int]],
    truth: Sequence[set[int]],
    names: Sequence[str],
    picture_file: Path,
) -> None:
    """[`prediction_grid`] of class indices, with those names that can be drawn.

    Args:
        predicted: of each picture: classes, likeliest first.
        truth: of each picture: the right classes.
        names: of all classes.
    """
    captions = [
        [(drawable(names[index]) or f"class {index}", index in right) for index in classes]
        for classes, right in zip(predicted, truth, strict=True)
    ]
    grid = prediction_grid(pixel_values, captions, font=dejavu())
    save_picture(lambda path: grid.save(path, format="png"), picture_file)


def dejavu() -> ImageFont.FreeTypeFont:
    """The font of matplotlib's pictures, for Pillow: Latin, Cyrillic, Greek, Armenian, Georgian and more."""
    return ImageFont.truetype(_dejavu_file(), 10)


def drawable(*texts: str) -> str | None:
    """The first of these texts that DejaVu has all letters of and can set one after the other, from left to right.

    Others would become boxes (Chinese, Hindi, Thai ...) or loose letters in the wrong order (Arabic, Hebrew).
    """
    glyphs = _dejavu_glyphs()
    for text in (" ".join(text.split()) for text in texts):
        known = all(ord(letter) in glyphs for letter in text)
        if text and known and not any(unicodedata.bidirectional(letter) in ("R", "AL", "AN") for letter in text):
            return text
    return None


def _dejavu_file() -> str:
    from matplotlib import get_data_path

    return str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@cache
def _dejavu_glyphs() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_dejavu_file()).get_charmap())


def plot_curve(metrics_file: Path, picture_file: Path, *, references: dict[str, float] | None = None) -> None:
    """Draws the loss in a run's `metrics.jsonl` over the images seen, with the learning rate behind it.

    Args:
        references: names and values of horizontal lines to compare with.

    Raises:
        ValueError: if the file holds no metrics yet.
    """
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["loss"] is not None]
    if not lines:
        raise ValueError(f"{metrics_file} holds no metrics yet")
    images = [line["images_seen"] for line in lines]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot(images, [line["loss"] for line in lines], marker="." if len(lines) < 60 else None)
    for name, value in (references or {}).items():
        axis.axhline(value, linestyle="--", linewidth=1, color="grey")
        # A fifth from the left: there a loss has fallen below the high lines and not yet reached the low ones.
        axis.annotate(name, (images[0] + (images[-1] - images[0]) / 5, value), va="bottom", color="grey")
    axis.set(xlabel="images seen", ylabel="loss")
    rate_axis = axis.twinx()
    rate_axis.plot(images, [line["learning_rate"] for line in lines], color="tab:orange", alpha=0.4)
    rate_axis.set_ylabel("learning rate", color="tab:orange")
    save_picture(lambda path: figure.savefig(path, dpi=120, format="png"), picture_file)


def plot_scaling(
    panels: dict[str, dict[str, dict[float, list[float]]]],
    picture_file: Path,
    *,
    xlabel: str,
    ylabel: str,
    highest: float | None = None,
) -> None:
    """Draws scores over cost, one line a method: the mean of several seeds, and every seed as a dot.

    Args:
        panels: title of each panel -> method -> cost -> scores of the seeds.
        highest: score that is possible; the axis goes no further.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (title, methods) in zip(axes[0], panels.items(), strict=True):
        for number, (method, points) in enumerate(methods.items()):
            costs = sorted(points)
            means = [sum(points[cost]) / len(points[cost]) for cost in costs]
            axis.plot(costs, means, color=f"C{number}", label=method, clip_on=False)
            dots = [(cost, score) for cost in costs for score in points[cost]]
            axis.scatter(*zip(*dots, strict=True), s=12, color=f"C{number}", alpha=0.6, clip_on=False)
        axis.set(title=title, xscale="log", xlabel=xlabel)
        if highest is not None:
            axis.set_ylim(top=min(axis.get_ylim()[1], highest))
        ticks = sorted({cost for points in methods.values() for cost in points})
        if len(ticks) <= MOST_TICKS:
            axis.set_xticks(ticks, labels=[f"{cost:.3g}" for cost in ticks])
            axis.set_xticks([], minor=True)
    axes[0, 0].set_ylabel(ylabel)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=min(len(methods), 2 * len(panels))
    )
    save_picture(lambda path: figure.savefig(path, dpi=120, format="png"), picture_file)


def plot_bars(scores: dict[str, dict[str, float]], picture_file: Path, *, xlabel: str) -> None:
    """Draws scores as horizontal bars, a group for each name, with the value at the end of each bar.

    Args:
        scores: name of each group, from the top -> name of each bar -> value; every group has the same bars.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not scores:
        raise ValueError("there are no scores to draw")
    from matplotlib.figure import Figure

    bars = list(next(iter(scores.values())))
    height = 0.8 / len(bars)
    figure = Figure(figsize=(7, 1 + 0.35 * len(bars) * len(scores)), layout="constrained")
    axis = figure.subplots()
    for number, bar in enumerate(bars):
        places = [group + (number - (len(bars) - 1) / 2) * height for group in range(len(scores))]
        drawn = axis.barh(places, [values[bar] for values in scores.values()], height=0.9 * height, label=bar)
        axis.bar_label(drawn, fmt="%.3g", padding=3)
    axis.set_yticks(range(len(scores)), labels=list(scores), parse_math=False)
    axis.invert_yaxis()
    axis.margins(x=0.12)  # room for the values
    axis.set_xlabel(xlabel)
    figure.legend(loc="outside upper right", ncols=len(bars))
    save_picture(lambda path: figure.savefig(path, dpi=120, format="png"), picture_file)


def plot_extremes(
    scores: Sequence[tuple[str, float]], picture_file: Path, *, label: str, xlabel: str, most: int = 15
) -> None:
    """Draws scores as bars from the highest to the lowest; of many the `most` highest and as many of the lowest.

    Args:
        scores: name and value of each bar; names may come twice.
        label: what the values are.
    """
    ordered = sorted(scores, key=lambda score: -score[1])
    if len(ordered) > 2 * most:
        xlabel += f"\n{most} highest and {most} lowest of {len(ordered)}"
        ordered = ordered[:most] + ordered[-most:]
    bars: dict[str, dict[str, float]] = {}
    for name, value in ordered:
        name = name if len(name) <= 40 else f"{name[:39].rstrip()}…"
        while name in bars:
            name += " "  # looks the same and is another bar
        bars[name] = {label: value}
    plot_bars(bars, picture_file, xlabel=xlabel)


def save_picture(draw: Callable[[Path], None], picture_file: Path) -> None:
    """Calls `draw(path)` on a path beside `picture_file`, then renames: a viewer never sees half a picture.

    Raises:
        OSError: if the disk refuses, with the name of `picture_file`; the old picture is intact.
    """
    picture_file.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(picture_file)
    with moved_to(picture_file, temporary):
        draw(temporary)
