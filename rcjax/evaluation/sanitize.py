"""From what a model wrote to the code that is scored, as the reference's evaluation does it.

The reference opens a ```` ```python ```` fence in the assistant's turn, and cuts the answer at the closing fence or at
a line that begins a test of the model's own (``STOPS``), whichever comes first. A model that opens a fence itself is
read from there on. An answer cut short keeps all its lines here; the reference's script loses the first one.

Nothing behind the cut plays a part, so generation may end as soon as ``is_complete`` says so: the code is the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Ends of the code inside a fence: tests and printing at the top level, below the function.
STOPS = ("\n# Test", "\nif", "\nassert", "\nprint")
# A line of its own. Without the line break behind it, a bare fence that is still being written could be an opening one.
_FENCE = re.compile(r"^```[ \t]*([\w+#.-]*)[ \t\r]*(\n|\Z)", re.MULTILINE)
_HEADS = ("def ", "async def ", "class ", "import ", "from ", "@")


def fenced_code(answer: str, *, opened: bool, stops: Sequence[str] = STOPS) -> str:
    """The code in an answer; the whole answer where it has no fence.

    Args:
      answer: what the model wrote.
      opened: whether the prompt ended in an opened fence, so that the answer begins inside of it.
      stops: strings that end the code.

    Returns:
      The code without blank lines around it. Indentation stays, since a body may stand alone; but not before a
      definition or an import.
    """
    start, end, _ = _span(answer, opened, stops)
    code = answer[start or 0 : end]
    if code.count("```") % 2:  # closed at the end of a line of code
        code = code[: code.rfind("```")]
    code = code.strip("\r\n").rstrip()
    return code.lstrip() if code.lstrip().startswith(_HEADS) else code


def continuation(answer: str, *, opened: bool, stops: Sequence[str]) -> str:
    """An answer that goes on with the prompt's own text, up to the first stop string, or the fence that closes it."""
    _, end, _ = _span(answer, opened, stops) if opened else (0, _first(answer, 0, stops), True)
    return answer[:end]


def is_complete(answer: str, *, opened: bool, stops: Sequence[str] = STOPS) -> bool:
    """Whether ``fenced_code(answer + more, ...)`` is ``fenced_code(answer, ...)`` whatever else is written."""
    return _span(answer, opened, stops)[2]


def has_stopped(answer: str, stops: Sequence[str]) -> bool:
    """Whether a plain continuation holds a stop string."""
    return any(stop in answer for stop in stops)


def _span(answer: str, opened: bool, stops: Sequence[str]) -> tuple[int | None, int | None, bool]:
    """Where the code begins (None: no fence) and ends (None: nowhere yet), and whether that is final."""
    start = 0 if opened else None
    for fence in _FENCE.finditer(answer):
        stop = None if start is None else _first(answer, start, stops)
        if stop is not None and stop < fence.start():
            return start, stop, True
        blank = start is None or not answer[start : fence.start()].strip()
        if fence[1] or blank:  # an opening one
            start = fence.end()
        else:
            return start, fence.start(), fence[2] == "\n"
    stop = None if start is None else _first(answer, start, stops)
    return start, stop, stop is not None


def _first(text: str, start: int, stops: Sequence[str]) -> int | None:
    """Where the first of ``stops`` begins at or behind ``start``."""
    return min((at for at in (text.find(stop, start) for stop in stops) if at >= 0), default=None)
