"""Judges tests in a process that the program can not reach, from values that the program is asked for.

``assert solve(3) == [1, 2]`` becomes a question ("what is ``solve(3)``?") and a comparison that is made here, with the
answer as plain data and an expected value that the program's process never sees. So a program can not pass such a
test but by the right value: it may leave early, write to any descriptor, replace builtins, search its own memory or
speak the protocol itself.

The same holds for every ``assert`` that is made of calls of the program, literals, operators and the builtins and
modules named below. What is not (statements that contain assertions, values of classes of the program's own that are
compared among themselves) is run in the program's process; docs/sandbox.md says what holds then.
"""

from __future__ import annotations

import ast
import base64
import builtins
import functools
import importlib
import random
import secrets
from collections.abc import Callable

from data_gen.isolated import feedback, messages

# Pure functions, safe to call here on plain data. None of them can reach a file or run code of its arguments.
BUILTINS = frozenset(
    ["abs", "all", "any", "bool", "bytes", "chr", "complex", "dict", "divmod", "enumerate", "float", "frozenset"]
    + ["hash", "int", "isinstance", "len", "list", "max", "min", "ord", "pow", "range", "repr", "reversed", "round"]
    + ["set", "sorted", "str", "sum", "tuple", "type", "zip"]
)
# Names among them that a program may not take over where they decide a test: `isinstance = lambda *a: True`.
PREDICATES = frozenset(["abs", "all", "any", "bool", "isinstance", "len", "round", "type"])
ELSEWHERE = frozenset(["range", "bytes", "pow", "hash", "repr", "str"])  # of values of the program: not here
MODULES = frozenset(("math", "cmath"))
_SAFE = {name: getattr(builtins, name) for name in BUILTINS}
_PLAIN_NODES = (
    ast.Constant,
    ast.List,
    ast.Tuple,
    ast.Set,
    ast.Dict,
    ast.UnaryOp,
    ast.BinOp,
    ast.Compare,
    ast.BoolOp,
    ast.IfExp,
    ast.Subscript,
    ast.Slice,
    ast.Starred,
    ast.keyword,
    ast.expr_context,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.boolop,
)
_MOST_WORK = 4096  # largest exponent or shift of a constant that is computed here


class Step:
    """One statement of the tests: something to run there, or an assertion to judge here."""

    def __init__(self, node: ast.stmt, source: str):
        self.line = node.lineno
        self.source = ast.get_source_segment(source, node, padded=True) or ""
        self.questions: list[tuple[str, int]] | None = None
        self.test: ast.Expression | None = None
        self.known: dict[str, object] = {}
        self.message = ""


@functools.lru_cache(maxsize=256)
def steps(tests: str, taken: frozenset[str]) -> tuple[Step, ...] | None:
    """The steps of ``tests``, None if they do not parse by themselves. Lines count from the first of ``tests``.

    Args:
      tests: source text.
      taken: builtins that the program gives another meaning.
    """
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    known: dict[str, object] = {}
    rebound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    rebound |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    found = []
    for node in tree.body:
        step = Step(node, tests)
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name in MODULES:
                    known[name.asname or name.name] = importlib.import_module(name.name)
        safe = {name for name in BUILTINS if name not in taken and name not in rebound}
        if isinstance(node, ast.Assert) and (node.msg is None or isinstance(node.msg, ast.Constant)):
            splitter = _Splitter(safe | (known.keys() - rebound), tests)
            step.test = ast.fix_missing_locations(ast.Expression(splitter.split(node.test)))
            step.questions = splitter.questions
            step.message = "" if node.msg is None else str(node.msg.value)
            step.known = dict(known)
        found.append(step)
    return tuple(found)


def rebinds(code: str) -> frozenset[str]:
    """Builtins that a test may well mean the program's own function by: ``def sum(a, b)`` at its top level."""
    names = {line[4:].split("(")[0].strip() for line in code.splitlines() if line.startswith("def ")}
    return frozenset(names & (BUILTINS - PREDICATES))


class _Splitter:
    """Cuts an expression into what is computed here and what the program is asked for."""

    def __init__(self, safe: set[str], source: str):
        self.safe, self.source = safe, source
        self.questions: list[tuple[str, int]] = []

    def pure(self, node: ast.AST) -> bool:
        """Whether no part of the program takes part in it."""
        if isinstance(node, ast.Name):
            return node.id in self.safe
        if isinstance(node, ast.Attribute):
            return isinstance(node.value, ast.Name) and node.value.id in self.safe and node.value.id in MODULES
        if isinstance(node, ast.Call):
            return isinstance(node.func, ast.Name | ast.Attribute) and all(map(self.pure, ast.iter_child_nodes(node)))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift) and not _small(node.right):
            return False
        return isinstance(node, _PLAIN_NODES) and all(map(self.pure, ast.iter_child_nodes(node)))

    def split(self, node: ast.expr) -> ast.expr:
        """``node`` with every part that needs the program replaced by ``__value<number>``."""
        if self.pure(node):
            return node
        inner = isinstance(node, ast.Compare | ast.UnaryOp | ast.BinOp | ast.List | ast.Tuple | ast.Dict)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift | ast.Mod | ast.Mult):
            inner = False  # work without bound, and text formatting, are not done here
        call = isinstance(node, ast.Call) and self.pure(node.func) and not node.keywords
        if call and isinstance(node.func, ast.Name) and node.func.id in ELSEWHERE:
            call = False
        # `a and b` asks for b only if a holds: both are asked for here, so nothing may be undone by that.
        if isinstance(node, ast.BoolOp):
            inner = not any(isinstance(part, ast.NamedExpr) for part in ast.walk(node))
        if call:
            return ast.Call(node.func, [self.split(part) for part in node.args], [])
        if inner:
            parts = {
                field: [self.split(part) if isinstance(part, ast.expr) else part for part in value]
                if isinstance(value, list)
                else self.split(value)
                if isinstance(value, ast.expr)
                else value
                for field, value in ast.iter_fields(node)
            }
            return type(node)(**parts)
        text = ast.get_source_segment(self.source, node) or ast.unparse(node)
        self.questions.append((text, node.lineno))
        return ast.Name(f"__value{len(self.questions) - 1}", ast.Load())


def _small(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and abs(node.value) <= _MOST_WORK


class Failed(Exception):
    """A test failed; ``error`` as ``feedback.record`` gives it."""

    def __init__(self, error: dict):
        super().__init__(error["type"])
        self.error = error


class Tampered(Exception):
    """An answer that no honest child gives."""


Ask = Callable[[dict], dict]  # a question to the program's process; raises what the supervisor raises if it ended


def examine(step: Step, first: int, ask: Ask) -> None:
    """Takes one step of tests that begin behind ``first`` lines of the file.

    Raises:
      Failed: the program fails it.
      Tampered: the answers make no sense.
    """
    if step.questions is None:
        token = secrets.token_hex(16)
        answer = checked(ask({"run": step.source, "line": step.line + first, "token": token}))
        if answer.get("done") != token:
            raise Tampered
        return
    values = _values([(source, line + first) for source, line in step.questions], ask) if step.questions else []
    test = _Test(step, first, values, ask)
    if not test.holds():
        message = step.message or test.message()
        frames = [(step.line + first, "<module>")]
        raise Failed({"type": "AssertionError", "message": message, "frames": frames, "syntax": None})


def _values(questions: list[tuple[str, int]], ask: Ask) -> list[_Kept]:
    answer = checked(ask({"eval": questions}))
    first, sent = answer.get("first"), answer.get("values")
    if not isinstance(first, int) or not isinstance(sent, list) or len(sent) != len(questions):
        raise Tampered
    return [_Kept(first + number, data) for number, data in enumerate(sent)]


class _Kept:
    """A value of the program: plain, or only a number by which its process knows it."""

    def __init__(self, number: int, data):
        self.number = number
        try:
            self.value = messages.load_plain(base64.b64decode(data))
            self.plain = True
        except (messages.NotPlain, ValueError, TypeError):
            self.value, self.plain = None, False


class _Test:
    """One assertion whose questions are answered."""

    def __init__(self, step: Step, first: int, values: list[_Kept], ask: Ask):
        self.step, self.line, self.values, self.ask = step, step.line + first, values, ask
        self.test = step.test.body
        self.sides: list[_Kept | None] = [None, None]  # of a comparison, where the program computed them

    def holds(self) -> bool:
        """Whether the assertion is true."""
        test = self.test
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            sides = [self.side(number, part) for number, part in enumerate((test.left, test.comparators[0]))]
            if all(plain for plain, _ in sides):
                comparison = ast.Compare(ast.Name("one", ast.Load()), test.ops, [ast.Name("other", ast.Load())])
                return bool(self.compute(comparison, one=sides[0][1], other=sides[1][1]))
            if isinstance(test.ops[0], ast.Eq) and any(plain for plain, _ in sides):
                object_first = not sides[0][0]
                kept, expected = self.sides[0 if object_first else 1], sides[1 if object_first else 0][1]
                return _equals(kept, expected, self.ask)
        elif self.plain(test):
            return bool(self.compute(test))
        # Objects of the program among themselves: the whole is computed there, and only whether it is true comes back.
        whole = self.there(test)
        return bool(whole.value) if whole.plain else checked(self.ask({"true": whole.number})).get("true") is True

    def side(self, number: int, part: ast.expr) -> tuple[bool, object]:
        """(whether it is plain data, its value) of one side of a comparison."""
        if isinstance(part, ast.Name) and part.id.startswith("__value"):
            self.sides[number] = self.values[int(part.id[7:])]
        elif not self.plain(part):
            self.sides[number] = self.there(part)
        kept = self.sides[number]
        return (True, self.compute(part)) if kept is None else (kept.plain, kept.value)

    def plain(self, part: ast.expr) -> bool:
        """Whether everything in it is plain data or computed from that here."""
        names = [node.id for node in ast.walk(part) if isinstance(node, ast.Name) and node.id.startswith("__value")]
        return all(self.values[int(name[7:])].plain for name in names)

    def compute(self, expression: ast.expr, **more):
        """The value of an expression of plain data, computed here."""
        names = {f"__value{number}": kept.value for number, kept in enumerate(self.values) if kept.plain}
        scope = {"__builtins__": _SAFE} | self.step.known | names | more
        try:
            whole = ast.fix_missing_locations(ast.Expression(expression))
            return eval(compile(whole, feedback.FILE, "eval"), scope)
        except Exception as error:
            record = feedback.record(error)
            raise Failed(record | {"frames": [(self.line, "<module>")]}) from error

    def there(self, part: ast.expr) -> _Kept:
        """The value of an expression, computed by the program's process from what it keeps."""
        whole = ast.parse(ast.unparse(part), mode="eval")
        for node in ast.walk(whole):
            if isinstance(node, ast.Name) and node.id.startswith("__value"):
                node.id = f"__kept{self.values[int(node.id[7:])].number}"
        return _values([(ast.unparse(whole), self.line)], self.ask)[0]

    def message(self) -> str:
        """What a failed ``assert a == b`` compared."""
        test = self.test
        if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)):
            return ""
        shown = []
        for part, kept in zip((test.left, test.comparators[0]), self.sides, strict=True):
            text = repr(self.compute(part)) if kept is None else self.ask({"repr": kept.number}).get("repr")
            if not isinstance(text, str):
                return ""
            shown.append(text)
        return feedback.compared(*shown)


def _equals(kept: _Kept, expected, ask: Ask) -> bool:
    """Whether an object of the program equals plain data. It is asked about the expected value and about others like
    it, in an order that it can not know: an object that equals everything equals too much."""
    try:
        expected_bytes = messages.dump_plain(expected)
        messages.load_plain(expected_bytes)
    except Exception:
        return False
    others = [expected_bytes] + [messages.dump_plain(other) for other in decoys(expected)]
    order = list(range(len(others)))
    secrets.SystemRandom().shuffle(order)
    question = {"equal": kept.number, "others": [base64.b64encode(others[number]).decode() for number in order]}
    answer = checked(ask(question)).get("equal")
    return answer == [number == 0 for number in order]


def decoys(value, number: int = 3) -> list:
    """Plain values of the same form that differ from ``value``."""
    draw = random.Random(secrets.randbits(64))
    found: list = []
    for _ in range(20 * number):
        other = _varied(value, draw)
        try:
            if other != value and other not in found:
                found.append(other)
        except Exception:
            continue
        if len(found) == number:
            break
    return found


def _varied(value, draw: random.Random):
    if isinstance(value, bool):
        return draw.choice([not value, None, 2])
    if isinstance(value, int | float):
        return value + draw.choice([-3, -2, -1, 1, 2, 3])
    if isinstance(value, str):
        place = draw.randrange(len(value) + 1)
        return value[:place] + draw.choice("abcxyz019") + value[place + draw.randrange(2) :]
    if isinstance(value, list | tuple) and value:
        place = draw.randrange(len(value))
        changed = [*value[:place], _varied(value[place], draw), *value[place + 1 :]]
        return type(value)(changed if draw.random() < 0.7 else [*value, draw.randrange(100)])
    if isinstance(value, dict) and value:
        key = draw.choice(list(value))
        return value | {key: _varied(value[key], draw)}
    if isinstance(value, set | frozenset):
        return value | {draw.randrange(1000)}
    return draw.choice([[draw.randrange(100)], draw.randrange(100), "x", (draw.randrange(9),)])


def checked(answer: dict) -> dict:
    if "error" not in answer:
        return answer
    try:
        raise Failed(feedback.genuine(answer["error"]))
    except ValueError as wrong:
        raise Tampered from wrong
