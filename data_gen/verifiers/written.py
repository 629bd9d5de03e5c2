"""``written``: asserts that the teacher wrote for the problem, beside the given ones."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping

from data_gen.problems import Problem
from data_gen.sandbox import Outcome, Program, Verdict
from data_gen.teachers import Teacher, TeacherError
from data_gen.verifiers import FAILED, PASSED, SKIPPED, Judgement


class WrittenTests:
    """Asks once a problem. Where there is a reference, tests that it fails are thrown away as wrong."""

    name = "written"

    def __init__(self, teachers: Mapping[str, Teacher], seed: int):
        # Any teacher that can write tests serves; those that work from the reference can not.
        self._teachers, self._seed = list(teachers.values()), seed
        self._tests: dict[str, tuple[str, ...]] = {}
        self._lock = threading.Lock()

    def verify(self, problem: Problem, code: str, run: Callable[[Program], Outcome]) -> Judgement:
        """SKIPPED where no test was written; the first test that fails is the counterexample."""
        with self._lock:
            tests = self._tests.get(problem.id)
        if tests is None:
            tests = self._write(problem, run)
            with self._lock:
                if len(self._tests) > 1000:  # problems come and go; a handful is in work at a time
                    self._tests.clear()
                self._tests[problem.id] = tests
        if not tests:
            return Judgement(SKIPPED)
        setup = tuple(line for line in problem.tests if not line.startswith("assert"))
        for test in tests:
            if run(Program(code, (*setup, test))).verdict != Verdict.PASSED:
                return Judgement(FAILED, error="AssertionError", test=test)
        return Judgement(PASSED)

    def _write(self, problem: Problem, run: Callable[[Program], Outcome]) -> tuple[str, ...]:
        rng = random.Random(f"written/{self._seed}/{problem.id}")
        tests: tuple[str, ...] = ()
        for teacher in self._teachers:
            try:
                tests = teacher.write_tests(problem, rng)
            except TeacherError:
                continue
            if tests:
                break
        if problem.solution:
            tests = tuple(test for test in tests if run(Program(problem.solution, (test,))).verdict == Verdict.PASSED)
        return tests
