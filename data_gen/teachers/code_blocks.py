"""Code in what a chat model writes: cut out of fences, and put into them."""

from __future__ import annotations

import ast
import dataclasses
import re

from data_gen.formats import language_name

_FENCE = re.compile(
    r"^(?P<mark>```+|~~~+)[ \t]*(?P<tag>[^\s`]*)[^\n]*\n(?P<code>.*?)(?:^(?P=mark)[ \t]*$|\Z)", re.S | re.M
)


@dataclasses.dataclass(frozen=True)
class Said:
    """A reply in parts: the prose in front of its program, the program, the prose behind it."""

    before: str
    code: str
    after: str


def fenced(code: str, language: str = "python") -> str:
    """``code`` as an assistant writes it in answer to a plain question."""
    return f"```{language}\n{code.rstrip()}\n```"


def cut_out(text: str, language: str = "python") -> Said | None:
    """The program in a reply; None if there is none.

    Of several blocks the longest of the language counts, or the longest that names none. A reply without any fence
    counts as a program where it parses as Python that does something.
    """
    blocks = [match for match in _FENCE.finditer(text) if match["code"].strip()]
    named = [block for block in blocks if language_name(block["tag"]) == language]
    plain = [block for block in blocks if not block["tag"]]
    if chosen := named or plain:
        block = max(chosen, key=lambda match: len(match["code"]))
        return Said(_prose(text[: block.start()]), block["code"].rstrip() + "\n", _prose(text[block.end() :]))
    if language == "python" and not blocks:
        try:
            body = ast.parse(text).body
        except (SyntaxError, ValueError, RecursionError):
            return None
        # One word of prose parses too; a definition or an assignment is no prose.
        if any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign | ast.Import) for node in body):
            return Said("", text.strip("\n") + "\n", "")
    return None


def _prose(text: str) -> str:
    return _FENCE.sub("", text).strip()
