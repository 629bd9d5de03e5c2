"""The loop: attempt, run, feedback, reflection, correction, until the tests pass. And its form as a conversation.

What a block holds:

* CODE: the program and the assert lines that were run behind it, so that the line numbers of the feedback fit. Only
  some of the tests are shown (they cost tokens); the last program is run on all of them.
* EXECUTION: what the sandbox really answered to exactly the shown program. A program that passes prints nothing, and
  its block holds ``ok``.
* Ends of line at the end of a block are cut.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable

from data_gen.problems import Problem
from data_gen.sandbox import Outcome, Program, Verdict
from data_gen.teachers import Attempt, Teacher
from data_gen.templates import Templates
from rcjax.blocks import REFLECTION, Block, BlockType, Conversation, Message

SUCCESS = "ok"  # EXECUTION block of a program that passed in silence
TRIES = 8  # first attempts that may pass before a problem is given up
LONGEST_FEEDBACK = 1200  # characters; a longer one (printed output) is no feedback to learn from

Run = Callable[[Program], Outcome]


@dataclasses.dataclass(frozen=True)
class Round:
    """An attempt and what came of running it."""

    attempt: Attempt
    outcome: Outcome


@dataclasses.dataclass(frozen=True)
class Trace:
    """A finished loop: every round but the last failed, the last passed all tests."""

    rounds: tuple[Round, ...]
    shown: tuple[str, ...]  # test lines in the CODE blocks

    @property
    def failed(self) -> int:
        """Number of failed attempts."""
        return len(self.rounds) - 1


def shown_tests(problem: Problem, rng: random.Random, count: int) -> tuple[str, ...]:
    """Setup lines and ``count`` asserts of the problem, in their order."""
    asserts = [test for test in problem.tests if test.startswith("assert")]
    # The last one is an edge case by our families' custom: alone it shows little.
    pool = asserts[:-1] if count < len(asserts) else asserts
    picked = set(rng.sample(pool, min(count, len(pool))))
    return tuple(test for test in problem.tests if test in picked or not test.startswith("assert"))


def reflect(
    problem: Problem,
    teacher: Teacher,
    run: Run,
    rng: random.Random,
    *,
    rounds: int,
    shown: int,
    counts: Counter[str],
) -> Trace | str:
    """One trace, or the reason why there is none.

    Args:
      problem: the problem; its reference is taken to pass its tests.
      teacher: writes the programs.
      run: runs them.
      rng: decides everything that is random.
      rounds: most failed attempts.
      shown: asserts in a CODE block.
      counts: filled: ``failed: <error>`` of attempts that failed, ``passed: <fault>`` of those that passed with a known
        fault, ``passed at once`` of first attempts without one, ``no effect of mending`` where a known fault less
        changed nothing in the feedback (that trace is given up, another is tried).
    """
    for _ in range(TRIES):
        tests = shown_tests(problem, rng, shown)
        attempt = teacher.attempt(problem, rng, rounds)
        if attempt is None:
            return "no attempt"
        made: list[Round] = []
        while True:
            outcome = run(Program(attempt.code, tests))
            if outcome.verdict == Verdict.PASSED:
                break
            counts[f"failed: {outcome.error or outcome.verdict}"] += 1
            if attempt.faults and made and _last(made[-1].outcome) == _last(outcome):
                # The fault that the reflection blamed was not the one that the feedback showed.
                counts["no effect of mending"] += 1
                break
            made.append(Round(attempt, outcome))
            if len(made) > rounds:
                return "not solved"
            attempt = teacher.reflect(problem, attempt, outcome, rng)
        if outcome.verdict != Verdict.PASSED:
            continue
        if attempt.faults:
            counts[f"passed: {attempt.faults[-1]}"] += 1
            continue
        if not made:
            counts["passed at once"] += 1
            continue
        if any(len(done.outcome.feedback) > LONGEST_FEEDBACK for done in made):
            return "long feedback"
        whole = run(Program(attempt.code, problem.tests))
        if whole.verdict != Verdict.PASSED:
            return "passes the shown tests only"
        made.append(Round(attempt, outcome))
        return Trace(tuple(made), tests)
    return "every attempt passed"


def _last(outcome: Outcome) -> str:
    return outcome.feedback.rstrip("\n").rsplit("\n", 1)[-1]


def answer(code: str) -> str:
    """``code`` as an assistant writes it in answer to a plain question."""
    return f"```python\n{code.rstrip()}\n```"


def conversation(name: str, problem: Problem, prompt: str, trace: Trace, texts: Templates, rng: random.Random):
    """The reflection example of four turns."""
    blocks = []
    for made in trace.rounds:
        shown = Program(made.attempt.code, trace.shown).source.rstrip("\n")
        feedback = made.outcome.feedback.rstrip("\n") or SUCCESS
        blocks += [
            Block(BlockType.TEXT, made.attempt.text),
            Block(BlockType.CODE, shown),
            Block(BlockType.EXECUTION, feedback),
        ]
    return Conversation(
        name,
        REFLECTION,
        (
            Message("user", (Block(BlockType.TEXT, texts.fill("reflection", rng, problem=prompt)),)),
            Message("assistant", tuple(blocks)),
            Message("user", (Block(BlockType.TEXT, texts.fill("problem", rng, problem=prompt)),)),
            Message("assistant", (Block(BlockType.TEXT, answer(trace.rounds[-1].attempt.code)),)),
        ),
    )
