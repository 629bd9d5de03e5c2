"""Small faults put into correct Python: syntax-tree operators and one that slips in the text.

Every operator names its fault in words a reflection can use. Mutants are printed by ``ast.unparse``, so that they
differ from the (equally printed) reference in the fault alone.
"""

from __future__ import annotations

import ast
import dataclasses
import random
from collections.abc import Callable, Iterator

# In-place edits: (parent, field, index or None) says where ``new`` goes; a list as ``new`` replaces one statement.
Place = tuple[ast.AST, str, int | None]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """Code with one fault more than what it was made from.

    Attributes:
      code: the faulty code.
      operator: name of the operator.
      fault: what is wrong, a clause ("the comparison uses > instead of >=").
      mend: what to do, an order ("use >= instead of >").
      line: line of the fault, from 1.
      terminates: False where the fault makes a loop endless (in code with ``while`` others may do so too).
    """

    code: str
    operator: str
    fault: str
    mend: str
    line: int
    terminates: bool = True


@dataclasses.dataclass(frozen=True)
class _Edit:
    operator: str
    place: Place
    new: ast.AST | list[ast.stmt]
    fault: str
    mend: str
    line: int
    terminates: bool = True


COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
ARITHMETIC: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub, ast.Mult),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add, ast.Pow),
    ast.FloorDiv: (ast.Mod, ast.Mult),
    ast.Div: (ast.FloorDiv, ast.Mult),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
}
SYMBOLS: dict[type, str] = {
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Div: "/",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.And: "and",
    ast.Or: "or",
}
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "sum": ("max", "len"),
    "max": ("min",),
    "min": ("max",),
    "len": ("sum", "max"),
    "any": ("all",),
    "all": ("any",),
    "sorted": ("list",),
    "zip": ("list",),
    "abs": ("int",),
    "int": ("ord", "str"),
    "str": ("list",),
    "set": ("list",),
    "range": ("list",),
}
METHODS: dict[str, tuple[str, ...]] = {
    "upper": ("lower",),
    "lower": ("upper",),
    "capitalize": ("upper", "lower"),
    "find": ("count",),
    "count": ("find", "index"),
    "startswith": ("endswith",),
    "endswith": ("startswith",),
    "values": ("keys",),
    "keys": ("values",),
    "items": ("keys", "values"),
    "isdigit": ("isalpha",),
    "isalpha": ("isdigit",),
    "isupper": ("islower",),
    "islower": ("isupper",),
    "append": ("extend",),
    "add": ("update",),
    "split": ("strip",),
}


def _slots(tree: ast.AST) -> Iterator[tuple[ast.AST, Place]]:
    """Every node below ``tree`` with the place it stands in."""
    for name, value in ast.iter_fields(tree):
        if isinstance(value, ast.AST):
            yield value, (tree, name, None)
            yield from _slots(value)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, ast.AST):
                    yield item, (tree, name, index)
                    yield from _slots(item)


def _constants(node: ast.AST, place: Place, names: list[str]) -> Iterator[tuple]:
    if not isinstance(node, ast.Constant) or isinstance(node.value, bool):
        return
    field = place[1]
    if isinstance(node.value, int):
        operator = "slice bound" if isinstance(place[0], (ast.Slice, ast.Subscript)) else "off by one"
        for other in (node.value + 1, node.value - 1):
            if other >= 0 and not (field == "step" and other == 0):
                fault = f"{other} stands where {node.value} belongs"
                yield operator, ast.Constant(other), fault, f"use {node.value} instead of {other}"
    elif isinstance(node.value, str) and len(node.value) == 1 and node.value.isalpha():
        other = "b" if node.value == "a" else chr(ord(node.value) - 1)
        fault = f"the letter is {other!r} but should be {node.value!r}"
        yield "wrong letter", ast.Constant(other), fault, f"use {node.value!r} instead of {other!r}"


def _comparisons(node: ast.AST, place: Place, names: list[str]) -> Iterator[tuple]:
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        return
    old = SYMBOLS[type(node.ops[0])]
    for kind in COMPARISONS[type(node.ops[0])]:
        new = SYMBOLS[kind]
        changed = ast.Compare(node.left, [kind()], node.comparators)
        yield "wrong comparison", changed, f"the comparison uses {new} instead of {old}", f"compare with {old}"


def _arithmetic(node: ast.AST, place: Place, names: list[str]) -> Iterator[tuple]:
    if not isinstance(node, (ast.BinOp, ast.AugAssign)) or type(node.op) not in ARITHMETIC:
        return
    old = SYMBOLS[type(node.op)]
    sign = "=" if isinstance(node, ast.AugAssign) else ""
    for kind in ARITHMETIC[type(node.op)]:
        new = SYMBOLS[kind]
        changed: ast.AST
        if isinstance(node, ast.BinOp):
            changed = ast.BinOp(node.left, kind(), node.right)
        else:
            changed = ast.AugAssign(node.target, kind(), node.value)
        fault = f"{new}{sign} is used instead of {old}{sign}"
        yield "wrong arithmetic", changed, fault, f"use {old}{sign}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Sub, ast.FloorDiv, ast.Mod, ast.Pow, ast.Div)):
        changed = ast.BinOp(node.right, node.op, node.left)
        yield "swapped operands", changed, f"the operands of {old} are swapped", f"write {ast.unparse(node)}"


def _booleans(node: ast.AST, place: Place, names: list[str]) -> Iterator[tuple]:
    if isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        old, new = SYMBOLS[type(node.op)], SYMBOLS[other]
        changed = ast.BoolOp(other(), node.values)
        yield "wrong boolean", changed, f"the conditions are joined by {new} instead of {old}", f"join them by {old}"


def _calls(node: ast.AST, place: Place, names: list[str]) -> Iterator[tuple]:
    if not isinstance(node, ast.Call):
        return
    if len(node.args) >= 2 and ast.dump(node.args[0]) != ast.dump(node.args[1]):
        swapped = [node.args[1], node.args[0], *node.args[2:]]
        name = ast.unparse(node.func)
        changed = ast.Call(node.func, swapped, node.keywords)
        yield "swapped arguments", changed, f"the arguments of {name} are swapped", f"write {ast.unparse(node)}"
    if isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
        old = node.func.id
        for new in FUNCTIONS[old]:
            keep = [] if new in ("len", "list", "sum") else node.keywords
            changed = ast.Call(ast.Name(new), node.args, keep)
            yield "wrong aggregate", changed, f"{new} is called instead of {old}", f"call {old}"
    if isinstance(node.func, ast.Name) and len(node.args) == 1 and node.func.id != "list":
        name = node.func.id
        yield "missing call", node.args[0], f"the call of {name} is missing", f"call {name}"
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        old = node.func.attr
        for new in METHODS[old]:
            changed = ast.Call(ast.Attribute(node.func.value, new), node.args, node.keywords)
            yield "wrong method", changed, f"the method {new} is called instead of {old}", f"call {old}"
    if node.keywords:
        lost = node.keywords[-1]
        changed = ast.Call(node.func, node.args, node.keywords[:-1])
        text = f"{lost.arg}={ast.unparse(lost.value)}" if lost.arg else ast.unparse(lost.value)
        yield "missing argument", changed, f"the argument {text} is missing", f"pass {text}"


def _returns(node: ast.AST, place: Place, names: list[str]) -> Iterator[tuple]:
    if isinstance(node, ast.Return) and node.value is not None:
        yield "missing return", ast.Expr(node.value), "the result is computed but not returned", "return it"


def _variables(node: ast.AST, place: Place, names: list[str]) -> Iterator[tuple]:
    if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load) or node.id not in names:
        return
    grows = isinstance(place[0], ast.Attribute) and place[0].attr in ("append", "extend", "add", "insert")
    for other in names:
        if other != node.id:
            fault = f"{other} is used instead of {node.id}"
            yield "wrong variable", ast.Name(other), fault, f"use {node.id}", not grows
    if len(node.id) > 1:
        typo = node.id[:-1]
        if typo not in names:
            yield "misspelled name", ast.Name(typo), f"{typo} is not defined", f"write {node.id} instead of {typo}"


def _slices(node: ast.AST, place: Place, names: list[str]) -> Iterator[tuple]:
    if not isinstance(node, ast.Subscript):
        return
    text = ast.unparse(node.slice)
    if isinstance(node.slice, ast.Slice):
        yield "missing step", node.value, f"the slice [{text}] is missing", f"slice with [{text}]"
        part = node.slice
        if part.step is None and (part.lower is None) != (part.upper is None):
            turned = ast.Slice(part.upper, part.lower, None)
            fault = f"the slice is [{ast.unparse(turned)}] but should be [{text}]"
            yield "slice bound", ast.Subscript(node.value, turned), fault, f"slice with [{text}]"
    elif isinstance(node.slice, ast.UnaryOp) and isinstance(node.slice.op, ast.USub):
        turned = ast.Constant(0)
        yield "bad index", ast.Subscript(node.value, turned), f"the index is 0 instead of {text}", f"index with {text}"
    elif isinstance(node.slice, ast.Constant) and node.slice.value == 0:
        turned = ast.UnaryOp(ast.USub(), ast.Constant(1))
        yield "bad index", ast.Subscript(node.value, turned), "the index is -1 instead of 0", "index with 0"


def _conditions(node: ast.AST, place: Place, names: list[str]) -> Iterator[tuple]:
    if isinstance(node, ast.comprehension) and node.ifs:
        test = ast.unparse(node.ifs[-1])
        changed = ast.comprehension(node.target, node.iter, node.ifs[:-1], node.is_async)
        yield "dropped condition", changed, f"the condition {test} is missing", f"keep only items with {test}"
        negated = [*node.ifs[:-1], ast.UnaryOp(ast.Not(), node.ifs[-1])]
        changed = ast.comprehension(node.target, node.iter, negated, node.is_async)
        yield "negated condition", changed, "the condition is negated", f"test {test} without not"
    elif isinstance(node, ast.If):
        test = ast.unparse(node.test)
        if not (isinstance(node.body[0], (ast.Break, ast.Continue)) and not node.orelse):
            yield "dropped condition", node.body, f"the test {test} is missing", f"do this only if {test}"
        changed = ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        yield "negated condition", changed, "the condition is negated", f"test {test} without not"
        if node.orelse:
            changed = ast.If(node.test, node.orelse, node.body)
            yield "swapped branches", changed, "the two branches are swapped", f"swap the branches of if {test}"
            changed = ast.If(node.test, node.body, [])
            yield "dropped branch", changed, "the else branch is missing", "add the else branch"


def _steps(node: ast.AST, place: Place, names: list[str]) -> Iterator[tuple]:
    if isinstance(node, (ast.ListComp, ast.GeneratorExp)) and not isinstance(node.elt, (ast.Name, ast.Constant)):
        target = node.generators[0].target
        if isinstance(target, ast.Name):
            text = ast.unparse(node.elt)
            changed = type(node)(ast.Name(target.id), node.generators)
            fault = f"{target.id} is taken as it is instead of {text}"
            yield "missing step", changed, fault, f"take {text} for each {target.id}"
    elif isinstance(node, ast.AugAssign) and not isinstance(place[0], ast.While):  # there: see _loops
        text = ast.unparse(node)
        yield "missing step", [ast.Pass()], f"the step {text} is missing", f"do {text}"
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        used = [n.id for n in ast.walk(node.value) if isinstance(n, ast.Name) and n.id in names]
        if used and not isinstance(node.value, ast.Name) and used[0] != node.targets[0].id:
            name = node.targets[0].id
            changed = ast.Assign(node.targets, ast.Name(used[0]), lineno=node.lineno)
            text = ast.unparse(node.value)
            if len(text) <= 40:
                yield "missing step", changed, f"{name} is just a copy of {used[0]}", f"set {name} to {text}"
            else:
                yield "missing step", changed, f"{name} is just a copy of {used[0]}", f"compute {name} step by step"


def _loops(node: ast.AST, place: Place, names: list[str]) -> Iterator[tuple]:
    if isinstance(node, ast.While):
        changes = [s for s in node.body if isinstance(s, ast.AugAssign)]
        for step in changes:
            rest = [s for s in node.body if s is not step] or [ast.Pass()]
            text = ast.unparse(step)
            changed = ast.While(node.test, rest, node.orelse)
            yield "infinite loop", changed, f"the loop never ends since {text} is missing", f"do {text}", False
    elif isinstance(node, ast.For) and isinstance(node.iter, ast.Name):
        for index, step in enumerate(node.body):
            call = step.value if isinstance(step, ast.Expr) else None
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "append":
                grown = ast.unparse(call.func.value)
                wrong = ast.Expr(ast.Call(ast.Attribute(node.iter, "append"), call.args, []))
                body = [*node.body[:index], wrong, *node.body[index + 1 :]]
                changed = ast.For(node.target, node.iter, body, node.orelse, lineno=node.lineno)
                fault = f"the loop appends to {node.iter.id} while walking over it"
                yield "infinite loop", changed, fault, f"append to {grown}", False


def _early_returns(node: ast.AST, place: Place, names: list[str]) -> Iterator[tuple]:
    """A return behind a loop that slipped into the loop."""
    if isinstance(node, ast.FunctionDef):
        for index in range(len(node.body) - 1):
            loop, after = node.body[index], node.body[index + 1]
            if isinstance(loop, ast.For) and isinstance(after, ast.Return):
                moved = ast.For(loop.target, loop.iter, [*loop.body, after], loop.orelse, lineno=loop.lineno)
                body = [*node.body[:index], moved, *node.body[index + 2 :]]
                changed = ast.FunctionDef(
                    node.name, node.args, body, node.decorator_list, node.returns, lineno=node.lineno
                )
                text = ast.unparse(after)
                yield "early return", changed, "the return stands inside the loop", f"move {text} behind the loop"


OPERATORS: tuple[Callable[[ast.AST, Place, list[str]], Iterator[tuple]], ...] = (
    _constants,
    _comparisons,
    _arithmetic,
    _booleans,
    _calls,
    _returns,
    _variables,
    _slices,
    _conditions,
    _steps,
    _loops,
    _early_returns,
)
# How often an operator is taken when all apply; endless loops cost whole seconds of CPU time each.
WEIGHTS: dict[str, float] = {
    "infinite loop": 0.02,
    "missing return": 0.35,
    "misspelled name": 0.3,
    "wrong variable": 0.5,
    "missing call": 0.5,
    "missing step": 0.7,
    "negated condition": 0.5,
}


# Operators that leave something out; the others put something else in its place.
OMISSIONS = frozenset(
    ("missing call", "missing argument", "missing return", "missing step", "dropped condition", "dropped branch")
)


def _scope(tree: ast.AST) -> list[str]:
    """Parameters and names bound by statements, in order of appearance; those of comprehensions do not count, since
    they are unknown outside."""
    names: list[str] = []
    inner = {
        id(name) for node in ast.walk(tree) if isinstance(node, ast.comprehension) for name in ast.walk(node.target)
    }
    for node in ast.walk(tree):
        name = None
        if isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in inner:
            name = node.id
        if name and name not in names:
            names.append(name)
    return names


def _edits(tree: ast.Module) -> list[_Edit]:
    names = _scope(tree)
    found = []
    for node, place in _slots(tree):
        for operator in OPERATORS:
            for name, new, fault, mend, *rest in operator(node, place, names):
                line = getattr(node, "lineno", None) or getattr(getattr(node, "target", None), "lineno", 1)
                found.append(_Edit(name, place, new, fault, mend, line, *rest))
    return found


def _printed(tree: ast.Module, edit: _Edit) -> str:
    """Code with the edit made; the tree is put back."""
    parent, field, index = edit.place
    if index is None:
        old = getattr(parent, field)
        setattr(parent, field, edit.new)
        try:
            return ast.unparse(tree) + "\n"
        finally:
            setattr(parent, field, old)
    items = getattr(parent, field)
    changed = list(items)
    changed[index : index + 1] = edit.new if isinstance(edit.new, list) else [edit.new]
    setattr(parent, field, changed)
    try:
        return ast.unparse(tree) + "\n"
    finally:
        setattr(parent, field, items)


def normalize(code: str) -> str:
    """``code`` as ``ast.unparse`` prints it: the style that mutants have.

    Raises:
      SyntaxError: the code does not parse.
    """
    return ast.unparse(ast.parse(code)) + "\n"


def syntax_slips(code: str) -> list[Mutant]:
    """Mutants that do not parse: a lost colon, bracket or quote, = for ==, a lost indent."""
    lines = code.splitlines()
    found = []
    for number, line in enumerate(lines):
        changes: list[tuple[str, str, str]] = []
        if line.endswith(":"):
            changes.append((line[:-1], f"the colon at the end of line {number + 1} is missing", "add the colon"))
        for close in ")]}":
            if line.endswith(close):
                changes.append((line[:-1], f"a closing {close} is missing in line {number + 1}", f"add the {close}"))
        if " == " in line:
            changes.append((line.replace(" == ", " = ", 1), "a condition uses = instead of ==", "write =="))
        if "'" in line:
            at = line.rindex("'")
            changes.append((line[:at] + line[at + 1 :], f"a quote is missing in line {number + 1}", "add the quote"))
        if number and line.startswith("    ") and lines[number - 1].endswith(":"):
            changes.append((line[4:], f"line {number + 1} is not indented", "indent it"))
        for text, fault, mend in changes:
            broken = "\n".join([*lines[:number], text, *lines[number + 1 :]]) + "\n"
            try:
                ast.parse(broken)
            except SyntaxError:
                found.append(Mutant(broken, "syntax slip", fault, mend, number + 1))
    return found


def mutants(
    code: str, rng: random.Random, limit: int | None = None, operators: Callable[[str], bool] | None = None
) -> Iterator[Mutant]:
    """Distinct mutants of ``code`` in random order, each with one fault; syntax slips are not among them.

    Args:
      code: code that parses, in the style of ``normalize``.
      rng: decides the order. Operators are drawn by ``WEIGHTS`` (1 where not named), then one of the operator's places.
      limit: stop after so many.
      operators: whether an operator, by its name, takes part; None: all do.

    Raises:
      SyntaxError: the code does not parse.
    """
    tree = ast.parse(code)
    groups: dict[str, list[_Edit]] = {}
    for edit in _edits(tree):
        if operators is None or operators(edit.operator):
            groups.setdefault(edit.operator, []).append(edit)
    for edits in groups.values():
        rng.shuffle(edits)
    seen = {ast.unparse(tree) + "\n"}
    made = 0
    while groups and (limit is None or made < limit):
        names = list(groups)
        name = rng.choices(names, weights=[WEIGHTS.get(n, 1.0) for n in names])[0]
        edit = groups[name].pop()
        if not groups[name]:
            del groups[name]
        text = _printed(tree, edit)
        if text in seen:
            continue
        seen.add(text)
        made += 1
        yield Mutant(text, edit.operator, edit.fault, edit.mend, edit.line, edit.terminates)
