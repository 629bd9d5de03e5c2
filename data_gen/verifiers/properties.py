"""``properties``: the program against the reference on inputs that hypothesis draws and shrinks.

What is trusted runs here: the drawing of inputs, from the reference's annotations or, where it has none, from the
arguments of the given tests. What is not trusted runs in the sandbox: reference and program, one execution an input.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

from data_gen.problems import Problem
from data_gen.sandbox import Outcome, Program, Verdict
from data_gen.teachers import Teacher
from data_gen.verifiers import FAILED, PASSED, SKIPPED, Judgement, VerifierError

EXAMPLES = 40
LONGEST = 400  # characters of an input or a result that may stand in a test


class PropertyCheck:
    """See the module's text. Deterministic: hypothesis draws without a random seed of its own."""

    name = "properties"

    def __init__(self, teachers: Mapping[str, Teacher], seed: int):
        try:
            import hypothesis
        except ImportError as error:
            raise VerifierError("verifier properties needs hypothesis; pip install -r requirements-data.txt") from error
        self._hypothesis = hypothesis

    def verify(self, problem: Problem, code: str, run: Callable[[Program], Outcome]) -> Judgement:
        """SKIPPED without a reference or where no inputs can be drawn."""
        if not problem.solution or problem.language != "python" or not problem.entry_point:
            return Judgement(SKIPPED)
        kinds = argument_kinds(problem)
        if not kinds:
            return Judgement(SKIPPED)
        if code == problem.solution:
            return Judgement(PASSED)
        hypothesis = self._hypothesis
        strategy = hypothesis.strategies.tuples(*(_strategy(kind, hypothesis.strategies) for kind in kinds))
        setup = tuple(line for line in problem.tests if not line.startswith("assert"))
        found: list[str] = []  # the last one is the smallest
        compared = 0

        @hypothesis.settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        )
        @hypothesis.given(strategy)
        def agree(arguments: tuple[Any, ...]) -> None:
            nonlocal compared
            call = f"{problem.entry_point}({', '.join(map(repr, arguments))})"
            told = run(Program(problem.solution, (*setup, f"print(repr({call}))")))
            wanted = told.feedback.rstrip("\n").rsplit("\n", 1)[-1]
            # What the reference can not do, or can not be written down, is no input to judge by.
            hypothesis.assume(told.verdict == Verdict.PASSED and len(call) + len(wanted) <= LONGEST and literal(wanted))
            compared += 1
            test = f"assert {call} == {wanted}"
            if run(Program(code, (*setup, test))).verdict != Verdict.PASSED:
                found.append(test)
                raise AssertionError

        try:
            agree()
        except AssertionError:
            return Judgement(FAILED, error="AssertionError", test=found[-1])
        except hypothesis.errors.HypothesisException:
            if found:
                return Judgement(FAILED, error="AssertionError", test=found[-1])
        return Judgement(PASSED if compared else SKIPPED)


def literal(text: str) -> bool:
    """Whether ``text`` is a Python literal that equals itself."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return value == value


def argument_kinds(problem: Problem) -> list[Any]:
    """A kind for each parameter of the entry point; empty where one can not be told.

    A kind is "int", "float", "str", "bool", "none", ("list", kind), ("set", kind), ("dict", key, value),
    ("tuple", kinds) or ("any", kinds).
    """
    try:
        tree = ast.parse(problem.solution)
    except SyntaxError:
        return []
    heads = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == problem.entry_point]
    if not heads or heads[-1].args.vararg or heads[-1].args.kwonlyargs:
        return []
    parameters = heads[-1].args.args
    calls = _calls(problem)
    kinds = []
    for place, parameter in enumerate(parameters):
        kind = _annotated(parameter.annotation) if parameter.annotation else None
        if kind is None:
            values = [call[place] for call in calls if len(call) > place]
            kind = _merged([_kind_of(value) for value in values])
        if kind is None:
            return []
        kinds.append(kind)
    return kinds


def _calls(problem: Problem) -> list[list[Any]]:
    """Literal arguments of the entry point's calls in the tests."""
    calls = []
    for test in problem.tests:
        try:
            nodes = list(ast.walk(ast.parse(test)))
        except SyntaxError:
            continue
        for node in nodes:
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == problem.entry_point and not node.keywords:
                try:
                    calls.append([ast.literal_eval(argument) for argument in node.args])
                except ValueError:
                    continue
    return calls


def _annotated(node: ast.expr) -> Any:
    """The kind that an annotation says; None where it says none that we know. Nothing of it is evaluated."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return _annotated(ast.parse(node.value, mode="eval").body)
        except SyntaxError:
            return None
    if isinstance(node, ast.Constant) and node.value is None:
        return "none"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _merged([_annotated(node.left), _annotated(node.right)])
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    if name in ("int", "float", "str", "bool"):
        return name
    if isinstance(node, ast.Subscript):
        owner = node.value
        name = (owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")).lower()
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        parts = [_annotated(part) for part in inner]
        if None in parts:
            return None
        if name in ("list", "sequence", "iterable", "collection") and len(parts) == 1:
            return ("list", parts[0])
        if name in ("set", "frozenset") and len(parts) == 1:
            return ("set", parts[0])
        if name in ("dict", "mapping") and len(parts) == 2:
            return ("dict", *parts)
        if name == "tuple":
            return ("tuple", tuple(parts))
        if name == "optional":
            return _merged([parts[0], "none"])
        if name == "union":
            return _merged(parts)
    return None


def _kind_of(value: Any) -> Any:
    if value is None:
        return "none"
    if isinstance(value, bool | int | float | str):
        return type(value).__name__
    if isinstance(value, list | set):
        return (type(value).__name__, _merged([_kind_of(item) for item in value]) or "int")
    if isinstance(value, dict):
        keys, values = (_merged([_kind_of(item) for item in part]) for part in (value.keys(), value.values()))
        return ("dict", keys or "str", values or "int")
    if isinstance(value, tuple):
        return ("tuple", tuple(_kind_of(item) for item in value))
    return None


def _merged(kinds: list[Any]) -> Any:
    """One kind for several; None where one of them is unknown or there are none."""
    different = list(dict.fromkeys(kinds))
    if not different or None in different:
        return None
    return different[0] if len(different) == 1 else ("any", tuple(different))


def _strategy(kind: Any, st: Any) -> Any:
    # Small values: they find most faults, and a counterexample must be readable.
    if isinstance(kind, str):
        return {
            "int": st.integers(-100, 100),
            "float": st.integers(-400, 400).map(lambda n: n / 4),  # exact in binary, so equality is fair
            "str": st.text("abcxyzABZ019 _-.", max_size=12),
            "bool": st.booleans(),
            "none": st.none(),
        }[kind]
    if kind[0] == "list":
        return st.lists(_strategy(kind[1], st), max_size=6)
    if kind[0] == "set":
        return st.sets(_strategy(kind[1], st), max_size=6)
    if kind[0] == "dict":
        return st.dictionaries(_strategy(kind[1], st), _strategy(kind[2], st), max_size=4)
    if kind[0] == "tuple":
        return st.tuples(*(_strategy(part, st) for part in kind[1]))
    return st.one_of(*(_strategy(part, st) for part in kind[1]))
