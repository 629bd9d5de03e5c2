"""Shows a dataset directory: its counts and a few examples with colours by block type."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_gen.dataset import sample
from data_gen.statistics import BuildError, Statistics, read_statistics

COLOURS = {"text": "cyan", "code": "green", "execution": "red", "user": "yellow"}


def show(directory: str | Path, split: str, count: int, seed: int = 0) -> None:
    """Prints the statistics and ``count`` random examples of ``split``.

    Raises:
      BuildError: no dataset there, or no such split.
      RecordError: a damaged record file.
    """
    console = Console(highlight=False, width=None if Console().is_terminal else 120)
    statistics = read_statistics(directory)
    console.print(*_tables(statistics), sep="\n")
    names = [name for name, number in statistics.examples.items() if number]
    split = split or ("reflection" if "reflection" in names else names[0])
    if split not in names:
        raise BuildError(f"--split={split} is not in {directory}; there is {', '.join(names)}")
    for record in sample(directory, split, count, seed):
        console.rule(Text(f"{record['id']} ({record['rounds']} failed)"))
        for turn in json.loads(record["messages"]):
            console.print(Text(turn["role"], style="bold"))
            for block in turn["content"]:
                colour = COLOURS["user" if turn["role"] == "user" else block["type"]]
                console.print(Text(f"{block['type'].upper()}", style=f"dim {colour}"))
                console.print(Text(block["content"], style=colour))


def _tables(statistics: Statistics) -> list[Table]:
    tables = []
    # What says nothing here is left out.
    for title, counts in (
        ("examples", statistics.examples),
        ("problems", statistics.problems),
        ("traces", statistics.traces),
        ("attempts", statistics.attempts),
        ("verdicts", statistics.verdicts),
        ("languages", statistics.languages),
        ("usage", statistics.usage),
        ("seconds", statistics.seconds),
    ):
        if not counts:
            continue
        table = Table(title=title, title_justify="left", show_header=False)
        for name, number in counts.items():
            table.add_row(name, f"{number:,}")
        tables.append(table)
    table = Table(title="mean characters a record", title_justify="left")
    kinds = sorted({kind for by_type in statistics.characters.values() for kind in by_type})
    for name in ("split", *kinds):
        table.add_column(name)
    for split, by_type in statistics.characters.items():
        table.add_row(split, *(f"{by_type.get(kind, 0):g}" for kind in kinds))
    sizes = Table(title="characters of a whole record", title_justify="left")
    for name in ("split", *next(iter(statistics.lengths.values()), {})):
        sizes.add_column(name)
    for split, places in statistics.lengths.items():
        sizes.add_row(split, *map(str, places.values()))
    return [*tables, table, sizes]
