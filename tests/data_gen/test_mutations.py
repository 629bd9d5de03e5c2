"""Mutants differ from the reference in one named fault."""

import ast
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen.families import draw_tasks
from data_gen.mutations import mutants, normalize, syntax_slips

TASKS = draw_tasks(80, seed=5)
CASES = {
    "off by one": ("def f(x):\n    return x + 3\n", "def f(x):\n    return x + 4\n"),
    "wrong comparison": ("def f(x):\n    return x > 3\n", "def f(x):\n    return x >= 3\n"),
    "wrong arithmetic": ("def f(x):\n    return x // 3\n", "def f(x):\n    return x % 3\n"),
    "wrong boolean": ("def f(x, y):\n    return x and y\n", "def f(x, y):\n    return x or y\n"),
    "swapped operands": ("def f(x):\n    return x - 3\n", "def f(x):\n    return 3 - x\n"),
    "swapped arguments": ("def f(d):\n    return d.get(1, 2)\n", "def f(d):\n    return d.get(2, 1)\n"),
    "missing return": ("def f(x):\n    return x\n", "def f(x):\n    x\n"),
    "wrong variable": ("def f(x, y):\n    return x\n", "def f(x, y):\n    return y\n"),
    "slice bound": ("def f(x):\n    return x[:2]\n", "def f(x):\n    return x[:3]\n"),
    "bad index": ("def f(x):\n    return x[0]\n", "def f(x):\n    return x[-1]\n"),
    "dropped condition": ("def f(x):\n    return [a for a in x if a]\n", "def f(x):\n    return [a for a in x]\n"),
    "negated condition": (
        "def f(x):\n    if x:\n        return 1\n    return 2\n",
        "def f(x):\n    if not x:\n        return 1\n    return 2\n",
    ),
    "wrong aggregate": ("def f(x):\n    return sum(x)\n", "def f(x):\n    return max(x)\n"),
    "wrong method": ("def f(x):\n    return x.upper()\n", "def f(x):\n    return x.lower()\n"),
    "missing step": ("def f(x):\n    y = sorted(x)\n    return y\n", "def f(x):\n    y = x\n    return y\n"),
    "early return": (
        "def f(x):\n    n = 0\n    for a in x:\n        n += a\n    return n\n",
        "def f(x):\n    n = 0\n    for a in x:\n        n += a\n        return n\n",
    ),
    "infinite loop": (
        "def f(n):\n    while n > 0:\n        n -= 1\n    return n\n",
        "def f(n):\n    while n > 0:\n        pass\n    return n\n",
    ),
    "misspelled name": ("def f(xs):\n    return xs\n", "def f(xs):\n    return x\n"),
}


@pytest.mark.parametrize("operator", CASES)
def test_operator_makes_its_fault(operator):
    before, after = CASES[operator]
    found = {mutant.code: mutant for mutant in mutants(before, random.Random(0))}
    assert after in found, sorted(found)
    assert found[after].operator == operator
    assert found[after].terminates == (operator != "infinite loop")
    changed = [i for i, (a, b) in enumerate(zip(before.split("\n"), after.split("\n"), strict=False), 1) if a != b]
    if operator != "early return":
        assert found[after].line <= changed[0]


@given(st.integers(0, len(TASKS) - 1), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_mutants_parse_differ_and_are_described(index, seed):
    code = TASKS[index].solution
    found = list(mutants(code, random.Random(seed), limit=12))
    assert found
    assert len({mutant.code for mutant in found} | {code}) == len(found) + 1
    for mutant in found:
        ast.parse(mutant.code)
        assert normalize(mutant.code) == mutant.code
        assert mutant.fault
        assert mutant.mend
        assert 1 <= mutant.line <= code.count("\n")
    assert list(mutants(code, random.Random(seed), limit=12)) == found


def test_slips_do_not_parse_and_name_their_line():
    kinds = Counter()
    for task in TASKS:
        for slip in syntax_slips(task.solution):
            with pytest.raises(SyntaxError):
                ast.parse(slip.code)
            before, after = task.solution.split("\n"), slip.code.split("\n")
            assert [i for i, (a, b) in enumerate(zip(before, after, strict=True), 1) if a != b] == [slip.line]
            kinds[slip.mend] += 1
    assert len(kinds) >= 5


def test_code_that_does_not_parse_is_refused():
    with pytest.raises(SyntaxError):
        list(mutants("def f(:\n", random.Random(0)))
