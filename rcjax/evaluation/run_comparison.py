"""Two evaluations task by task: which tasks changed sides, and whether the difference is more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rcjax.evaluation.significance import compare_paired


class ComparisonError(ValueError):
    """Two evaluations that can not be compared; the message says why."""


def compare_runs(mine: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What ``results.json`` says about another evaluation.

    Args:
      mine, theirs: contents of two ``results.json``.
      name: what the other one is called, its directory.

    Returns:
      ``{"with": name, "model": ..., "benchmarks": {benchmark: {tests: {...}}}}``; for base and plus tests the two
      rates, the difference with its 95 % interval, McNemar's p-value, and the tasks that only one of the two passes.

    Raises:
      ComparisonError: no benchmark in common, or one in two versions.
    """
    common = [benchmark for benchmark in mine["benchmarks"] if benchmark in theirs["benchmarks"]]
    if not common:
        raise ComparisonError(
            f"--compare={name} has no benchmark in common with this evaluation: {', '.join(theirs['benchmarks'])} "
            f"there, {', '.join(mine['benchmarks'])} here"
        )
    compared: dict[str, Any] = {}
    for benchmark in common:
        here, there = mine["benchmarks"][benchmark], theirs["benchmarks"][benchmark]
        if here["data_version"] != there["data_version"]:
            raise ComparisonError(
                f"--compare={name} was scored on another version of {benchmark}: {there['data_version']} there, "
                f"{here['data_version']} here; evaluate both on one file"
            )
        compared[benchmark] = {
            tests: _compare(here["tasks"], there["tasks"], tests)
            for tests in ("base", "plus")
            if tests in here and tests in there
        }
    return {"with": name, "model": theirs["model"], "benchmarks": compared}


def _compare(here: Mapping[str, Any], there: Mapping[str, Any], tests: str) -> dict[str, Any]:
    first, second = _passed(here, tests), _passed(there, tests)
    result = compare_paired(first, second)
    return {
        "num_tasks": result.tasks,
        "pass@1": result.rate[0],
        "other pass@1": result.rate[1],
        "difference": result.difference,
        "interval": list(result.interval),
        "p_value": result.p_value,
        "gained": [task for task in first if task in second and _rate(first[task]) > _rate(second[task])],
        "lost": [task for task in first if task in second and _rate(first[task]) < _rate(second[task])],
    }


def _passed(tasks: Mapping[str, Any], tests: str) -> dict[str, list[bool]]:
    needed = ("base", "plus") if tests == "plus" else ("base",)
    return {
        task: [all(verdict[name] in (None, "pass") for name in needed) for verdict in verdicts]
        for task, verdicts in tasks.items()
    }


def _rate(passed: list[bool]) -> float:
    return sum(passed) / len(passed)
