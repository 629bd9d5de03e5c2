"""A programming problem: a statement in several phrasings, a reference solution, tests."""

from __future__ import annotations

import dataclasses


class ProblemError(ValueError):
    """A problem file that can not be used; the message names file, line and field."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      id: unique in its set.
      task: what is asked, phrasing excluded; problems with one ``task`` never lie in different splits.
      family: group that results are reported by.
      prompts: phrasings of the statement, at least one.
      solution: reference code.
      entry_point: name of the function that the tests call.
      tests: lines run behind the code, each an assert or a setup line (an import, a definition).
    """

    id: str
    task: str
    family: str
    prompts: tuple[str, ...]
    solution: str
    entry_point: str
    tests: tuple[str, ...]
