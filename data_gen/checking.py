"""Is a program right? Shown tests, all tests, then whatever other verifiers were asked for; and in which words not.

``Checker`` is what the reflection loop, the build and ``validate`` share, so that a verdict means the same in each.
"""

from __future__ import annotations

import atexit
import dataclasses
import re
import threading
from collections.abc import Callable, Mapping, Sequence

from data_gen.problems import Problem
from data_gen.sandbox import Limits, Outcome, Program, Sandbox, Verdict
from data_gen.verifiers import Verifier

LONGEST_FEEDBACK = 1200  # characters; a longer one (printed output) is no feedback to learn from

Run = Callable[[Program], Outcome]


class LanguageError(RuntimeError):
    """Programs of a language can not be run here; the message says what is missing."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """What came of checking one program.

    Attributes:
      outcome: of the run that decides: feedback holds what the program printed, and why it is not right.
      tests: lines that stood behind the program in that run.
      verdicts: by verifier, ``passed``, ``failed`` or ``skipped``; those not reached are left out.
      shown: whether the outcome is that of the program with ``tests``; False where hidden tests failed.
    """

    outcome: Outcome
    tests: tuple[str, ...]
    verdicts: Mapping[str, str]
    shown: bool = True

    @property
    def passed(self) -> bool:
        return self.outcome.verdict == Verdict.PASSED


class Runner:
    """Runs programs of any language, each only once; counts the executions. For one problem."""

    def __init__(self, sandbox: Sandbox, language: str):
        self._sandbox, self._language = sandbox, language
        self._outcomes: dict[str, Outcome] = {}
        self.executions = 0

    def __call__(self, program: Program) -> Outcome:
        source = program.source
        if source not in self._outcomes:
            self._outcomes[source] = self._run(program)
            self.executions += 1
        return self._outcomes[source]

    def _run(self, program: Program) -> Outcome:
        if self._language == "python":
            return self._sandbox.run(program)
        return run_language(self._language, assembled(program, self._language), self._sandbox.limits)


def assembled(program: Program, language: str) -> str:
    """Code and tests as one file. In Go the tests' imports go up to the package clause, where they must stand."""
    source = program.source
    if language == "go" and (imports := re.findall(r'(?m)^import \w+ "\w+"\n', source)):
        source = re.sub(r'(?m)^import \w+ "\w+"\n', "", source)
        source = re.sub(r"(?m)^(package \w+\n)", lambda head: head[1] + "".join(imports), source, count=1)
    return source


def run_language(language: str, source: str, limits: Limits) -> Outcome:
    """Compiles and runs a program in a language other than Python.

    ``limits`` count where they are wider than those of ``data_gen.languages``: what is enough for Python is little for
    a virtual machine's start.

    Raises:
      LanguageError: it is not known, or its tools are not on this machine.
    """
    try:
        from data_gen import languages  # late: looks for toolchains
    except ImportError as error:
        raise LanguageError(f"programs in {language} can not be run: this version knows Python only") from error
    wider = {
        field.name: max(getattr(languages.RUN, field.name), getattr(limits, field.name))
        for field in dataclasses.fields(Limits)
    }
    try:
        return languages.run_source(language, source, limits=Limits(**wider), sandbox=_language_sandbox(language))
    except languages.LanguageError as error:
        raise LanguageError(str(error)) from error


_SANDBOXES: dict[str, Sandbox] = {}
_LOCK = threading.Lock()


def _language_sandbox(language: str) -> Sandbox:
    """One pool a language for the whole process: to start one costs more than most programs."""
    from data_gen import languages

    name = languages.language_of(language).name
    with _LOCK:
        if name not in _SANDBOXES:
            _SANDBOXES[name] = languages.language_sandbox([name])
            atexit.register(_SANDBOXES[name].close)
        return _SANDBOXES[name]


def check(
    problem: Problem, code: str, tests: tuple[str, ...], run: Run, verifiers: Sequence[Verifier], whole: bool = True
) -> Checked:
    """Checks ``code``.

    Args:
      tests: the lines shown behind it so far, run first.
      whole: run all tests and the other verifiers as well if these pass. Where one of the further tests fails, it is
        added to the shown ones, so that the feedback is again that of the shown program.
    """
    outcome = run(Program(code, tests))
    if outcome.verdict != Verdict.PASSED:
        return Checked(outcome, tests, {"tests": "failed"})
    if not whole:
        return Checked(outcome, tests, {})
    full = run(Program(code, problem.all_tests))
    if full.verdict != Verdict.PASSED:
        found = tuple(test for test in tests if test not in problem.tests)  # counterexamples of earlier rounds
        for test in problem.tests:
            more = (*(line for line in problem.tests if line in tests or line == test), *found)
            if test not in tests and (again := run(Program(code, more))).verdict != Verdict.PASSED:
                return Checked(again, more, {"tests": "failed"})
        return Checked(full, tests, {"tests": "failed"}, shown=False)
    verdicts = {"tests": "passed"}
    for verifier in verifiers:
        result = verifier.verify(problem, code, run)
        verdicts[verifier.name] = result.verdict
        if result.verdict == "failed":
            if result.test:  # a counterexample as a test: it is run like any other
                more = (*tests, result.test)
                again = run(Program(code, more))
                if again.verdict != Verdict.PASSED:
                    return Checked(again, more, verdicts)
            words = outcome.feedback + result.feedback
            return Checked(Outcome(Verdict.FAILED, words, result.error, outcome.seconds), tests, verdicts)
    return Checked(outcome, tests, verdicts)


def shortened(feedback: str) -> str:
    """``feedback`` with its middle cut out where it is too long to learn from."""
    if len(feedback) <= LONGEST_FEEDBACK:
        return feedback
    half = (LONGEST_FEEDBACK - len("\n... cut ...\n")) // 2
    return f"{feedback[:half].rstrip()}\n... cut ...\n{feedback[-half:].lstrip()}"
