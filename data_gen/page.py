"""A dataset directory as one HTML page to browse in: statistics, and examples to search and filter."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jinja2

from data_gen.dataset import sample
from data_gen.statistics import BuildError, read_statistics


def write_page(directory: str | os.PathLike[str], target: str, split: str = "", count: int = 200, seed: int = 0) -> int:
    """Writes the page; returns the number of examples in it.

    Args:
      split: this one alone; "" takes all, traces first.
      count: most examples, shared equally by the splits.

    Raises:
      BuildError: no dataset there, no such split, or the file can not be written.
    """
    statistics = read_statistics(directory)
    there = [name for name in ("reflection", "instruction", "heldout") if statistics.examples.get(name)]
    if split and split not in there:
        raise BuildError(f"--split={split} is not in {directory}; there is {', '.join(there)}")
    splits = [split] if split else there
    each = max(1, count // len(splits))
    examples = [
        (name, record, json.loads(record["messages"]))
        for name in splits
        for record in sample(directory, name, each, seed)
    ]
    tables = [
        (title, [(key, f"{value:,}") for key, value in getattr(statistics, title).items()])
        for title in ("examples", "problems", "traces", "attempts", "verdicts", "languages", "faults", "usage")
    ]
    for name, kinds in statistics.characters.items():
        sizes = statistics.lengths.get(name, {})
        rows = [(f"mean {kind}", f"{value:,.0f}") for kind, value in kinds.items()]
        tables.append((f"characters, {name}", rows + [(key, f"{value:,}") for key, value in sizes.items()]))
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("page.html.jinja")
    text = template.render(
        name=Path(directory).resolve().name,
        tables=[(title, rows) for title, rows in tables if rows],
        examples=examples,
        splits=splits,
        failures=sorted({int(record["rounds"]) for name, record, _ in examples if name == "reflection"}),
    )
    aside = Path(target).with_name(f".{Path(target).name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, target)
    except OSError as error:
        raise BuildError(f"--html={target} can not be written ({error.strerror}); name another file") from error
    return len(examples)
