"""Prompt texts from files, so that a user can replace them (``--prompts=DIR``).

Each file holds alternatives, separated by lines of ``---``. Files that a directory of the user's lacks are taken from
``data_gen/prompts``. Placeholders in braces: see ``FILES`` and ``CHAT_FILES``.
"""

from __future__ import annotations

import dataclasses
import random
import re
from pathlib import Path

PACKAGED = Path(__file__).with_name("prompts")
# file -> placeholders that it may hold; the first one must be in every alternative
FILES: dict[str, tuple[str, ...]] = {
    "problem": ("problem",),  # the one-off question, of instruction examples and behind a reflection alike
    "reflection": ("problem",),  # the question that a reflection sequence answers
    "thought": (),  # opens a reflection sequence
    "correction": ("mend", "seen", "Seen", "fault"),  # between feedback and corrected code
}
# What is said to a teacher that is a model.
CHAT_FILES: dict[str, tuple[str, ...]] = {
    "chat_system": ("language",),
    "chat_attempt": ("problem", "tests", "language"),  # the first attempt at a problem with tests
    "chat_attempt_untested": ("problem", "language"),  # at one without: code with assertions
    "chat_correction": ("feedback", "language"),  # what running the attempt showed
    "chat_answer": ("problem", "language"),  # the one-off answer, when the attempt has come right
    "chat_tests": ("problem", "entry_point", "language"),  # asserts for a problem
    "chat_repair": ("language",),  # after a reply without a program
}
REQUIRED = {
    "problem": "problem",
    "reflection": "problem",
    "chat_attempt": "problem",
    "chat_attempt_untested": "problem",
    "chat_correction": "feedback",
    "chat_tests": "problem",
}


class TemplateError(ValueError):
    """A prompt file that can not be used; the message names it."""


@dataclasses.dataclass(frozen=True)
class Templates:
    """Alternatives by file name."""

    texts: dict[str, tuple[str, ...]]

    def fill(self, name: str, rng: random.Random, /, **values: str) -> str:
        """A random alternative of ``name`` with its placeholders filled."""
        text = rng.choice(self.texts[name])
        return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), text)

    def of(self, chat: bool) -> dict[str, tuple[str, ...]]:
        """The texts that a build follows from: those said to a model only where one is asked."""
        return {name: text for name, text in self.texts.items() if chat or name not in CHAT_FILES}


def load_templates(directory: str | Path | None = None) -> Templates:
    """The packaged texts, with those files replaced that ``directory`` holds.

    Raises:
      TemplateError: the directory does not exist, a file is empty or has an unknown placeholder.
    """
    if directory is not None and not Path(directory).is_dir():
        raise TemplateError(f"--prompts: directory {directory} does not exist")
    texts = {}
    for name, placeholders in (FILES | CHAT_FILES).items():
        path = PACKAGED / f"{name}.txt"
        if directory is not None and (Path(directory) / f"{name}.txt").exists():
            path = Path(directory) / f"{name}.txt"
        parts = [part.strip("\n") for part in re.split(r"(?m)^---$", path.read_text(encoding="utf-8"))]
        parts = [part for part in parts if part.strip()]
        if not parts:
            raise TemplateError(f"prompt file {path} is empty; write at least one text into it")
        for part in parts:
            for found in re.findall(r"\{(\w+)\}", part):
                if found not in placeholders:
                    allowed = ", ".join(f"{{{p}}}" for p in placeholders) or "none"
                    raise TemplateError(f"prompt file {path}: {{{found}}} is unknown; it may hold {allowed}")
            if name in REQUIRED and f"{{{REQUIRED[name]}}}" not in part:
                raise TemplateError(f"prompt file {path}: every text in it must hold {{{REQUIRED[name]}}}")
        texts[name] = tuple(parts)
    return Templates(texts)
