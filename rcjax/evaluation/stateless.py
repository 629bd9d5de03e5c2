"""What the source of a program says about its runs: whether it can carry anything from one call of its functions to
the next, and which modules it may import.

If it can not carry anything, its calls may be made in any order and in several processes, with the same outputs as one
after the other. The answers are plain lists of what is allowed; whatever else a program does means "it may".
"""

from __future__ import annotations

import ast
import functools

# Modules without a state that a program could change through what is allowed below.
MODULES = frozenset(
    ("bisect", "cmath", "collections", "fractions", "heapq", "itertools", "math", "re", "string", "typing")
)
# Modules that load none of those from which evalplus takes something away, nor a package.
PLAIN_MODULES = MODULES | {
    *("abc", "array", "calendar", "copy", "dataclasses", "datetime", "decimal", "enum", "functools", "hashlib", "json"),
    *("numbers", "operator", "random", "statistics", "sys", "time", "types"),
}
# Names that reach what a reader of the source does not see.
_NAMES = frozenset(("__builtins__", "__import__", "compile", "delattr", "eval", "exec", "getattr", "globals", "input"))
_NAMES |= {"open", "setattr", "vars"}
_IMPORTING = frozenset(("__builtins__", "__import__", "__loader__", "__spec__", "builtins", "eval", "exec", "getattr"))
_IMPORTING |= {"globals", "locals", "modules", "vars"}


def is_stateless(source: str) -> bool:
    """True only if no call of a function of ``source`` can change what a later call returns."""
    tree = _parsed(source)
    return tree is not None and all(map(_harmless, tree.body)) and not any(map(_reaches_out, ast.walk(tree)))


def keeps_to_plain_modules(source: str) -> bool:
    """True only if ``source`` imports nothing but ``PLAIN_MODULES``, and names nothing by which it could."""
    tree = _parsed(source)
    return tree is None or not any(map(_may_import_others, ast.walk(tree)))


@functools.lru_cache(maxsize=1)
def _parsed(source: str) -> ast.Module | None:
    """The source's tree, None where there is none: it will not run."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _may_import_others(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name not in PLAIN_MODULES for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return node.module not in PLAIN_MODULES or any(alias.name in _IMPORTING for alias in node.names)
    if isinstance(node, ast.Attribute):
        return node.attr in _IMPORTING or node.attr.startswith("__")
    return isinstance(node, ast.Name) and node.id in _IMPORTING


def _harmless(statement: ast.stmt) -> bool:
    """A statement at the top level: docstring, import, function, or a name for an immutable value."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    if isinstance(statement, ast.FunctionDef):
        defaults = [*statement.args.defaults, *filter(None, statement.args.kw_defaults)]
        return not statement.decorator_list and all(map(_constant, defaults))
    if isinstance(statement, ast.Assign):
        return all(isinstance(target, ast.Name) for target in statement.targets) and _constant(statement.value)
    return isinstance(statement, ast.Import | ast.ImportFrom)


def _constant(value: ast.expr) -> bool:
    if isinstance(value, ast.Tuple):
        return all(map(_constant, value.elts))
    return isinstance(value.operand if isinstance(value, ast.UnaryOp) else value, ast.Constant)


def _reaches_out(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name not in MODULES for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return node.module not in MODULES or any(alias.name == "*" for alias in node.names)
    if isinstance(node, ast.Attribute):
        return not isinstance(node.ctx, ast.Load) or node.attr.startswith("__")
    if isinstance(node, ast.Name):
        return node.id in _NAMES
    return isinstance(node, ast.Global | ast.ClassDef | ast.Await | ast.Match)
