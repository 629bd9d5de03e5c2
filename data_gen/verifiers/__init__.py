"""Verifiers: further judges of a program that passes its given tests; chosen per run (``--verifiers``), combinable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from data_gen.problems import Problem
from data_gen.sandbox import Outcome, Program

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


class VerifierError(RuntimeError):
    """A verifier that can not work here; the message names what to install."""


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a verifier says.

    Attributes:
      verdict: PASSED, FAILED, or SKIPPED where it has nothing to go by.
      feedback: for a failure, the words that go into the EXECUTION block, each line ended.
      error: a short name for the failure, as exceptions have.
      test: for a failure, an assert that shows it, if there is one; running it gives the feedback then.
    """

    verdict: str
    feedback: str = ""
    error: str = ""
    test: str = ""


class Verifier(Protocol):
    """``name`` stands in the record's ``verdicts``."""

    name: str

    def verify(self, problem: Problem, code: str, run: Callable[[Program], Outcome]) -> Judgement:
        """Judges ``code``, which passes the tests of ``problem``."""
        ...
