"""Verifiers: each finds what it is for, says nothing where it has nothing to go by, and combines with the others."""

import dataclasses
import json
import random
import shutil
from collections import Counter

import pytest

from data_gen.checking import Runner, check
from data_gen.problems import Problem
from data_gen.reflection import reflect
from data_gen.sandbox import Limits, Sandbox
from data_gen.teachers import Attempt
from data_gen.verifiers import VerifierError
from data_gen.verifiers.choice import VERIFIERS, make_verifiers
from data_gen.verifiers.properties import argument_kinds, literal

LARGEST = "def f(xs: list[int]) -> int:\n    return max(xs) if xs else 0\n"
FROM_ZERO = "def f(xs):\n    best = 0\n    for x in xs:\n        if x > best:\n            best = x\n    return best\n"
PROBLEM = Problem("p", "p", "x", ("The largest.",), LARGEST, "f", ("assert f([1, 3, 2]) == 3", "assert f([]) == 0"))


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(1, Limits(cpu_seconds=1.0)) as pool:
        yield pool


@pytest.fixture
def run(sandbox):
    return Runner(sandbox, "python")


class Corrects:
    """Goes from one program to the next; writes one test."""

    name, needs_reference, tries = "corrects", False, 1

    def __init__(self, *codes, tests=()):
        self.codes, self.tests = codes, tests

    def attempt(self, problem, rng, rounds):
        return Attempt("try", self.codes[0], memo=0)

    def reflect_and_correct(self, problem, attempt, outcome, rng):
        return Attempt("mend", self.codes[attempt.memo + 1], memo=attempt.memo + 1)

    def write_tests(self, problem, rng):
        return self.tests

    def re_answer(self, problem, attempt, rng):
        return f"```python\n{attempt.code}```"


def test_properties_find_and_shrink_what_the_tests_miss(run):
    pytest.importorskip("hypothesis")
    (verifier,) = make_verifiers(["properties"], {}, 0)
    judgement = verifier.verify(PROBLEM, FROM_ZERO, run)
    assert judgement.verdict == "failed"
    assert judgement.test == "assert f([-1]) == -1"  # the smallest there is
    assert verifier.verify(PROBLEM, FROM_ZERO, run) == judgement
    right = "def f(xs):\n    return sorted(xs)[-1] if xs else 0\n"
    assert verifier.verify(PROBLEM, right, run).verdict == "passed"
    assert verifier.verify(dataclasses.replace(PROBLEM, solution=""), right, run).verdict == "skipped"
    raising = dataclasses.replace(PROBLEM, solution="def f(xs: list[int]):\n    raise ValueError\n")
    assert verifier.verify(raising, right, run).verdict == "skipped"  # no input that the reference can do


def test_kinds_come_from_annotations_or_from_the_tests():
    def kinds(solution, *tests):
        return argument_kinds(Problem("p", "p", "x", ("p",), solution, "f", tests))

    annotated = "def f(a: int, b: 'list[str]', c: dict[str, float], d: Optional[bool], e: int | None): pass"
    assert kinds(annotated) == ["int", ("list", "str"), ("dict", "str", "float"), ("any", ("bool", "none")),
                                ("any", ("int", "none"))]  # fmt: skip
    assert kinds("def f(a, b): pass", "assert f([1], (2, 'x')) == 3") == [("list", "int"), ("tuple", ("int", "str"))]
    assert kinds("def f(a): pass", "assert f(g()) == 3") == []
    assert kinds("def f(*a): pass", "assert f(1) == 3") == []
    assert kinds("def f(a: Node): pass") == []
    assert literal("[1, 'x']")
    assert not literal("<object>")
    assert not literal("1e999 - 1e999")


def test_typing_names_the_line_and_the_types(run):
    pytest.importorskip("mypy")
    (verifier,) = make_verifiers(["typing"], {}, 0)
    judgement = verifier.verify(PROBLEM, "def f(xs: list[int]) -> str:\n    return len(xs)\n", run)
    assert judgement.verdict == "failed"
    assert judgement.feedback.startswith(
        'attempt.py:2: error: Incompatible return value type (got "int", expected "str")'
    )
    assert verifier.verify(PROBLEM, LARGEST, run).verdict == "passed"
    assert verifier.verify(PROBLEM, FROM_ZERO, run).verdict == "skipped"  # no annotation, nothing to contradict


def test_crosshair_finds_a_difference_and_a_broken_contract(run):
    pytest.importorskip("crosshair")
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed; apt-get install bubblewrap to run this")
    (verifier,) = make_verifiers(["crosshair"], {}, 0)
    judgement = verifier.verify(PROBLEM, FROM_ZERO, run)
    assert judgement.verdict == "failed"
    assert judgement.test.startswith("assert f([-")
    contract = 'def f(x: int) -> int:\n    """\n    post: _ >= x\n    """\n    return x * x if x != 3 else 2\n'
    judgement = verifier.verify(dataclasses.replace(PROBLEM, solution=""), contract, run)
    assert judgement.verdict == "failed"
    assert judgement.feedback.startswith("attempt.py:3: false when calling f(3)")
    assert verifier.verify(dataclasses.replace(PROBLEM, solution=""), FROM_ZERO, run).verdict == "skipped"


def test_crosshair_can_not_reach_outside(tmp_path):
    pytest.importorskip("crosshair")
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed; apt-get install bubblewrap to run this")
    from data_gen.verifiers.crosshair import _confined

    target = tmp_path / "secret"
    target.write_text("secret")
    code = f'import os\nprint("SEEN", os.path.exists({str(target)!r}), os.path.exists("/etc/shadow"))\n'
    code += (
        "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 22), 1)\nexcept OSError as e:\n    print(e)\n"
    )
    said = _confined({"attempt.py": code}, ["check", "attempt.py"])
    assert "SEEN True" not in said
    assert "True" not in said
    assert target.read_text() == "secret"


def test_tests_of_the_teacher_count_only_where_the_reference_passes_them(run):
    teacher = Corrects(FROM_ZERO, tests=("assert f([-5]) == 99", "assert f([-5]) == -5"))
    (verifier,) = make_verifiers(["written"], {"t": teacher}, 0)
    judgement = verifier.verify(PROBLEM, FROM_ZERO, run)
    assert (judgement.verdict, judgement.test) == ("failed", "assert f([-5]) == -5")
    assert verifier.verify(PROBLEM, LARGEST, run).verdict == "passed"
    (silent,) = make_verifiers(["written"], {"t": Corrects(FROM_ZERO)}, 0)
    assert silent.verify(PROBLEM, FROM_ZERO, run).verdict == "skipped"


def test_verifiers_make_rounds_of_their_own_with_real_feedback(run):
    pytest.importorskip("hypothesis")
    pytest.importorskip("mypy")
    mistyped = "def f(xs: list[int]) -> str:\n    return max(xs) if xs else 0\n"
    teacher = Corrects(FROM_ZERO, mistyped, LARGEST)
    verifiers = make_verifiers(["properties", "typing"], {}, 0)
    trace = reflect(PROBLEM, teacher, run, random.Random(0), rounds=3, shown=1, counts=Counter(), verifiers=verifiers)
    first, second, last = trace.rounds
    assert first.outcome.feedback.endswith("AssertionError: got 0, expected -1\n")
    assert first.tests[-1] == "assert f([-1]) == -1"
    assert second.outcome.feedback.startswith("attempt.py:2: error: Incompatible return value type")
    assert second.tests == first.tests  # a counterexample stays
    assert trace.verdicts == {"tests": "passed", "properties": "passed", "typing": "passed"}
    assert last.outcome.feedback == ""
    assert json.dumps(trace.verdicts)


def test_a_failing_test_that_was_not_shown_is_shown_from_then_on(run):
    wrong = "def f(xs):\n    return max(xs)\n"
    shown = PROBLEM.tests[:1]
    checked = check(PROBLEM, wrong, shown, run, ())
    assert not checked.passed
    assert checked.tests == PROBLEM.tests
    assert "ValueError" in checked.outcome.feedback
    hidden = dataclasses.replace(PROBLEM, tests=shown, hidden=PROBLEM.tests[1:])
    assert not check(hidden, wrong, shown, run, ()).shown


@pytest.mark.parametrize(
    ("name", "module", "package"), [("typing", "mypy", "mypy"), ("crosshair", "crosshair", "cross")]
)
def test_a_verifier_that_is_not_installed_says_how_to_mend_it(monkeypatch, name, module, package):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda found, *rest: None if found == module else real(found, *rest)
    )
    with pytest.raises(VerifierError, match=f"verifier {name} needs {package}.*pip install -r requirements-data.txt"):
        VERIFIERS[name]({}, 0)
