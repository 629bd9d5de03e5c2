"""A programming problem: a statement in several phrasings, a reference solution, tests."""

from __future__ import annotations

import dataclasses
from typing import Any


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
      solution: reference code; "" where there is none.
      entry_point: name of the function that the tests call; "" where it is not known.
      tests: lines run behind the code, each an assert or a setup line (an import, a definition); in languages other
        than Python blocks of lines. Empty where the teacher is to write them.
      language: that of the code, a key of ``data_gen.languages.LANGUAGES``.
      hidden: further lines run behind the code and ``tests``, never shown: too long for a CODE block.
    """

    id: str
    task: str
    family: str
    prompts: tuple[str, ...]
    solution: str
    entry_point: str
    tests: tuple[str, ...]
    language: str = "python"
    hidden: tuple[str, ...] = ()

    @property
    def all_tests(self) -> tuple[str, ...]:
        """What decides whether a program is right."""
        return self.tests + self.hidden

    def plain(self) -> list[Any]:
        """The values that a build follows from; the last ones are left out while they say nothing."""
        values = list(dataclasses.astuple(self))
        return values if self.hidden else values[:-1] if self.language != "python" else values[:-2]
