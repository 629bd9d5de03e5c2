"""Whether two models differ on the same tasks: McNemar's exact test and a paired bootstrap interval.

Both look at tasks in pairs, since two models find the same tasks hard: the difference is then known far better than
from two intervals side by side. Tasks are what is drawn at random; several samples of a task are averaged first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 10_000
_CHUNK = 2_000_000  # numbers drawn at a time


@dataclasses.dataclass(frozen=True)
class PairedResult:
    """Two runs, A and B, on the tasks that both did.

    Attributes:
      tasks: how many there are.
      rate: pass@1 of A, and of B.
      difference: A - B.
      interval: of the difference, by the bootstrap.
      only: tasks that A alone passes, and that B alone passes; None where a task has several samples.
      p_value: McNemar's exact test; None where a task has several samples.
    """

    tasks: int
    rate: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    only: tuple[int, int] | None
    p_value: float | None


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test from the tasks on which two models disagree.

    If neither is better, each of the n = b + c disagreements goes either way with probability 1/2: twice the lower
    tail of Binomial(n, 1/2) at min(b, c), at most 1. In whole numbers, so it is exact up to one rounding.
    Source: Q. McNemar 1947, "Note on the sampling error of the difference between correlated proportions or
    percentages"; the exact form e.g. in Fagerland et al. 2013, BMC Medical Research Methodology 13:91.

    Args:
      only_first: tasks that the first model alone passes.
      only_second: tasks that the second model alone passes.

    Raises:
      ValueError: a negative count.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"McNemar's test of {only_first} and {only_second} tasks: counts can not be negative")
    disagreements = only_first + only_second
    tail = sum(math.comb(disagreements, k) for k in range(min(only_first, only_second) + 1))
    numerator, denominator = 2 * tail, 1 << disagreements
    return 1.0 if numerator >= denominator else numerator / denominator


def bootstrap_interval(
    differences: Sequence[float], confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of paired differences, tasks drawn anew with replacement.

    Source: B. Efron 1979, "Bootstrap methods: another look at the jackknife"; Efron & Tibshirani 1993, chapter 13.

    Args:
      differences: one a task.
      confidence: two-sided level in (0, 1).
      resamples: sets of tasks that are drawn.
      seed: of the draw; the same one gives the same interval.

    Raises:
      ValueError: no differences, or a level out of its range.
    """
    if not len(differences) or not 0.0 < confidence < 1.0 or resamples < 1:
        raise ValueError(
            f"bootstrap of {len(differences)} differences at {confidence} with {resamples} resamples: need one "
            "difference, a confidence in (0, 1) and one resample at least"
        )
    values = np.asarray(differences, np.float64)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(values))
    means = np.concatenate(
        [
            values[rng.integers(0, len(values), (min(rows, resamples - start), len(values)))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)


def compare_paired(
    first: Mapping[str, Sequence[bool]], second: Mapping[str, Sequence[bool]], confidence: float = 0.95
) -> PairedResult:
    """Compares two runs task by task.

    Args:
      first: task id -> whether each of its samples passed, of run A.
      second: the same of run B. Tasks that only one run has are left out.

    Raises:
      ValueError: no task in common.
    """
    common = [task for task in first if task in second]
    if not common:
        raise ValueError("the two runs have no task in common; compare runs of the same benchmark")
    rates = [(_mean(first[task]), _mean(second[task])) for task in common]
    differences = [a - b for a, b in rates]
    single = all(len(first[task]) == len(second[task]) == 1 for task in common)
    only = (differences.count(1.0), differences.count(-1.0)) if single else None
    mean = [math.fsum(column) / len(common) for column in zip(*rates, strict=True)]
    return PairedResult(
        tasks=len(common),
        rate=(mean[0], mean[1]),
        difference=math.fsum(differences) / len(common),
        interval=bootstrap_interval(differences, confidence),
        only=only,
        p_value=mcnemar(*only) if only else None,
    )


def _mean(passed: Sequence[bool]) -> float:
    return sum(passed) / len(passed)
