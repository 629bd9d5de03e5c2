"""What several runs of several settings say: means over seeds with intervals, and paired differences.

An interval is Student's t over seeds: how far another set of seeds, on the same problems, may lie. A difference is
taken seed by seed, since runs of one seed share parameters, order of examples and problems, and then averaged.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rcjax.evaluation.charts import Estimate, interval_chart, number, scatter_chart

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Result:
    """What one run came to.

    Attributes:
      passed: problem id -> whether its one-off program passed.
      tokens: computed in training, both views.
      steps: optimizer steps.
      seconds: of training.
    """

    passed: Mapping[str, bool]
    tokens: int
    steps: int
    seconds: float

    @property
    def rate(self) -> float:
        """pass@1."""
        return sum(self.passed.values()) / len(self.passed)


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting and its finished runs by seed."""

    name: str
    results: Mapping[int, Result]


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Student's t interval of the mean: mean -+ t(n - 1) s / sqrt(n); None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy import stats  # late: half a second

    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


def compare_rows(rows: Sequence[Row], references: Sequence[str]) -> list[dict[str, Any]]:
    """One dictionary a row: ``row``, ``seeds``, ``pass@1`` (mean), ``interval``, ``values`` by seed, mean ``tokens``,
    ``steps`` and ``seconds``, and ``versus`` {reference: {seeds, difference, interval}} over the seeds in common.

    Raises:
      ValueError: two runs were evaluated on different problems.
    """
    by_name = {row.name: row for row in rows}
    problems: set[str] | None = None
    compared = []
    for row in rows:
        for result in row.results.values():
            problems = problems or set(result.passed)
            if set(result.passed) != problems:
                raise ValueError(f"row {row.name} was evaluated on other problems than the rows before it")
        values = [result.rate for result in row.results.values()]
        versus = {}
        for name in references:
            common = sorted(row.results.keys() & by_name[name].results.keys())
            if name == row.name or not common:
                continue
            differences = [row.results[seed].rate - by_name[name].results[seed].rate for seed in common]
            versus[name] = {
                "seeds": len(common),
                "difference": statistics.fmean(differences),
                "interval": t_interval(differences),
            }
        compared.append(
            {
                "row": row.name,
                "seeds": len(values),
                "pass@1": statistics.fmean(values),
                "interval": t_interval(values),
                "values": {str(seed): result.rate for seed, result in row.results.items()},
                "versus": versus,
                "tokens": statistics.fmean(result.tokens for result in row.results.values()),
                "steps": statistics.fmean(result.steps for result in row.results.values()),
                "seconds": statistics.fmean(result.seconds for result in row.results.values()),
            }
        )
    return compared


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Head and lines of the table of ``compare_rows``, as text."""
    references = list(dict.fromkeys(name for row in rows for name in row["versus"]))
    lines = [["row", "seeds", "pass@1", *(f"against {name}" for name in references), "tokens", "steps", "seconds"]]
    for row in rows:
        versus = [_difference(row["versus"].get(name)) for name in references]
        rate = f"{100 * row['pass@1']:.1f} %" + _half(row["pass@1"], row["interval"])
        spent = [number(row["tokens"]), f"{row['steps']:,.0f}", f"{row['seconds']:,.0f}"]
        lines.append([row["row"], str(row["seeds"]), rate, *versus, *spent])
    return lines


def _difference(versus: Mapping[str, Any] | None) -> str:
    if versus is None:
        return ""
    return f"{100 * versus['difference']:+.1f}".replace("-", "−") + _half(versus["difference"], versus["interval"])


def _half(mean: float, interval: Sequence[float] | None) -> str:
    return f" ± {100 * (interval[1] - mean):.1f}" if interval else ""


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """``table`` in Markdown."""
    head, *lines = table(rows)
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *lines))


def rate_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """pass@1 of every row, its seeds and its interval, as a picture of its own (SVG)."""
    estimates = [
        Estimate(row["row"], 100 * row["pass@1"], _percent(row), [100 * value for value in row["values"].values()])
        for row in rows
    ]
    return interval_chart(estimates, "pass@1, % (each seed, mean and 95 % interval)")


def cost_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """pass@1 against the tokens that training computed (SVG)."""
    points = [(row["tokens"], Estimate(row["row"], 100 * row["pass@1"], _percent(row))) for row in rows]
    return scatter_chart(points, "pass@1, %", "computed tokens")


def _percent(row: Mapping[str, Any]) -> tuple[float, float] | None:
    return tuple(100 * end for end in row["interval"]) if row["interval"] else None
