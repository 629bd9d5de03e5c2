"""Makes docs/benchmarks.md of the newest result of every claim in benchmarks/results.jsonl.

python -m benchmarks.tables
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import RESULTS, ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Made by `python -m benchmarks.tables` from `benchmarks/results.jsonl`; `make bench` runs all. Ours and its peers take
turns in one run, and ratios say more than seconds: machines differ.
"""


def cell(value) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def section(entry: dict) -> str:
    """One result as Markdown."""
    columns = list(dict.fromkeys(name for row in entry["rows"] for name in row))
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    lines += [[cell(row.get(name)) for name in columns] for row in entry["rows"]]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    versions = ", ".join(f"{name} {version}" for name, version in entry["versions"].items())
    return (
        f"## {entry['claim']}\n\n`{entry['command']}`\n\n{table}\n\n"
        f"{entry['machine']}; {versions}; commit {entry['commit']}, {entry['when'][:10]}.\n"
    )


def main() -> None:
    newest = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        newest[entry["benchmark"], entry["claim"]] = entry
    page = "\n".join([HEAD, *(section(newest[key]) for key in sorted(newest))])
    PAGE.write_text(page, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(newest)} results")


if __name__ == "__main__":
    main()
