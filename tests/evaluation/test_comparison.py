"""Means, intervals and paired differences over seeds."""

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcjax.evaluation.comparison import Result, Row, compare_rows, cost_plot, markdown, rate_plot, t_interval, table


def result(passed, total=20, tokens=1000):
    return Result({f"p{i}": i < passed for i in range(total)}, tokens, 10, 2.5)


ROWS = [
    Row("full", {seed: result(passed) for seed, passed in enumerate((10, 12, 14, 12, 12))}),
    Row("other", {seed: result(passed, tokens=500) for seed, passed in enumerate((8, 10, 12, 10, 10))}),
    Row("single", {0: result(20)}),
]


def test_interval_against_the_table_of_students_t():
    # t(0.975, 4) = 2.776 (any table); s = 1, n = 5
    low, high = t_interval([-1.0, -0.5, 0.0, 0.5, 1.0])
    spread = math.sqrt(2.5 / 4)
    assert high == pytest.approx(2.776 * spread / math.sqrt(5), rel=1e-3)
    assert low == pytest.approx(-high)
    assert t_interval([0.3]) is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_interval_holds_the_mean_and_is_that_of_scipy(values):
    from scipy import stats

    low, high = t_interval(values)
    assert low - 1e-12 <= sum(values) / len(values) <= high + 1e-12
    if high - low > 1e-9:
        theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert (low, high) == pytest.approx((theirs.low, theirs.high))


def test_differences_are_taken_seed_by_seed():
    full, other, single = compare_rows(ROWS, ["full"])
    assert full["pass@1"] == pytest.approx(0.6)
    assert full["versus"] == {}
    # Every seed differs by the same: the paired interval has no width, though the rows' own intervals overlap.
    assert other["versus"]["full"]["difference"] == pytest.approx(-0.1)
    assert other["versus"]["full"]["interval"] == pytest.approx((-0.1, -0.1))
    assert other["interval"][1] > full["interval"][0]
    assert single["interval"] is None
    assert single["versus"]["full"] == {"seeds": 1, "difference": pytest.approx(0.5), "interval": None}


def test_other_problems_are_refused():
    with pytest.raises(ValueError, match="row b was evaluated on other problems"):
        compare_rows([Row("a", {0: result(3)}), Row("b", {0: result(3, total=21)})], [])


def test_table_and_pictures():
    rows = compare_rows(ROWS, ["full"])
    head, *lines = table(rows)
    assert head == ["row", "seeds", "pass@1", "against full", "tokens", "steps", "seconds"]
    assert lines[1][:4] == ["other", "5", "50.0 % ± 8.8", "−10.0 ± 0.0"]
    assert lines[2][2:4] == ["100.0 %", "+50.0"]
    assert markdown(rows).count("\n") == 5
    for drawing in (rate_plot(rows), cost_plot(rows)):
        svg = ElementTree.fromstring(drawing)
        words = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
        assert {"full", "other", "single"} <= set(words)
    discs = [
        element.get("class") for element in ElementTree.fromstring(rate_plot(rows)).iter() if "circle" in element.tag
    ]
    assert discs.count("value") == 11
    assert discs.count("mean") == 3
