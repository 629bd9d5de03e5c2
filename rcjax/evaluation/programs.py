"""Solutions in any language made whole, run, and judged: the scorer of tasks of kind "program".

A program passes if it compiles, runs, ends with status 0 and gets to the end of its tests: behind them it prints a
token that is drawn for this run, so leaving early is no pass. Pairs of input and output are compared here, outside of
the program. docs/sandbox.md says what that proves.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, InvalidOperation

from data_gen import languages
from data_gen.sandbox import Limits, Outcome, Program, Sandbox, Stage, Verdict
from rcjax.evaluation.samples import CodeSample
from rcjax.evaluation.tasks import Benchmark, Task

PASS, FAIL, TIMEOUT, ERROR, SKIPPED = "pass", "fail", "timeout", "error", "skipped"
# Of Python programs: 6 s a test, as LiveCodeBench has it; others have ``languages.RUN``.
PYTHON = Limits(cpu_seconds=6.0, wall_seconds=15.0, memory_mb=1024, output_bytes=1 << 20)
UNITTEST = Limits(cpu_seconds=60, wall_seconds=120, memory_mb=8192, file_bytes=64 << 20, open_files=1024, processes=128)
FEEDBACK = 4000  # characters of output in a verdict

# LiveCodeBench puts these before every solution (its testing_util.py).
_LCB_PREFIX = """\
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from builtins import *
from typing import *
import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics
import itertools, functools, operator, io, sys, json
sys.setrecursionlimit(50000)
"""
# `console.assert` only prints; HumanEval-X's own evaluation takes any output for a failure.
_JS_ASSERT = (
    "\nconsole.assert = (held, ...said) => { if (!held) throw new Error(['assertion failed', ...said].join(' ')); };\n"
)
_UNITTEST = """\
import importlib, sys, unittest
token = sys.stdin.read()
sys.stdin.close()
suite = unittest.TestLoader().loadTestsFromTestCase(importlib.import_module("main").TestCases)
result = unittest.TextTestRunner(stream=sys.stderr).run(suite)
if result.wasSuccessful() and result.testsRun:
    print(token, flush=True)
else:
    sys.exit(1)
"""
_HEADERS = {"boost": "libboost-dev", "openssl": "libssl-dev"}
_GO_PACKAGES = ("math", "strings", "fmt", "strconv", "time", "bytes", "regexp", "sort", "math/rand", "crypto/md5")
_RUST_CRATES = ("rand", "regex", "md5")


def completed(task: Task, solution: str) -> str:
    """``solution`` cut where a completion of this task ends, so that its tests fit behind it.

    What follows the prompt is cut at the first stop string. Where the tests begin with the brace that closes the
    solution, braces that the solution has closed itself are taken away.
    """
    if solution.startswith(task.prompt):
        completion = solution[len(task.prompt) :]
        ends = [place for place in (completion.find(stop) for stop in task.stop) if place >= 0]
        solution = task.prompt + completion[: min(ends, default=len(completion))]
    tests = task.data["tests"]
    if task.data["form"] == "main" and tests.lstrip().startswith("}"):
        missing = -open_braces(tests, task.language)
        while open_braces(solution, task.language) < missing and solution.rstrip().endswith("}"):
            solution = solution.rstrip()[:-1]
    return solution


_BRACES = re.compile(r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])'|[{}]""", re.DOTALL)


def open_braces(text: str, language: str) -> int:
    """How many braces are open at the end of a source text; in C-like languages those in strings, characters and
    comments do not count (a shell's ``${name//a/b}`` holds no comment)."""
    found = [part for part in (text if language == "sh" else _BRACES.findall(text)) if part in ("{", "}")]
    return found.count("{") - found.count("}")


def assembled(task: Task, solution: str, token: str) -> str:
    """The source file of a task of form "main" or "tests". ``token`` is printed behind the last test."""
    language, tests = languages.language_of(task.language).name, task.data["tests"]
    code = completed(task, solution)
    if task.data["form"] == "tests":
        if language == "rust":
            code = _without_unused_crates(code, tests)
            return f"{code}\n{tests}"
        return _with_go_imports(task.data["prefix"], code, tests)
    between = _JS_ASSERT if language == "js" and "console.assert" in tests else "\n"
    return task.data["prefix"] + code + between + _with_token(language, tests, token)


def _with_token(language: str, tests: str, token: str) -> str:
    prints, braces = {
        "cpp": (f'__builtin_puts("{token}");', 1),
        "java": (f'System.out.println("{token}");', 2),
        "rust": (f'println!("{token}");', 1),
        "go": (f'println("{token}")', 1),
        "js": (f"console.log('{token}');", 0),
        "ts": (f"console.log('{token}');", 0),
        "php": (f'echo "{token}\\n";', 0),
        "bash": (f"echo {token}", 0),
        "perl": (f'print "{token}\\n";', 0),
        "ruby": (f'puts "{token}"', 0),
        "lua": (f'print("{token}")', 0),
        "r": (f'cat("{token}\\n")', 0),
        "python": (f'print("{token}")', 0),
    }[language]
    end = len(tests)
    for _ in range(braces):
        end = tests.rfind("}", 0, end)
    if braces and end < 0:
        return tests  # no main to print in: it can not pass, and will not compile
    return f"{tests[:end]}\n{prints}\n{tests[end:]}"


def _with_go_imports(head: str, code: str, tests: str) -> str:
    """Go refuses a package that is imported and not used, or the other way round; HumanEval-X's evaluation writes the
    imports anew, from what the code names, and so does this."""
    blocks = re.findall(r'(?ms)^import\s*\(.*?^\s*\)|^import\s+"[^"]+"', code)
    for block in blocks:
        code = code.replace(block, "", 1)
    bare = re.sub(r"//[^\n]*", "", code)
    names = dict.fromkeys([*_GO_PACKAGES, *re.findall(r'"([^"]+)"', "\n".join(blocks))])
    used = [name for name in names if f'"{name}"' not in head and re.search(rf"\b{name.split('/')[-1]}\.", bare)]
    imports = "".join(f'import "{name}"\n' for name in used)
    return f"{head}{imports}{code}\n{tests}"


def _without_unused_crates(code: str, tests: str) -> str:
    """HumanEval-X's Rust declarations name crates that few solutions use; a ``use`` of one that is not used falls."""
    for crate in _RUST_CRATES:
        line = re.search(rf"(?m)^\s*use {crate}\b[^;]*;[ \t]*\n", code)
        names = re.findall(r"\w+", line.group(0))[1:] if line else []
        rest = code.replace(line.group(0), "", 1) + tests if line else ""
        if line and not any(re.search(rf"\b{name}\b", rest) for name in names):
            code = code.replace(line.group(0), "", 1)
    return code


def same_output(printed: str, expected: str) -> bool:
    """Whether two outputs are equal as LiveCodeBench compares them: line by line without outer blanks, and a line of
    numbers by value."""
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (printed, expected))
    if len(ours) != len(theirs):
        return False
    for one, other in zip(ours, theirs, strict=True):
        if one != other:
            try:
                if list(map(Decimal, one.split())) != list(map(Decimal, other.split())):
                    return False
            except InvalidOperation:
                return False
    return True


def lacking(task: Task) -> str:
    """What this machine lacks to run programs of a task; "" if nothing."""
    language = languages.language_of(task.language)
    text = f"{task.prompt}\n{task.canonical}\n{task.data.get('tests', '')}"
    if not language.available:
        return f"{language.name} is not installed here; get it with: {language.install_hint}"
    if language.name == "java" and "org.javatuples" in task.prompt and languages.javatuples() is None:
        return (
            f"javatuples 1.2 is not here; apt-get install libjavatuples-java, or name the jar in {languages.JAVATUPLES}"
        )
    if "github.com/stretchr/testify" in task.data.get("prefix", "") and not languages.testify():
        return "the Go package testify is not here; get it with: apt-get install golang-github-stretchr-testify-dev"
    if language.name == "rust":
        code = _without_unused_crates(task.canonical, task.data["tests"])
        crates = [crate for crate in _RUST_CRATES if re.search(rf"(?m)^\s*use {crate}\b", code)]
        if crates:
            return f"the Rust crates {', '.join(crates)} are not here; rustc alone can not fetch crates"
    if language.name == "cpp":
        for name, package in _HEADERS.items():
            used = f"#include <{name}/" in text.replace("#include<", "#include <")
            if used and not os.path.isdir(f"/usr/include/{name}"):
                return f"the C++ headers {name} are not here; get them with: apt-get install {package}"
    if language.name == "js":
        for name in re.findall(r"""require\(['"]([\w@/-]+)['"]\)""", text):
            if not languages.node_module(name):
                return f"the npm package {name} is not here; get it with: npm install -g {name}"
    packages = [name for name in task.data.get("libs", ()) if importlib.util.find_spec(name.split(".")[0]) is None]
    if packages:
        return f"this Python lacks the packages {', '.join(packages)}; install them with pip"
    return ""


# ---- verdicts


def score_programs(benchmark: Benchmark, samples: Sequence[CodeSample], done: Callable, workers: int | None) -> None:
    """Scorer of tasks of kind "program"; see ``scoring.Scorer``."""
    from rcjax.evaluation.scoring import SampleVerdict

    tasks = [benchmark.tasks[sample.task_id] for sample in samples]
    lacks = {task.id: lacking(task) for task in tasks}
    runnable = [index for index, task in enumerate(tasks) if not lacks[task.id]]
    for index, task in enumerate(tasks):
        if lacks[task.id]:
            done(index, SampleVerdict(SKIPPED, failure=lacks[task.id]))
    if not runnable:
        return
    readable = set(languages.readable_paths({tasks[index].language for index in runnable}))
    if any(tasks[index].data["form"] == "unittest" for index in runnable):
        readable |= set(packages())
    with Sandbox(workers, PYTHON, readable=sorted(readable)) as sandbox, ThreadPoolExecutor(sandbox.workers) as pool:

        def one(index: int) -> tuple[str, str]:
            return verdict_of(tasks[index], samples[index].solution, sandbox)

        for index, (base, failure) in zip(runnable, pool.map(one, runnable), strict=True):
            done(index, SampleVerdict(base, failure=failure[:FEEDBACK]))


def verdict_of(task: Task, solution: str, sandbox: Sandbox) -> tuple[str, str]:
    """("pass", "fail", "timeout" or "error"; what the author may be told)."""
    return _FORMS[task.data["form"]](task, solution, sandbox)


def _run_main(task: Task, solution: str, sandbox: Sandbox) -> tuple[str, str]:
    token = secrets.token_hex(16)
    source = assembled(task, solution, token)
    outcomes = _run(languages.language_of(task.language), source, [""], sandbox)
    base, failure = _told(outcomes[-1])
    if base == PASS and token not in outcomes[-1].stdout.split():
        return FAIL, outcomes[-1].feedback + "Exit: the program ended before the end of its tests\n"
    return base, failure.replace(token, "")


def _run_tests(task: Task, solution: str, sandbox: Sandbox) -> tuple[str, str]:
    language = languages.language_of(task.language)
    outcomes = _run(language, assembled(task, solution, ""), [""], sandbox)
    base, failure = _told(outcomes[-1])
    # Both harnesses say at the end what ran; ending before that is no pass.
    ended = r"(?m)^test result: ok\. [1-9]\d* passed" if language.name == "rust" else r"(?m)^PASS$"
    if base == PASS and not re.search(ended, outcomes[-1].stdout):
        return FAIL, outcomes[-1].feedback + "Exit: the program ended before the end of its tests\n"
    return base, failure


def _run(language: languages.Language, source: str, stdins: Sequence[str], sandbox: Sandbox) -> list[Outcome]:
    stages = languages.stages_of(language, source, stdins)
    return sandbox.run_stages({languages.source_file(language, source): source}, stages)


def _run_asserts(task: Task, solution: str, sandbox: Sandbox) -> tuple[str, str]:
    prefix = _LCB_PREFIX if task.data["set"] == "livecodebench" else ""
    return _told(sandbox.run(Program(prefix + solution, task.data["tests"])))


def _run_stdio(task: Task, solution: str, sandbox: Sandbox) -> tuple[str, str]:
    cases = task.data["cases"]
    if task.language == "python":
        outcomes = (sandbox.run(Program(_LCB_PREFIX + solution, stdin=given)) for given, _ in cases)
    else:
        language = languages.language_of(task.language)
        outcomes = _run(language, solution, [given for given, _ in cases], sandbox)
        if outcomes[0].error == "CompileError":
            return _told(outcomes[0])
        outcomes = outcomes[len(language.commands(language.toolchain, solution)) - 1 :]
    for number, (outcome, (_, expected)) in enumerate(zip(outcomes, cases, strict=False), 1):
        base, failure = _told(outcome)
        if base != PASS:
            return base, f"test {number} of {len(cases)}:\n{failure}"
        if not same_output(outcome.stdout, expected):
            shown = [text[:300] + ("..." if len(text) > 300 else "") for text in (outcome.stdout, expected)]
            return FAIL, f"test {number} of {len(cases)}: printed {shown[0]!r}, expected {shown[1]!r}\n"
    return PASS, ""


def _run_unittest(task: Task, solution: str, sandbox: Sandbox) -> tuple[str, str]:
    token = secrets.token_hex(16)
    files = {"main.py": f"{solution}\n\n{task.data['tests']}\n", "run_tests.py": _UNITTEST}
    interpreter = languages.LANGUAGES["python"].toolchain.programs["python3"]
    environment = {"PYTHONPATH": ":".join(packages()), "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "Agg"}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    stage = Stage((interpreter, "run_tests.py"), UNITTEST, "ExitStatus", environment, token, committed=True)
    outcome = sandbox.run_stages(files, [stage])[-1]
    base, failure = _told(outcome)
    if base == PASS and outcome.stdout.split()[-1:] != [token]:
        return FAIL, outcome.feedback + "Exit: the program ended before the end of its tests\n"
    return base, failure.replace(token, "")


def _told(outcome: Outcome) -> tuple[str, str]:
    """Verdict and failure text of an outcome. A failed assertion in C++ is an abort."""
    if outcome.verdict == Verdict.PASSED:
        return PASS, ""
    if outcome.verdict == Verdict.TIMEOUT:
        return TIMEOUT, outcome.feedback
    wrong = outcome.verdict == Verdict.FAILED and outcome.error != "CompileError"
    return (FAIL if wrong or outcome.error == "SIGABRT" else ERROR), outcome.feedback


def packages() -> list[str]:
    """Directories of the packages that are installed for this Python."""
    return [place for place in sys.path if place.endswith("-packages") and os.path.isdir(place)]


_FORMS: Mapping[str, Callable[[Task, str, Sandbox], tuple[str, str]]] = {
    "main": _run_main,
    "tests": _run_tests,
    "asserts": _run_asserts,
    "stdio": _run_stdio,
    "unittest": _run_unittest,
}
