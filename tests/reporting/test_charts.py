"""Charts are laid out where the numbers say."""

import pytest

from maws_hf.reporting.charts import line_chart, nice_ticks


def chart(values, **options):
    texts = [f"{x}, {y}" for x, y in values]
    return line_chart(values, texts, x_label="x", y_label="y", summary="", **options)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 50, 100]),
        (0.5, 0.92, [0.4, 0.6, 0.8, 1.0]),
        (0, 0.3, [0, 0.1, 0.2, 0.3]),
        (3, 3, [0, 2, 4, 6]),
        (0, 128_000, [0, 50_000, 100_000, 150_000]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert ticks == pytest.approx(expected)


def test_points_lie_in_proportion_with_the_largest_value_on_top():
    drawn = chart([(50, 0.0), (100, 1.0), (200, 0.5)])
    assert [(point.x, point.y) for point in drawn.points] == [(25, 100), (50, 0), (100, 50)]
    assert drawn.path == "M25.00 100.00L50.00 0.00L100.00 50.00"
    assert [(tick.place, tick.text) for tick in drawn.x_ticks][-1] == (100, "200")


def test_strips_to_hover_cover_the_whole_width_once():
    points = chart([(1, 1), (4, 2), (10, 3)]).points
    assert points[0].left == 0
    assert [point.left + point.width for point in points[:-1]] == pytest.approx([point.left for point in points[1:]])
    assert points[-1].left + points[-1].width == pytest.approx(100)
    assert all(point.left <= point.x <= point.left + point.width for point in points)


def test_a_power_law_is_a_straight_line_on_logarithmic_axes():
    points = chart([(1, 1000), (10, 100), (100, 10)], logarithmic=True).points
    assert [(point.x, point.y) for point in points] == [(0, 0), (50, 50), (100, 100)]


def test_a_reference_shares_the_axes():
    drawn = chart([(100, 1.0)], reference=[(200, 3.0)])
    assert drawn.points[0].x == 50
    assert drawn.reference_path.startswith("M100.00 ")


@pytest.mark.parametrize("logarithmic", [False, True])
def test_one_value_can_be_drawn(logarithmic):
    assert len(chart([(1, 1)], logarithmic=logarithmic).points) == 1


def test_a_range_to_have_room_for_widens_the_axis():
    drawn = chart([(1, 2.0), (2, 3.0)], y_range=(0.0, 10.0))
    assert [point.y for point in drawn.points] == [80, 70]


def test_numbers_at_an_axis_are_short():
    assert [tick.text for tick in chart([(1000, 1.0), (4000, 2.0)]).x_ticks] == ["0", "1k", "2k", "3k", "4k"]
    ticks = chart([(1, 2.0e6), (1000, 0.5e9)], logarithmic=True)
    assert [tick.text for tick in ticks.x_ticks] == ["1", "10", "100", "1k"]
    assert [tick.text for tick in ticks.y_ticks] == ["1M", "10M", "100M", "1G"]


def test_an_axis_of_places_begins_at_nought_and_ends_at_the_last_value():
    ticks = chart([(50, 1.0), (120, 2.0)]).x_ticks
    assert [(tick.place, tick.text) for tick in ticks] == [
        (0, "0"),
        (pytest.approx(50 / 1.2, abs=1e-3), "50"),
        (pytest.approx(100 / 1.2, abs=1e-3), "100"),
    ]
