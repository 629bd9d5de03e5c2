"""Teachers write attempts and corrections; the loop of ``data_gen/reflection.py`` runs them.

A teacher keeps nothing between calls: what it must remember of a trace travels in ``Attempt.memo``. So one teacher may
serve many problems at once, from several threads.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any, Protocol

from data_gen.problems import Problem
from data_gen.sandbox import Outcome


class TeacherError(RuntimeError):
    """A teacher can do nothing with this problem: it is dropped and counted under this reason, the build goes on."""


class TeacherStop(RuntimeError):
    """No problem can be worked on now (endpoint down, money spent). The build stops and can be resumed."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """Code and the text in front of it.

    Attributes:
      text: a thought before the first attempt, a reflection before a later one.
      code: the whole program, tests excluded; where the problem has none, with assertions of the teacher's own.
      faults: names of faults that the teacher knows to be still in the code. A program that passes with known faults
        is no solution, and its trace is dropped. Empty when the teacher knows of none.
      memo: the teacher's own memory of this trace.
      shown: the program as it was run, shown tests behind it; filled in by the loop before the teacher is asked again.
    """

    text: str
    code: str
    faults: tuple[str, ...] = ()
    memo: Any = None
    shown: str = ""


class Teacher(Protocol):
    """What the reflection loop asks of a teacher.

    Attributes:
      name: ``source`` of its records.
      needs_reference: it works from the reference solution (and knows Python only).
      tries: first attempts that may pass at once before a problem is given up.

    Every method may raise ``TeacherError`` and ``TeacherStop``.
    """

    name: str
    needs_reference: bool
    tries: int

    def attempt(self, problem: Problem, rng: random.Random, rounds: int) -> Attempt | None:
        """A first attempt that at most ``rounds`` corrections mend; None if there is nothing (more) to try."""
        ...

    def reflect_and_correct(self, problem: Problem, attempt: Attempt, outcome: Outcome, rng: random.Random) -> Attempt:
        """A reflection on ``outcome`` and the corrected program."""
        ...

    def write_tests(self, problem: Problem, rng: random.Random) -> tuple[str, ...]:
        """Asserts of the teacher's own for a problem; empty if it can write none."""
        ...

    def re_answer(self, problem: Problem, attempt: Attempt, rng: random.Random) -> str:
        """The answer to the plain question, now that ``attempt`` is known to be right."""
        ...
