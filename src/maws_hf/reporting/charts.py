"""Line charts as places in per cent: the template draws them as SVG that stretches while its texts keep their size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Chart", "Point", "Tick", "line_chart", "nice_ticks"]

Values = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A number at an axis; `place` is in per cent of the axis, from the left or from the bottom."""

    place: float
    text: str


@dataclass(frozen=True)
class Point:
    """A point to hover: its place in per cent from left and top, the strip it answers for, and what it says."""

    x: float
    y: float
    left: float
    width: float
    text: str


@dataclass(frozen=True)
class Chart:
    """What a template needs to draw one curve, and a fainter one to compare with.

    Attributes:
        summary: a sentence for those who cannot see it.
        path, reference_path: SVG path data in a box of 100 x 100.
    """

    x_label: str
    y_label: str
    summary: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    path: str
    reference_path: str | None
    points: list[Point]


def line_chart(
    values: Values,
    texts: Sequence[str],
    *,
    x_label: str,
    y_label: str,
    summary: str,
    reference: Values = (),
    logarithmic: bool = False,
    y_range: tuple[float, float] | None = None,
) -> Chart:
    """Lays out `values`, (x, y) with rising x.

    Args:
        texts: of each point, shown where it is hovered.
        reference: another curve on the same axes.
        logarithmic: both axes; values must be positive then.
        y_range: lowest and highest value to have room for; of the values if unset.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("there is nothing to draw")
    everything = [*values, *reference]
    xs = [x for x, _ in everything]
    ys = [y for _, y in everything] + list(y_range or ())
    scale_x, x_ticks = _axis(min(xs) if logarithmic else 0, max(xs), logarithmic, reach=False)
    scale_y, y_ticks = _axis(min(ys), max(ys), logarithmic, reach=True)
    places = [(scale_x(x), 100 - scale_y(y)) for x, y in values]
    compared = [(scale_x(x), 100 - scale_y(y)) for x, y in reference]
    return Chart(
        x_label=x_label,
        y_label=y_label,
        summary=summary,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        path=_path(places),
        reference_path=_path(compared) if compared else None,
        points=_points(places, texts),
    )


def nice_ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, from `low` or just below it to `high` or just above it."""
    if low == high:
        low, high = low - (abs(low) or 1.0), high + (abs(high) or 1.0)
    span = high - low
    for exponent in range(math.floor(math.log10(span)) - 1, math.floor(math.log10(span)) + 3):
        for factor in (1, 2, 5):
            step = factor * 10.0**exponent
            # Rounded before: 0.3 / 0.1 is a little less than three.
            first, last = math.floor(round(low / step, 9)), math.ceil(round(high / step, 9))
            if last - first < most:
                return [round(number * step, 12) for number in range(first, last + 1)]
    raise AssertionError("a step of ten times the span always fits")


def _axis(low: float, high: float, logarithmic: bool, *, reach: bool):
    """A function from values to per cent of the axis, and its ticks.

    Args:
        reach: whether the axis goes on to the ticks around the values; else it ends at the last value.
    """
    if logarithmic:
        start, end = math.floor(math.log10(low)), math.log10(high)
        end = math.ceil(end) if reach else end
        end = max(end, start + 1e-9)
        ticks = [10.0**power for power in range(start, math.floor(end) + 1)]

        def scale(value: float) -> float:
            return 100 * (math.log10(value) - start) / (end - start)
    else:
        ticks = nice_ticks(low, high)
        start, end = (ticks[0], ticks[-1]) if reach else (low, high or 1.0)
        ticks = [tick for tick in ticks if tick <= end]

        def scale(value: float) -> float:
            return 100 * (value - start) / (end - start)

    return scale, [Tick(round(scale(tick), 3), _short_number(tick)) for tick in ticks]


def _short_number(value: float) -> str:
    """`50k`, `1.5M`, `0.65`"""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _path(places: Values) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in places)


def _points(places: Values, texts: Sequence[str]) -> list[Point]:
    """Strips meet halfway between neighbours, and the outer ones go on to the edges."""
    middles = [(a + b) / 2 for (a, _), (b, _) in pairwise(places)]
    edges = [0.0, *middles, 100.0]
    return [
        Point(round(x, 2), round(y, 2), round(left, 2), round(right - left, 2), text)
        for (x, y), (left, right), text in zip(places, pairwise(edges), texts, strict=True)
    ]
