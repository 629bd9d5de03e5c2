"""The offline teacher: faults put into the reference solution, taken out again one a round.

Reflections are grounded: their first half says what the feedback showed (the values of the failing assertion, the
exception), their second half names the fault that is taken out next.

Three teachers of this kind, so that there are differently made sources to compare: ``bugs`` draws from all operators,
``omissions`` leaves something out (a step, a call, a condition), ``slips`` puts something else in its place (an
operator, a name, a bound) or does not parse.
"""

from __future__ import annotations

import dataclasses
import random
import re
from typing import ClassVar

from data_gen.mutations import OMISSIONS, Mutant, mutants, normalize, syntax_slips
from data_gen.problems import Problem
from data_gen.sandbox import Outcome, Verdict
from data_gen.teachers import Attempt
from data_gen.teachers.code_blocks import fenced
from data_gen.templates import Templates

# Share of problems that are given one, two, three faults; fewer of the traces, since a mended fault must show.
ROUNDS = (0.72, 0.22, 0.06)
SHALLOW = 0.25  # share of tries that put in one fault whatever the problem's share
SLIPS = 0.1  # share of attempts whose last fault is one that does not parse
ENDLESS = 0.05  # share of the endless loops that are kept: each costs its whole CPU limit
VALUE = 24  # longest value that a reflection quotes
CHOICES = 12  # mutants that a draw chooses from


@dataclasses.dataclass(frozen=True)
class BugTeacher:
    """See the module's text. ``templates`` gives the words around what was seen and what is mended.

    ``omissions``: whether faults leave something out; None takes both kinds.
    """

    templates: Templates
    name: str = "bugs"
    omissions: bool | None = None
    needs_reference: ClassVar[bool] = True
    tries: ClassVar[int] = 8

    def attempt(self, problem: Problem, rng: random.Random, rounds: int) -> Attempt | None:
        """The reference with one to ``rounds`` faults; None if it offers no place for a fault."""
        # The depth hangs on the problem: were it drawn anew in every try, hard-won deep traces would be rare.
        draw = random.Random(f"depth/{problem.id}")
        depth = draw.choices(range(1, rounds + 1), weights=(ROUNDS + (0.02,) * rounds)[:rounds])[0]
        depth = 1 if rng.random() < SHALLOW else depth
        code = normalize(problem.solution)
        steps: list[tuple[Mutant, str]] = []  # (fault, code without it)
        while len(steps) < depth:
            below = steps[-1][0].code if steps else code
            slip = len(steps) == depth - 1 and rng.random() < SLIPS and not self.omissions
            mutant = self._draw(below, rng, slip)
            if mutant is None or mutant.code == code:
                break
            steps.append((mutant, below))
        if not steps:
            return None
        return self._attempt(self.templates.fill("thought", rng), steps[-1][0].code, tuple(steps))

    def _draw(self, code: str, rng: random.Random, slip: bool) -> Mutant | None:
        if slip and (slips := syntax_slips(code)):
            return rng.choice(slips)
        for mutant in mutants(code, rng, limit=CHOICES, operators=self._makes):
            if mutant.terminates or rng.random() < ENDLESS:
                return mutant
        return None

    def _makes(self, operator: str) -> bool:
        return self.omissions is None or (operator in OMISSIONS) == self.omissions

    def _attempt(self, text: str, code: str, steps: tuple[tuple[Mutant, str], ...]) -> Attempt:
        return Attempt(text, code, tuple(mutant.operator for mutant, _ in steps), steps)

    def reflect_and_correct(self, problem: Problem, attempt: Attempt, outcome: Outcome, rng: random.Random) -> Attempt:
        """Takes out the fault that was put in last."""
        mutant, below = attempt.memo[-1]
        what = seen(outcome, rng)
        text = self.templates.fill(
            "correction", rng, seen=what, Seen=what[:1].upper() + what[1:], fault=mutant.fault, mend=mutant.mend
        )
        return self._attempt(text, below, attempt.memo[:-1])

    def write_tests(self, problem: Problem, rng: random.Random) -> tuple[str, ...]:
        """None: it has no idea what a program is for."""
        return ()

    def re_answer(self, problem: Problem, attempt: Attempt, rng: random.Random) -> str:
        """The mended program, which is the reference."""
        return fenced(attempt.code)


def seen(outcome: Outcome, rng: random.Random) -> str:
    """What the feedback shows, as a clause."""
    last = outcome.feedback.rstrip("\n").rsplit("\n", 1)[-1]
    if outcome.verdict == Verdict.TIMEOUT:
        return rng.choice(("it did not end in time", "it runs without end"))
    if outcome.verdict == Verdict.MEMORY:
        return "it used up all memory"
    if outcome.verdict == Verdict.CRASHED:
        return "the program was killed"
    values = re.fullmatch(r"AssertionError: got (.*), expected (.*)", last)
    if values and max(map(len, values.groups())) <= VALUE:
        got, expected = values.groups()
        forms = (
            f"it returned {got}, not {expected}",
            f"got {got} but {expected} is expected",
            f"the test wants {expected}, not {got}",
        )
        return rng.choice(forms)
    if outcome.error == "AssertionError":
        return rng.choice(("the result is wrong", "the assertion failed", "it returned a wrong value"))
    if outcome.error in ("SyntaxError", "IndentationError"):
        return rng.choice(("the code does not parse", "there is a syntax error"))
    line = re.findall(r'File "attempt.py", line (\d+)', outcome.feedback)
    where = f" in line {line[-1]}" if line else ""
    return rng.choice((f"it raised {outcome.error}{where}", f"there is a {outcome.error}{where}"))
