"""Decontamination: problems that share a run of words with a benchmark are left out, and it is told which and why.

As the field does it (GPT-3 with 13 words, Qwen2.5-Coder with 10): overlap of word n-grams, here of the statement and
of the solution with those of each benchmark task. A benchmark text that is shorter than n words counts as a whole.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_gen.problems import Problem, ProblemError
from data_gen.readers import read_records

NGRAM = 10
SHORTEST = 6  # words; a shorter benchmark text ("Write a function to add.") says too little to be recognised by
DISTINCT = 3  # different words that a run must hold: "1 2 3 4 5 6 7 8 9 10" is nobody's
FIELDS = ("prompt", "prompts", "text", "instruction", "query", "canonical_solution", "solution", "code", "output")


def words(text: str) -> list[str]:
    """Words, names and numbers in lower case; signs do not count, else every second loop would be like another."""
    return re.findall(r"[a-z0-9_]+", text.lower())


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Why a problem is left out: the words that it shares, and with which task of which file."""

    file: str
    task: str
    ngram: str


class Benchmarks:
    """The n-grams of benchmark files."""

    def __init__(self, paths: Sequence[str | Path], size: int = NGRAM):
        """Reads the files: JSON lines or arrays, gzipped or not, of any usual field names.

        Raises:
          ProblemError: a file can not be read, or no record of it has a text field.
        """
        self._size = size
        self._grams: dict[str, tuple[str, str]] = {}
        self._lengths: set[int] = set()
        for path in paths:
            texts = 0
            for number, (_, record) in enumerate(read_records(path, "--decontaminate"), 1):
                task = str(record.get("task_id", record.get("name", record.get("id", number))))
                for name in FIELDS:
                    values = record.get(name)
                    for text in values if isinstance(values, list) else [values]:
                        if isinstance(text, str) and text.strip():
                            texts += 1
                            self._add(text, Path(path).name, task)
            if not texts:
                raise ProblemError(f"--decontaminate: {path} has no text in any of the fields {', '.join(FIELDS)}")

    def _add(self, text: str, file: str, task: str) -> None:
        found = words(text)
        if len(found) < min(SHORTEST, self._size):
            return
        size = min(self._size, len(found))
        self._lengths.add(size)
        for gram in _grams(found, size):
            if len({word for word in gram.split() if word[0].isalpha()}) >= DISTINCT:
                self._grams.setdefault(gram, (file, task))

    def overlap(self, texts: Iterable[str]) -> Overlap | None:
        """The first run of words that one of ``texts`` shares with a benchmark; None if there is none."""
        for text in texts:
            found = words(text)
            for size in sorted(self._lengths, reverse=True):
                for gram in _grams(found, size):
                    if gram in self._grams:
                        return Overlap(*self._grams[gram], gram)
        return None


def _grams(found: list[str], size: int) -> Iterable[str]:
    return (" ".join(found[at : at + size]) for at in range(len(found) - size + 1))


def texts_of(problem: Problem) -> list[str]:
    """What of a problem is compared."""
    return [*problem.prompts, problem.solution]


def removed_line(id: str, reason: str, detail: dict[str, object]) -> str:
    """One line of ``removed.jsonl``."""
    return json.dumps({"id": id, "reason": reason, **detail}, ensure_ascii=False)
