"""Inputs of MBPP+ that JSON can not hold: which tasks take tuples, sets and complex numbers where the file has lists.

The table is that of evalplus 0.3.1 (``evalplus/data/mbpp.py``, Apache-2.0). ``x`` is one input: the list of arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Input = Sequence[Any]


def _arguments(x: Input) -> Input:
    return [tuple(argument) for argument in x]


def _rows(x: Input) -> Input:
    return [[tuple(row) for row in argument] for argument in x]


def _tuples_of_rows(x: Input) -> Input:
    return [tuple(tuple(row) for row in argument) for argument in x]


def _rows_of_first(x: Input) -> Input:
    return [[tuple(row) for row in x[0]], x[1]]


def _first(x: Input) -> Input:
    return [tuple(x[0]), *x[1:]]


def _second(x: Input) -> Input:
    return [x[0], tuple(x[1])]


def _sets(x: Input) -> Input:
    return [[set(item) if isinstance(item, list) and item else {} for item in x[0]]]


def _float_and_complex(x: Input) -> Input:
    return (float(x[0]), complex(x[1]))


def _complex(x: Input) -> Input:
    return [complex(x[0])]


def _mixed_tuple(x: Input) -> Input:
    return [tuple(tuple(item) if isinstance(item, list) else item for item in x[0])]


def _values(x: Input) -> Input:
    return [{key: tuple(value) for key, value in x[0].items()}, *x[1:]]


def _deep(x: Any) -> Any:
    return tuple(_deep(item) for item in x) if isinstance(x, list) else x


_CONVERSIONS: tuple[tuple[Callable[[Input], Input], tuple[int, ...]], ...] = (
    (
        _arguments,
        (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809),
    ),
    (_rows, (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780)),
    (_rows_of_first, (75, 413, 444, 753)),
    (_second, (106, 750)),
    (_sets, (115,)),
    (_float_and_complex, (124,)),
    (_first, (250, 307, 405, 446, 617, 720, 763, 808)),
    (_complex, (252,)),
    (_tuples_of_rows, (259, 401, 445)),
    (_mixed_tuple, (278,)),
    (_deep, (580, 615, 791)),
    (_values, (722,)),
)
_BY_TASK = {number: convert for convert, numbers in _CONVERSIONS for number in numbers}


def convert_inputs(task_id: str, inputs: Sequence[Input]) -> Sequence[Input]:
    """``inputs`` of the file as the task's function takes them.

    Raises:
      ValueError, TypeError, IndexError, AttributeError: an input has another form than its task's have.
    """
    convert = _BY_TASK.get(int(task_id.split("/")[-1]))
    return inputs if convert is None else [convert(x) for x in inputs]
