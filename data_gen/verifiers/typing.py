"""``typing``: mypy over the program. It reads code and runs none of it."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from data_gen.problems import Problem
from data_gen.sandbox import Outcome, Program
from data_gen.teachers import Teacher
from data_gen.verifiers import FAILED, PASSED, SKIPPED, Judgement, VerifierError

SECONDS = 60.0
FILE = "attempt.py"
MOST = 3  # errors that are shown


class TypeCheck:
    """Judges programs that carry annotations; others have nothing to contradict."""

    name = "typing"

    def __init__(self, teachers: Mapping[str, Teacher], seed: int):
        if importlib.util.find_spec("mypy") is None:
            raise VerifierError("verifier typing needs mypy; pip install -r requirements-data.txt")
        self._cache = tempfile.TemporaryDirectory(prefix="types-")  # what mypy knows of the standard library
        self._base: str = self._cache.name

    def verify(self, problem: Problem, code: str, run: Callable[[Program], Outcome]) -> Judgement:
        """SKIPPED for other languages and for programs without annotations."""
        if problem.language != "python" or not re.search(r"->|:\s*[\w\"']", _heads(code)):
            return Judgement(SKIPPED)
        with tempfile.TemporaryDirectory(prefix="attempt-") as place:
            (Path(place) / FILE).write_text(code, encoding="utf-8")
            command = [sys.executable, "-m", "mypy", "--no-error-summary", "--no-color-output", "--hide-error-context"]
            command += ["--ignore-missing-imports", "--check-untyped-defs", "--no-site-packages", "--config-file="]
            command += [f"--cache-dir={self._base}", FILE]
            try:
                done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=SECONDS)
            except subprocess.TimeoutExpired:
                return Judgement(SKIPPED)
        errors = [line for line in done.stdout.splitlines() if line.startswith(FILE) and ": error: " in line]
        if done.returncode == 0 or not errors:
            return Judgement(PASSED if done.returncode == 0 else SKIPPED)
        return Judgement(FAILED, "".join(f"{line}\n" for line in errors[:MOST]), "TypingError")

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._cache.cleanup()


def _heads(code: str) -> str:
    """The heads of functions and the annotated assignments."""
    return "\n".join(
        line.partition("(")[2] if line.lstrip().startswith(("def ", "async def ")) else line
        for line in code.splitlines()
        if re.match(r"\s*(async )?def .*(->|\w\s*:\s*[\w\"'])|\s*\w+\s*:\s*\w+.*=", line)
    )
