"""``crosshair``: symbolic execution. The program against the reference, or against contracts in its own docstrings.

CrossHair runs the code that it explores, so it runs inside bubblewrap: no network, a read-only system of interpreter
and libraries alone, an empty home, its own processes. A difference that it finds is run as a test in the sandbox, so
that the feedback is a real one.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from data_gen.problems import Problem
from data_gen.sandbox import Outcome, Program, Verdict
from data_gen.teachers import Teacher
from data_gen.verifiers import FAILED, PASSED, SKIPPED, Judgement, VerifierError
from data_gen.verifiers.properties import literal

SECONDS = 5  # of search a function
CONTRACT = re.compile(r"(?m)^\s*(pre|post)(\[[^\]]*\])?:")
MEMORY_KB = 2_000_000


class CrossHair:
    """See the module's text."""

    name = "crosshair"

    def __init__(self, teachers: Mapping[str, Teacher], seed: int):
        if importlib.util.find_spec("crosshair") is None:
            raise VerifierError("verifier crosshair needs crosshair-tool; pip install -r requirements-data.txt")
        if shutil.which("bwrap") is None:
            raise VerifierError(
                "verifier crosshair runs programs that nobody has read and needs bubblewrap for it; "
                "apt-get install bubblewrap"
            )

    def verify(self, problem: Problem, code: str, run: Callable[[Program], Outcome]) -> Judgement:
        """SKIPPED where there is neither a contract nor an annotated reference, or the search came to nothing."""
        if problem.language != "python" or not problem.entry_point or code == problem.solution:
            return Judgement(PASSED if problem.solution and code == problem.solution else SKIPPED)
        if CONTRACT.search(code):
            return self._contracts(code)
        if problem.solution and (annotated := _with_annotations(code, problem)):
            return self._difference(problem, code, annotated, run)
        return Judgement(SKIPPED)

    def _difference(self, problem: Problem, code: str, annotated: str, run: Callable[[Program], Outcome]) -> Judgement:
        files = {"attempt.py": annotated, "reference.py": problem.solution}
        entry = problem.entry_point
        said = _confined(
            files, ["diffbehavior", f"--per_condition_timeout={SECONDS}", f"reference.{entry}", f"attempt.{entry}"]
        )
        given = re.search(r"Given: \((.*?)\),?\s*$", said, re.M)
        if given is None:
            explored = "No differences found" in said
            return Judgement(PASSED if explored else SKIPPED)
        arguments = ", ".join(
            part.split("=", 1)[-1].strip() if re.match(r"\s*\w+\s*=", part) else part for part in _parts(given[1])
        )
        call = f"{entry}({arguments})"
        told = run(Program(problem.solution, (f"print(repr({call}))",)))
        wanted = told.feedback.rstrip("\n").rsplit("\n", 1)[-1]
        test = f"assert {call} == {wanted}"
        if (
            told.verdict != Verdict.PASSED
            or not literal(wanted)
            or run(Program(code, (test,))).verdict == Verdict.PASSED
        ):
            return Judgement(SKIPPED)  # they differ in exceptions, or on what can not be written down
        return Judgement(FAILED, error="AssertionError", test=test)

    def _contracts(self, code: str) -> Judgement:
        said = _confined(
            {"attempt.py": code},
            ["check", "--analysis_kind=PEP316", f"--per_condition_timeout={SECONDS}", "attempt.py"],
        )
        errors = re.findall(r"attempt\.py:(\d+): error: (.*)", said)
        if not errors:
            return Judgement(PASSED)
        return Judgement(FAILED, "".join(f"attempt.py:{line}: {what}\n" for line, what in errors[:3]), "ContractError")


def _with_annotations(code: str, problem: Problem) -> str:
    """``code`` with the reference's annotations on its entry point; "" where there are none to have."""
    try:
        trees = [ast.parse(text) for text in (code, problem.solution)]
    except SyntaxError:
        return ""
    heads = [
        next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == problem.entry_point), None)
        for tree in trees
    ]
    if None in heads or len(heads[0].args.args) != len(heads[1].args.args):
        return ""
    if not all(argument.annotation for argument in heads[1].args.args) or not heads[1].args.args:
        return ""
    for mine, theirs in zip(heads[0].args.args, heads[1].args.args, strict=True):
        mine.annotation = theirs.annotation
    imports = [ast.unparse(n) for n in trees[1].body if isinstance(n, ast.Import | ast.ImportFrom)]
    return "\n".join([*imports, ast.unparse(trees[0])]) + "\n"


def _parts(text: str) -> list[str]:
    """The arguments of ``text`` as written, split at the commas of the outermost level."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except SyntaxError:
        return [text]
    return [ast.unparse(node) for node in call.args] + [ast.unparse(word.value) for word in call.keywords]


def _confined(files: Mapping[str, str], arguments: list[str]) -> str:
    """What CrossHair says, from inside bubblewrap."""
    with tempfile.TemporaryDirectory(prefix="crosshair-") as place:
        for name, text in files.items():
            (Path(place) / name).write_text(text, encoding="utf-8")
        binds = ["--tmpfs", "/tmp"]  # first, since the interpreter may lie there
        roots = {sys.prefix, sys.base_prefix, sysconfig.get_path("purelib"), "/usr", "/lib", "/lib64", "/bin"}
        for path in sorted(path for path in roots if Path(path).exists()):
            binds += ["--ro-bind", path, path]
        command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", *binds]
        command += ["--proc", "/proc", "--dev", "/dev", "--ro-bind", place, "/tmp/work"]
        command += ["--chdir", "/tmp/work", "--setenv", "PYTHONPATH", "/tmp/work", "--setenv", "PYTHONHASHSEED", "0"]
        command += ["sh", "-c", f'ulimit -v {MEMORY_KB}; ulimit -t {4 * SECONDS}; exec "$0" -m crosshair "$@"']
        command += [sys.executable, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=6 * SECONDS)
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout + done.stderr
