"""The arithmetic behind the charts, and that the drawing is well-formed."""

import itertools
import json
import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcjax.evaluation.charts import MAX_POINTS, Panel, Series, line_chart, log_ticks, number, smooth, thin, ticks

VALUES = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=1500)


@given(VALUES)
def test_thinning_keeps_ends_extremes_and_order_within_its_limit(values):
    points = list(enumerate(values))
    kept = thin(points)
    assert len(kept) <= MAX_POINTS
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})
    assert set(kept) <= set(points)
    known = [y for y in values if y is not None]
    if known:
        assert max(y for _, y in kept if y is not None) == max(known)
        assert min(y for _, y in kept if y is not None) == min(known)


@given(st.floats(-10, 10), st.floats(0.01, 100), st.integers(-8, 9), st.integers(2, 8))
def test_ticks_are_round_even_and_inside(low, span, exponent, count):
    low, span = low * 10.0**exponent, span * 10.0**exponent
    high = low + span
    marks = ticks(low, high, count)
    assert len(marks) <= count + 1
    assert all(low - 1e-6 * span <= mark <= high + 1e-6 * span for mark in marks)
    steps = [b - a for a, b in itertools.pairwise(marks)]
    assert all(step == pytest.approx(steps[0], rel=1e-3) for step in steps)


def test_ticks_of_usual_ranges():
    assert ticks(0, 1, 2) == [0, 0.5, 1]
    assert ticks(0, 1800, 6) == [0, 500, 1000, 1500]
    assert ticks(0, 5e-4, 2) == [0, 2.5e-4, 5e-4]
    assert ticks(3, 3) == [3]
    assert log_ticks(0.002, 9) == [0.01, 0.1, 1]
    assert log_ticks(1.2, 9) == [2, 5]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=200), st.floats(1, 50))
def test_smoothing_stays_within_its_values_and_is_the_same_from_both_ends(values, window):
    averaged = [y for _, y in smooth(list(enumerate(values)), window)]
    assert all(min(values) - 1e-6 <= y <= max(values) + 1e-6 for y in averaged)
    backwards = [y for _, y in smooth(list(enumerate(values[::-1])), window)]
    assert backwards[::-1] == pytest.approx(averaged, abs=1e-6)


def test_smoothing_keeps_gaps():
    assert smooth([(0, 1.0), (1, None), (2, 1.0)], 5) == [(0, 1.0), (1, None), (2, 1.0)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234, "1,234"),
        (9999, "9,999"),
        (12345, "12.3k"),
        (2134528, "2.13M"),
        (999_990_000, "1G"),
        (0.0123, "0.0123"),
        (5e-5, "5e-5"),
        (2.5e-4, "2.5e-4"),
        (-1500.6, "-1,501"),
        (math.nan, "–"),
        (None, "–"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def drawing(panels):
    svg = ElementTree.fromstring(line_chart(panels))
    return svg, json.loads(svg.get("data-chart"))


def test_chart_has_axes_lines_and_the_values_for_the_pointer():
    points = [(step, 1 / (step + 1)) for step in range(1000)]
    svg, data = drawing([Panel("loss", [Series("ce", points, 1, smooth=True), Series("kl", points[:5], 2)])])
    assert len(svg.findall("path")) == 3, "the first measured and averaged, the second too short to average"
    assert {text.text for text in svg.findall("text")} >= {"loss", "0", "0.5", "1", "200", "optimizer step"}
    ce, kl = data["panels"][0]["series"]
    assert (ce["label"], kl["label"]) == ("ce", "kl")
    assert len(ce["xs"]) == len(ce["ys"]) <= MAX_POINTS
    assert (kl["xs"], kl["ys"]) == ([0, 1, 2, 3, 4], [1, 0.5, 0.33333, 0.25, 0.2])
    assert "ce from 1 to 0.001" in svg.get("aria-label")


@pytest.mark.parametrize(
    "values",
    [
        [],
        [None],
        [1.0],
        [0.0, 0.0],
        [math.nan, 1.0, math.inf],
        [1.0, None, 2.0],
        [-3.0, -1.0],
        [1e-320, 1e308],
        [7] * 90,
    ],
)
@pytest.mark.parametrize("log", [False, True])
def test_odd_series_draw_within_the_frame(values, log):
    svg, data = drawing([Panel("a", [Series("x", list(enumerate(values)), 1, smooth=True)], log=log, top=1.0)])
    _, _, width, height = map(float, svg.get("viewBox").split())
    for path in svg.findall("path"):
        for place in path.get("d").replace("M", " ").replace("L", " ").split():
            x, y = map(float, place.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    shown = [y for series in data["panels"][0]["series"] for y in series["ys"]]
    assert all(math.isfinite(y) for y in shown)
    assert all(y > 0 for y in shown) or not log


def test_gaps_split_the_line_and_a_lone_point_is_a_disc():
    svg, _ = drawing(
        [Panel("a", [Series("x", [(0, 1.0), (1, 2.0), (2, None), (3, 1.0), (4, None), (5, 1.0), (6, 1.0)])])]
    )
    assert svg.find("path").get("d").count("M") == 2
    assert len(svg.findall("circle")) == 1


def test_labels_are_escaped():
    svg, data = drawing([Panel("<b>&", [Series('"<i>', [(0, 1.0), (1, 2.0)])])])
    assert "<b>&" in {text.text for text in svg.findall("text")}
    assert data["panels"][0]["series"][0]["label"] == '"<i>'
