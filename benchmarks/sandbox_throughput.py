"""Executions a second per core of the sandbox, against a fresh isolated interpreter per program, in the same run.

    python benchmarks/sandbox_throughput.py [--programs=200] [--rounds=5]

Peers take turns, round by round; the table shows medians, so that other load on the machine hits both alike. One
sandbox worker is one core: the parent waits while the worker runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_gen.families import family_problems
from data_gen.sandbox import Limits, Program, Sandbox, Verdict

TRIVIAL = Program("x = 1\n", ("assert x == 1",))


def in_sandbox(sandbox: Sandbox, programs: Sequence[Program]) -> float:
    """Seconds for all programs in the sandbox."""
    started = time.perf_counter()
    for program in programs:
        if sandbox.run(program).verdict != Verdict.PASSED:
            raise RuntimeError("a program that should pass did not; the figures would mean nothing")
    return time.perf_counter() - started


def fresh(programs: Sequence[Program]) -> float:
    """Seconds for all programs in a new ``python -I -S`` each, with no limits at all."""
    started = time.perf_counter()
    for program in programs:
        subprocess.run([sys.executable, "-I", "-S", "-c", program.source], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=200, help="programs a round (default 200)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts (default 5)")
    flags = parser.parse_args()
    problems = family_problems(flags.programs, seed=0)
    loads = {
        "trivial": [TRIVIAL] * flags.programs,
        "family-sized": [Program(problem.solution, problem.tests) for problem in problems],
    }
    with Sandbox(1, Limits()) as sandbox:
        print(f"isolation: {sandbox.isolation}")
        print(f"load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs\n")
        print(f"{'programs':<14}{'sandbox /s':>12}{'python -I -S /s':>18}{'ratio':>8}")
        for name, programs in loads.items():
            peers: dict[str, Callable[[], float]] = {
                "sandbox": lambda programs=programs: in_sandbox(sandbox, programs),
                "fresh": lambda programs=programs: fresh(programs),
            }
            rates: dict[str, list[float]] = {peer: [] for peer in peers}
            for _ in range(flags.rounds):
                for peer, run in peers.items():
                    rates[peer].append(len(programs) / run())
            ours, theirs = (statistics.median(rates[peer]) for peer in peers)
            print(f"{name:<14}{ours:>12.0f}{theirs:>18.0f}{ours / theirs:>8.2f}")


if __name__ == "__main__":
    main()
