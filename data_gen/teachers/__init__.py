"""Teachers write attempts and corrections; the loop of ``data_gen/reflection.py`` runs them.

A teacher keeps nothing between calls: what it must remember of a trace travels in ``Attempt.memo``.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any, Protocol

from data_gen.problems import Problem
from data_gen.sandbox import Outcome


@dataclasses.dataclass(frozen=True)
class Attempt:
    """Code and the text in front of it.

    Attributes:
      text: a thought before the first attempt, a reflection before a later one.
      code: the whole program, tests excluded.
      faults: names of faults that the teacher knows to be still in the code. A program that passes with known faults
        is no solution, and its trace is dropped. Empty when the teacher knows of none.
      memo: the teacher's own memory of this trace.
    """

    text: str
    code: str
    faults: tuple[str, ...] = ()
    memo: Any = None


class Teacher(Protocol):
    """What the reflection loop asks of a teacher."""

    name: str

    def attempt(self, problem: Problem, rng: random.Random, rounds: int) -> Attempt | None:
        """A first attempt that at most ``rounds`` corrections mend; None if there is nothing (more) to try."""
        ...

    def reflect(self, problem: Problem, attempt: Attempt, outcome: Outcome, rng: random.Random) -> Attempt:
        """A reflection on ``outcome`` and the corrected program."""
        ...
