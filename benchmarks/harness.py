"""What every benchmark does: alternate ours and its peers, take medians, print ratios, keep the result.

Each script is one claim. ``python -m benchmarks.NAME`` runs one, ``make bench`` all; what comes out is appended to
``benchmarks/results.jsonl`` with machine, versions and commit, and ``python -m benchmarks.tables`` makes
``docs/benchmarks.md`` of the newest results.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.jsonl"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "google-tunix", "numpy")


def alternate(contestants: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Wall seconds of every call, contestants taking turns, so that a disturbance hits all of them alike.

    A contestant returns when its work is done, not when it is dispatched. The first ``warm_up`` rounds are not kept.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warm_up + rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            taken = time.perf_counter() - start
            if number >= warm_up:
                seconds[name].append(taken)
    return seconds


def median(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median by contestant."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratio(seconds: Mapping[str, Sequence[float]], ours: str, peer: str) -> float:
    """How many times quicker ``ours`` is: the median over rounds of the peer's seconds / ours."""
    return statistics.median(theirs / own for own, theirs in zip(seconds[ours], seconds[peer], strict=True))


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints a table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_text(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    print(f"\n{title}")
    for line in [columns, *cells]:
        print(
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
        )


def record(name: str, claim: str, rows: Sequence[Mapping[str, Any]], **settings: Any) -> None:
    """Prints the rows and appends them to ``results.jsonl``."""
    show(claim, rows)
    entry = {
        "benchmark": name,
        "claim": claim,
        "command": " ".join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "settings": settings,
        "rows": list(rows),
    }
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def commit() -> str:
    """Short hash, with + where files differ from it."""
    try:
        git = ("git", "-C", str(ROOT))
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+" if changed.strip() else "")


def machine() -> str:
    """Processor and number of usable cores, or the accelerators that JAX has been using."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.default_backend() != "cpu":
        return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def versions() -> dict[str, str]:
    """Python and the packages that are installed of those that matter."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
