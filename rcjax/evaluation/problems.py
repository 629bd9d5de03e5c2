"""Problems to evaluate on: a prompt, tests that decide, and where it came from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any


class ProblemError(ValueError):
    """A held-out record that is no problem; the message names record and field."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One held-out problem.

    Attributes:
      id: unique among the problems of a set.
      task: the underlying task; several phrasings of it share this.
      family: the group that it is counted in.
      prompt: the task statement, what the model is given.
      tests: lines run behind the program in this order: set-up or assertions.
      entry_point: name of the function that the tests call.
      solution: a reference solution, to show beside what the model wrote.
    """

    id: str
    task: str
    family: str
    prompt: str
    tests: tuple[str, ...]
    entry_point: str
    solution: str


def read_problems(records: Iterable[Mapping[str, Any]], limit: int | None = None) -> list[Problem]:
    """Problems from records of a ``heldout`` split, in the order of the records.

    Args:
      records: parsed records; text as str or UTF-8 bytes; ``tests`` a JSON list of strings.
      limit: keep the first so many only; None keeps all.

    Raises:
      ProblemError: a field is missing or has another form, an id comes twice, no record is there,
        or ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise ProblemError(f"limit of held-out problems is {limit}; give at least 1, or None for all")
    problems: list[Problem] = []
    seen: set[str] = set()
    for number, record in enumerate(records):
        problem = _problem(record, number)
        if problem.id in seen:
            raise ProblemError(f"held-out record {number}: id {problem.id!r} comes twice; build the data again")
        seen.add(problem.id)
        problems.append(problem)
        if len(problems) == limit:
            break
    if not problems:
        raise ProblemError("the heldout split has no records; build the data with a larger held-out share")
    return problems


def _problem(record: Mapping[str, Any], number: int) -> Problem:
    fields: dict[str, str] = {}
    for field in ("id", "task", "family", "prompt", "tests", "entry_point", "solution"):
        value = record.get(field)
        if isinstance(value, bytes):
            value = value.decode("utf-8", errors="replace")
        if not isinstance(value, str):
            raise ProblemError(
                f"held-out record {number}: field {field!r} is {'missing' if value is None else repr(value)}, "
                "expected text; build the data again with this version"
            )
        fields[field] = value
    where = f"held-out record {fields['id']!r}"
    if not fields["prompt"].strip():
        raise ProblemError(f"{where}: field 'prompt' is empty")
    try:
        tests = json.loads(fields["tests"])
    except ValueError:
        tests = None
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise ProblemError(f"{where}: field 'tests' must be a JSON list of at least one string")
    return Problem(**{**fields, "tests": tuple(tests)})
