"""Behaviour of tasks: what tells two of them apart, and which inputs make good tests.

The codes run here are this package's own compositions, not attempts, so they run in the process itself.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

from data_gen.families.inputs import draw_inputs
from data_gen.families.task import Task
from data_gen.mutations import mutants

PROBES = 24
EDGES = 2  # of the inputs that draw_inputs gives, so many are edge cases
MAX_ASSERT = 76  # characters of one assert line; every one costs tokens in the traces


def compiled(code: str) -> Callable[..., Any]:
    """The function ``solve`` that ``code`` defines."""
    namespace: dict[str, Any] = {}
    exec(compile(code, "solution", "exec"), namespace)
    return namespace["solve"]


def outputs(code: str, inputs: Sequence[tuple[Any, ...]]) -> tuple[str, ...]:
    """``repr`` of what ``solve`` returns for every input, or the name of what it raises."""
    try:
        solve = compiled(code)
    except SyntaxError:
        return ("SyntaxError",) * len(inputs)
    results = []
    for arguments in inputs:
        try:
            # A copy each: a faulty variant may change what it is given.
            results.append(repr(solve(*map(copy.copy, arguments))))
        except Exception as error:
            results.append(f"!{type(error).__name__}")
    return tuple(results)


def _copy(value: Any) -> Any:
    """A copy that ``solve`` may change: faulty variants write into their input."""
    return value.copy() if isinstance(value, (list, dict)) else value


def probes(params: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """The fixed inputs that behaviour is compared on."""
    return draw_inputs(params, random.Random("probes/" + ",".join(params)), PROBES)


def judge(task: Task, inputs: Sequence[tuple[Any, ...]]) -> tuple[tuple[str, ...], str]:
    """(outputs on ``inputs``, why the task is no good or "")."""
    found = outputs(task.solution, inputs)
    if any(output.startswith("!") for output in found):
        return found, "raises"
    counts = sorted((found.count(output) for output in set(found)), reverse=True)
    limit = 0.85 if set(found) <= {"True", "False"} else 0.7
    if counts[0] > limit * len(found):
        return found, "constant"
    if any(outputs(code, inputs) == found for code in task.smaller):
        return found, "redundant"
    if any(len(output) > 48 for output in found[2:8]):
        return found, "long"
    return found, ""


def choose_tests(
    solution: str, params: tuple[str, ...], rng: random.Random, wrongs: Sequence[str], count: int
) -> tuple[str, ...]:
    """Assert lines that tell the solution from ``wrongs``, faulty variants of it.

    Greedy: the input that unmasks most mutants not yet unmasked comes next; among equals the one that costs the
    fewest characters. The last one is an edge case (an empty list or a single element, for example).
    """
    candidates = draw_inputs(params, rng, 12)
    expected = outputs(solution, candidates)
    wrong = [outputs(code, candidates) for code in wrongs]
    lines = [
        f"assert solve({', '.join(map(repr, arguments))}) == {value}"
        for arguments, value in zip(candidates, expected, strict=True)
    ]
    usable = [
        index
        for index, (line, value) in enumerate(zip(lines, expected, strict=True))
        if len(line) <= MAX_ASSERT and not value.startswith("!")
    ]
    edges = [index for index in usable if index < EDGES]
    inner = [index for index in usable if index >= EDGES]
    alive = set(range(len(wrong)))
    chosen: list[int] = []
    seen: set[str] = set()

    def take(choices: Sequence[int]) -> None:
        best = min(
            (index for index in choices if index not in chosen),
            key=lambda index: (
                -sum(wrong[mutant][index] != expected[index] for mutant in alive),
                expected[index] in seen,
                len(lines[index]),
                index,
            ),
        )
        chosen.append(best)
        seen.add(expected[best])
        alive.difference_update([mutant for mutant in alive if wrong[mutant][best] != expected[best]])

    for _ in range(min(count - 1, len(inner))):
        take(inner)
    if edges and len(chosen) < count:
        take(edges)
    return tuple(lines[index] for index in chosen)


def safe_mutants(code: str, rng: random.Random, limit: int) -> list[str]:
    """Up to ``limit`` variants of ``code`` with one small fault, none of which can loop for ever."""
    return [
        mutant.code for mutant in mutants(code, rng, limit=limit) if mutant.terminates and "while" not in mutant.code
    ]
