"""When an output counts as right: the rules of evalplus 0.3.1 (``evalplus/eval/__init__.py``, Apache-2.0).

Used by the judge on decoded values, and by a child on an object of a class of its program's own.
"""

from __future__ import annotations

import math
import sys

RELATIVE = 1e-7
FLOATS_ATOL = 1e-6  # where a task gives no tolerance and its output is made of floats

# Rule of a task, by the family of its benchmark and the name of its function.
_MBPP = {
    "are_equivalent": "any",
    "sum_div": "or_zero",
    "surface_Area": "pyramid",
    "digit_distance_nums": "digits",
    **dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), "not_none"),
    **dict.fromkeys(
        (
            "similar_elements",
            "find_char_long",
            "common_in_nested_lists",
            "extract_singly",
            "larg_nnum",
            "intersection_array",
            "find_dissimilar",
            "Diff",
        ),
        "set",
    ),
}


def rule_of(family: str, entry_point: str) -> str:
    """ "equal", or the special rule of a task."""
    if family == "mbpp":
        return _MBPP.get(entry_point, "equal")
    return "root" if (family, entry_point) == ("humaneval", "find_zero") else "equal"


def is_floats(value) -> bool:
    """Whether it is a float, or a list or tuple of floats, or an array of them."""
    if isinstance(value, float):
        return True
    if isinstance(value, list | tuple) and value:
        return all(isinstance(item, float) for item in value)
    numpy = sys.modules.get("numpy")  # a process that has not loaded it has none of its values
    if numpy is not None and isinstance(value, numpy.ndarray):
        return value.dtype in (numpy.float64, numpy.float32)
    return False


def judge(rule: str, arguments, out, expected, atol: float) -> tuple[bool, float]:
    """Whether ``out`` counts as right, and the tolerance for the next output of the task: one that becomes 1e-6 at an
    output of floats stays so."""
    if rule == "root":
        return bool(abs(_polynomial(*arguments, out)) <= atol), atol
    exact = out == expected
    if rule == "any":
        exact = exact or True
    elif rule == "or_zero":
        exact = exact or out == 0
    elif rule == "pyramid":
        exact = exact or abs(out - _pyramid(*arguments)) <= atol
    elif rule == "digits":
        exact = exact or out == _digits(*arguments)
    elif rule == "set":
        exact = set(out) == set(expected)
    elif rule == "not_none":
        exact = out == expected if isinstance(out, bool) else expected == (out is not None)
    if atol == 0 and is_floats(expected):
        atol = FLOATS_ATOL
    if exact or atol == 0:
        return bool(exact), atol
    if type(out) is not type(expected) or (isinstance(expected, list | tuple) and len(out) != len(expected)):
        return False, atol
    import numpy

    return bool(numpy.allclose(out, expected, rtol=RELATIVE, atol=atol)), atol


def _polynomial(coefficients, x) -> float:
    """HumanEval/32: the output must be a root."""
    return sum(coefficient * math.pow(x, power) for power, coefficient in enumerate(coefficients))


def _pyramid(base_edge, height) -> int:
    """Mbpp/581 with the height taken as that of the pyramid, not of its sides."""
    slant = math.sqrt((base_edge / 2) ** 2 + height**2)
    return round(base_edge**2 + 4 * (base_edge * slant) / 2)


def _digits(first, second) -> int:
    """Mbpp/558 with the shorter number filled up with zeros."""
    one, two = str(first), str(second)
    width = max(len(one), len(two))
    return sum(abs(int(a) - int(b)) for a, b in zip(one.zfill(width), two.zfill(width), strict=True))
