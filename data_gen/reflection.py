"""The loop: attempt, run, feedback, reflection, correction, until the tests pass. And its form as a conversation.

What a block holds:

* CODE: the program and the assert lines that were run behind it, so that the line numbers of the feedback fit. Only
  some of the tests are shown (they cost tokens); the last program is run on all of them.
* EXECUTION: what the sandbox really answered to exactly the shown program, then what other verifiers said. A program
  that passes prints nothing, and its block holds ``ok``.
* Ends of line at the end of a block are cut.
"""

from __future__ import annotations

import ast
import dataclasses
import random
from collections import Counter
from collections.abc import Sequence

from data_gen.checking import LONGEST_FEEDBACK, Run, assembled, check, shortened
from data_gen.problems import Problem
from data_gen.sandbox import Outcome, Program
from data_gen.teachers import Attempt, Teacher
from data_gen.templates import Templates
from data_gen.verifiers import Verifier
from rcjax.blocks import REFLECTION, Block, BlockType, Conversation, Message

SUCCESS = "ok"  # EXECUTION block of a program that passed in silence


@dataclasses.dataclass(frozen=True)
class Round:
    """An attempt and what came of running it with ``tests`` behind it."""

    attempt: Attempt
    outcome: Outcome
    tests: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Trace:
    """A finished loop: every round but the last failed, the last passed all tests and verifiers."""

    rounds: tuple[Round, ...]
    verdicts: dict[str, str]

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


def own_tests(code: str, language: str) -> tuple[str, ...]:
    """The assertions at the top level of a program that tests itself (Python; elsewhere none can be told)."""
    if language != "python":
        return ()
    try:
        return tuple(ast.unparse(node) for node in ast.parse(code).body if isinstance(node, ast.Assert))
    except (SyntaxError, ValueError, RecursionError):
        return ()


def reflect(
    problem: Problem,
    teacher: Teacher,
    run: Run,
    rng: random.Random,
    *,
    rounds: int,
    shown: int,
    counts: Counter[str],
    verifiers: Sequence[Verifier] = (),
    keep_first_try: bool = False,
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
      verifiers: judges of what passes the tests.
      keep_first_try: also keep a trace whose first attempt passes.

    Raises:
      TeacherError, TeacherStop: from the teacher.
    """
    for _ in range(teacher.tries):
        tests = shown_tests(problem, rng, shown)
        attempt = teacher.attempt(problem, rng, rounds)
        if attempt is None:
            return "no attempt"
        made: list[Round] = []
        while True:
            if not problem.all_tests and problem.language == "python" and not own_tests(attempt.code, "python"):
                return "no assertions in the code"
            checked = check(problem, attempt.code, tests, run, verifiers, whole=not attempt.faults)
            outcome, tests = checked.outcome, checked.tests
            if not teacher.needs_reference:
                outcome = dataclasses.replace(outcome, feedback=shortened(outcome.feedback))
            if checked.passed:
                break
            if not checked.shown:
                return "passes the shown tests only"
            counts[f"failed: {outcome.error or outcome.verdict}"] += 1
            if attempt.faults and made and _last(made[-1].outcome) == _last(outcome):
                # The fault that the reflection blamed was not the one that the feedback showed.
                counts["no effect of mending"] += 1
                break
            made.append(Round(attempt, outcome, tests))
            if len(made) > rounds:
                return "not solved"
            attempt = dataclasses.replace(attempt, shown=Program(attempt.code, tests).source)
            attempt = teacher.reflect_and_correct(problem, attempt, outcome, rng)
        if not checked.passed:
            continue
        if attempt.faults:
            counts[f"passed: {attempt.faults[-1]}"] += 1
            continue
        if not made and not keep_first_try:
            counts["passed at once"] += 1
            continue
        if any(len(done.outcome.feedback) > LONGEST_FEEDBACK for done in made):
            return "long feedback"
        attempt = dataclasses.replace(attempt, shown=Program(attempt.code, tests).source)
        made.append(Round(attempt, outcome, tests))
        return Trace(tuple(made), dict(checked.verdicts))
    return "every attempt passed"


def _last(outcome: Outcome) -> str:
    return outcome.feedback.rstrip("\n").rsplit("\n", 1)[-1]


def conversation(
    name: str, problem: Problem, prompt: str, trace: Trace, told: str, texts: Templates, rng: random.Random
) -> Conversation:
    """The reflection example of four turns; ``told`` is the answer in the last one."""
    blocks = []
    for made in trace.rounds:
        shown = assembled(Program(made.attempt.code, made.tests), problem.language).rstrip("\n")
        feedback = made.outcome.feedback.rstrip("\n") or SUCCESS
        if made.attempt.text:
            blocks.append(Block(BlockType.TEXT, made.attempt.text))
        blocks += [Block(BlockType.CODE, shown), Block(BlockType.EXECUTION, feedback)]
    return Conversation(
        name,
        REFLECTION,
        (
            Message("user", (Block(BlockType.TEXT, texts.fill("reflection", rng, problem=prompt)),)),
            Message("assistant", tuple(blocks)),
            Message("user", (Block(BlockType.TEXT, texts.fill("problem", rng, problem=prompt)),)),
            Message("assistant", (Block(BlockType.TEXT, told),)),
        ),
    )
