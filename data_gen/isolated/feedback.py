"""Text of feedback: short tracebacks of the program alone, without paths and addresses of this machine.

An error travels as a dict: ``type``, ``message``, ``frames`` as (line, function) pairs of the program's own file, and
``syntax`` as (line or None, message) for a program that does not compile.
"""

from __future__ import annotations

import ast
import os
import re
import sys

FILE = "attempt.py"
SHOWN = 60  # characters of a value in "got ..., expected ..."
MESSAGE = 300  # characters of an exception's message
MAX_FRAMES = 5
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")


def scrub(text: str) -> str:
    """``text`` without addresses and paths of this machine."""
    text = ADDRESS.sub("0x...", text)
    for place, name in ((os.getcwd(), "."), (os.path.dirname(os.__file__), "<python>"), (sys.prefix, "<python>")):
        if len(place) > 1:
            text = text.replace(place, name)
    return text


def short(text: str) -> str:
    """A value as "got ..., expected ..." shows it."""
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def compared(got: str, expected: str) -> str:
    """Message of a failed comparison; arguments are results of ``repr``."""
    return scrub(f"got {short(got)}, expected {short(expected)}")


def record(error: BaseException, compare=None) -> dict:
    """What there is to tell of ``error``, for ``written``.

    Args:
      error: the exception.
      compare: (line) -> message, asked about an assertion without one at the program's top level.
    """
    name = type(error).__name__
    if isinstance(error, SyntaxError) and error.filename == FILE:
        return {"type": name, "message": "", "frames": [], "syntax": [error.lineno, str(error.msg)]}
    message = _message(error)
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename == FILE:
            frames.append((trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    if isinstance(error, AssertionError) and not message and frames and frames[-1][1] == "<module>" and compare:
        message = compare(frames[-1][0])
    if len(frames) > MAX_FRAMES:
        frames = [*frames[:2], (0, ""), *frames[-2:]]
    return {"type": name, "message": message, "frames": frames, "syntax": None}


def written(error: dict, lines: list[str]) -> str:
    """The traceback of an error whose program has ``lines``."""
    if error["syntax"]:
        line, message = error["syntax"]
        where = f'  File "{FILE}", line {line}\n'
        text = (lines[line - 1] if line and line <= len(lines) else "").strip()
        return where + (f"    {text}\n" if text else "") + f"{error['type']}: {message}\n"
    shown = []
    for line, name in error["frames"]:
        if not line:
            shown.append("  ...\n")
            continue
        text = lines[line - 1].strip() if line <= len(lines) else ""
        shown.append(f'  File "{FILE}", line {line}, in {name}\n' + (f"    {text}\n" if text else ""))
    last = f"{error['type']}: {error['message']}\n" if error["message"] else f"{error['type']}\n"
    return "Traceback (most recent call last):\n" + "".join(shown) + last


def genuine(error) -> dict:
    """``error`` if it has the form that ``record`` gives; it may come from a program that tampers with its harness.

    Raises:
      ValueError: it has not.
    """
    try:
        frames = [(int(line), str(name)[:200]) for line, name in error["frames"][: MAX_FRAMES + 1]]
        syntax = error["syntax"] and [error["syntax"][0] and int(error["syntax"][0]), str(error["syntax"][1])[:MESSAGE]]
        message = str(error["message"])[: MESSAGE + 3]
        return {"type": str(error["type"])[:200], "message": message, "frames": frames, "syntax": syntax}
    except (TypeError, KeyError, IndexError) as wrong:
        raise ValueError("no record of an error") from wrong


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:
        return ""
    return scrub(text if len(text) <= MESSAGE else text[:MESSAGE] + "...")


def compared_in(source: str, namespace: dict):
    """For ``record``: what the failed ``assert a == b`` on a line compared, both sides computed once more for it."""

    def compare(line: int) -> str:
        try:
            for node in ast.parse(source).body:
                if isinstance(node, ast.Assert) and node.lineno <= line <= (node.end_lineno or node.lineno):
                    test = node.test
                    if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)):
                        return ""
                    sides = []
                    for side in (test.left, test.comparators[0]):
                        sides.append(eval(compile(ast.Expression(side), FILE, "eval"), namespace))
                    if sides[0] == sides[1]:
                        return ""
                    return compared(*(repr(side) for side in sides))
        except BaseException:
            return ""
        return ""

    return compare
