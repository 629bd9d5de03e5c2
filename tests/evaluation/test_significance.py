"""McNemar's test against published and exact numbers, the bootstrap against its exact distribution."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcjax.evaluation.significance import bootstrap_interval, compare_paired, mcnemar


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (6, 0, 2 / 64),
        (1, 7, 2 * (1 + 8) / 256),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
        # statsmodels' documentation: table [[101, 121], [59, 33]], exact, p = 4.434e-6
        (121, 59, 4.434e-06),
        # R's exact2x2::mcnemar.exact on the approval ratings of Agresti 1990, 86 and 150: p = 3.716e-05
        (86, 150, 3.716e-05),
        (3000, 2000, 0.0),  # far below what a float of C(n, k) alone could hold
    ],
)
def test_mcnemar_gives_known_values(only_first, only_second, p_value):
    assert mcnemar(only_first, only_second) == pytest.approx(p_value, rel=1e-3, abs=1e-40)
    assert mcnemar(only_second, only_first) == mcnemar(only_first, only_second)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_tail(b, c):
    n = b + c
    chance = [Fraction(math.comb(n, k), 2**n) for k in range(n + 1)]
    # Two-sided by the probability of what is at least as uneven.
    expected = sum(chance[k] for k in range(n + 1) if abs(2 * k - n) >= abs(b - c))
    assert mcnemar(b, c) == pytest.approx(float(expected), rel=1e-12)


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="can not be negative"):
        mcnemar(-1, 3)


def exact_quantile(values, probability):
    """Of the bootstrap distribution of the mean of values in {-1, 0, 1}: by convolution, no draw."""
    n = len(values)
    one = np.zeros(3)
    for value in values:
        one[int(value) + 1] += 1 / n
    total = np.ones(1)
    for _ in range(n):
        total = np.convolve(total, one)
    cumulative = np.cumsum(total)
    return (int(np.searchsorted(cumulative, probability)) - n) / n


@pytest.mark.parametrize("counts", [(12, 140, 12), (30, 120, 14), (3, 30, 0), (40, 300, 38)])
def test_bootstrap_interval_is_that_of_its_exact_distribution(counts):
    gained, same, lost = counts
    differences = [1.0] * gained + [0.0] * same + [-1.0] * lost
    low, high = bootstrap_interval(differences, 0.95)
    # A quantile of 10,000 draws wanders by a few thousandths of probability, here one or two steps of 1/n.
    assert low == pytest.approx(exact_quantile(differences, 0.025), abs=2.01 / len(differences))
    assert high == pytest.approx(exact_quantile(differences, 0.975), abs=2.01 / len(differences))
    assert bootstrap_interval(differences, 0.95) == (low, high), "the same seed, the same interval"
    assert bootstrap_interval(differences, 0.5)[0] > low


def test_bootstrap_of_equal_differences_is_a_point():
    assert bootstrap_interval([0.25] * 7) == (0.25, 0.25)
    for arguments in (([],), ([1.0], 1.0), ([1.0], 0.95, 0)):
        with pytest.raises(ValueError, match="bootstrap of"):
            bootstrap_interval(*arguments)


def test_runs_are_compared_on_common_tasks():
    first = {"a": [True], "b": [True], "c": [False], "d": [True], "left out": [True]}
    second = {"a": [True], "b": [False], "c": [False], "d": [False]}
    result = compare_paired(first, second)
    assert (result.tasks, result.rate, result.difference) == (4, (0.75, 0.25), 0.5)
    assert (result.only, result.p_value) == ((2, 0), 0.5)
    assert result.interval[0] <= 0.5 <= result.interval[1]
    with pytest.raises(ValueError, match="no task in common"):
        compare_paired(first, {"z": [True]})


def test_several_samples_are_averaged_and_not_tested():
    result = compare_paired({"a": [True, False], "b": [True, True]}, {"a": [False, False], "b": [True, True]})
    assert result.difference == 0.25
    assert (result.only, result.p_value) == (None, None)
