"""The dataset card: what a directory of traces holds and how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HEAD = """\
---
language: [en]
tags: [code, reflection, execution-feedback]
---
# Reflection traces

Attempts at programming problems, the feedback of really running them, reflections and corrections. The last program
of every trace passes all tests of its problem. Built by `python -m data_gen build`.

TFRecord files of `tf.train.Example` with TensorFlow Datasets metadata:
`tensorflow_datasets.builder_from_directory("DIR")`. Splits are made by task: no task of `heldout` occurs in another
split in any phrasing.

- `instruction`: question and reference code (2 turns).
- `reflection`: instruction, reflection sequence, question, final code (4 turns). Its CODE blocks hold the program and
  some of its asserts, its EXECUTION blocks what running exactly that answered; `ok` stands for silence.
- `heldout`: as `instruction`, for evaluation.
"""


def write_card(path: Path, statistics: Mapping[str, Any]) -> None:
    """Writes the card with the tables of ``statistics`` (``Statistics.to_json()``)."""
    parts = [_HEAD]
    for title, name in (
        ("Examples", "examples"),
        ("Problems", "problems"),
        ("Traces by failed attempts", "traces"),
        ("Attempts", "attempts"),
        ("Faults in the traces", "faults"),
        ("Settings", "settings"),
    ):
        rows = "".join(f"| {key} | {value} |\n" for key, value in statistics[name].items())
        parts.append(f"## {title}\n\n| | |\n|---|---|\n{rows}")
    rows = "".join(
        f"| {split} | {', '.join(f'{kind} {count:g}' for kind, count in by_type.items())} |\n"
        for split, by_type in statistics["characters"].items()
    )
    parts.append(f"## Mean characters a record, by block type\n\n| | |\n|---|---|\n{rows}")
    parts.append(f"Executions: {statistics['executions']}. Isolation: {statistics['isolation']}.\n")
    path.write_text("\n".join(parts), encoding="utf-8")
