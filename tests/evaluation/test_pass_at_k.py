"""pass@k and the Wilson interval against their definitions."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcjax.evaluation.pass_at_k import mean_pass_at_k, pass_at_k, wilson_interval

COUNTS = st.integers(1, 400).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)),
)


@given(COUNTS)
def test_estimator_equals_the_binomial_form(counts):
    n, c, k = counts
    assert pass_at_k(n, c, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-12)


def test_estimator_is_the_share_of_subsets_with_a_pass():
    passed = [True, False, False, True, False, False]
    subsets = list(itertools.combinations(passed, 3))
    assert pass_at_k(6, 2, 3) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@given(st.integers(1, 50), st.data())
def test_pass_at_one_is_the_plain_share(n, data):
    c = data.draw(st.integers(0, n))
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)


def test_mean_is_over_problems_not_over_samples():
    assert mean_pass_at_k([(10, 10), (1, 0)], 1) == 0.5


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4), (0, 0, 1)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(ValueError, match="need"):
        pass_at_k(n, c, k)


def test_no_problems_have_no_mean():
    with pytest.raises(ValueError, match="zero problems"):
        mean_pass_at_k([], 1)


@pytest.mark.parametrize(
    ("passed", "total", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_published_values(passed, total, low, high):
    assert wilson_interval(passed / total, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 1000), st.data())
def test_wilson_interval_solves_the_score_equation(total, data):
    rate = data.draw(st.integers(0, total)) / total
    for bound in wilson_interval(rate, total):
        # The bounds are where the observed rate is exactly z standard errors away.
        distance = abs(rate - bound) / math.sqrt(bound * (1 - bound) / total) if 0 < bound < 1 else 0.0
        assert bound in (0.0, 1.0) or distance == pytest.approx(1.959964, rel=1e-5)
    low, high = wilson_interval(rate, total)
    assert 0 <= low <= rate <= high <= 1


def test_wilson_interval_narrows_with_problems_and_widens_with_confidence():
    def width(total, confidence=0.95):
        low, high = wilson_interval(0.4, total, confidence)
        return high - low

    assert width(100) > width(400)
    assert width(100, 0.99) > width(100)


@pytest.mark.parametrize(("rate", "total", "confidence"), [(1.1, 5, 0.95), (0.5, 0, 0.95), (0.5, 5, 1.0)])
def test_wilson_interval_refuses_what_is_no_proportion(rate, total, confidence):
    with pytest.raises(ValueError, match="need a rate"):
        wilson_interval(rate, total, confidence)
