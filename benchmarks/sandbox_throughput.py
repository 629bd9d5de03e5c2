"""Executions a second per core of the sandbox, against a fresh isolated interpreter per program, in the same run.

    python benchmarks/sandbox_throughput.py [--programs=200] [--rounds=5] [--mbpp=sanitized-mbpp.json]

Peers: ``python -I -S`` under a fresh bubblewrap per program, with the sandbox's own view of the system (what the
sandbox has to beat by 5), and ``python -I -S`` with no isolation at all. Peers take turns, round by round; the table
shows medians, so that other load on the machine hits all alike. One sandbox worker is one core: the parent waits while
the worker runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_gen.families import family_problems
from data_gen.isolated import namespaces
from data_gen.sandbox import MEANS, WORK_BYTES, Limits, Program, Sandbox, Verdict

TRIVIAL = Program("x = 1\n", ("assert x == 1",))
PEER_PROGRAMS = 60  # of the slow peers a round


def in_sandbox(sandbox: Sandbox, programs: Sequence[Program]) -> float:
    """Programs a second in the sandbox."""
    started = time.perf_counter()
    for program in programs:
        if sandbox.run(program).verdict != Verdict.PASSED:
            raise RuntimeError(f"a program that should pass did not; the figures would mean nothing:\n{program.source}")
    return len(programs) / (time.perf_counter() - started)


def fresh(programs: Sequence[Program]) -> float:
    """Programs a second in a new ``python -I -S`` each, with no limits at all."""
    return _started([[sys.executable, "-I", "-S", "-c", program.source] for program in programs[:PEER_PROGRAMS]])


def fresh_bubblewrap(programs: Sequence[Program]) -> float:
    """Programs a second in a new ``python -I -S`` under a new bubblewrap each."""
    python = os.path.realpath(sys.executable)
    commands = [[python, "-I", "-S", "-c", program.source] for program in programs[:PEER_PROGRAMS]]
    return _started([namespaces.bubblewrap(command, [python], WORK_BYTES) for command in commands])


def _started(commands: Sequence[list[str]]) -> float:
    started = time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)
    return len(commands) / (time.perf_counter() - started)


def mbpp(path: Path, number: int) -> list[Program]:
    """Reference programs of MBPP behind which its own tests are run, those that take no time of their own."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    programs = [Program(row["code"].replace("\r\n", "\n"), (*row["test_imports"], *row["test_list"])) for row in rows]
    with Sandbox(1) as sandbox:
        quick = [
            program
            for program in programs
            if (found := sandbox.run(program)).verdict == Verdict.PASSED and found.seconds < 0.1
        ]
    return quick[:number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=200, help="programs a round (default 200)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts (default 5)")
    parser.add_argument("--mbpp", type=Path, help="sanitized-mbpp.json, for programs of its size")
    parser.add_argument("--means", choices=MEANS, help="the one way to isolate (default: the first that works)")
    flags = parser.parse_args()
    problems = family_problems(flags.programs, seed=0)
    loads = {
        "trivial": [TRIVIAL] * flags.programs,
        "family-sized": [Program(problem.solution, problem.tests) for problem in problems],
    }
    if flags.mbpp:
        loads["MBPP-sized"] = mbpp(flags.mbpp, flags.programs)
    with Sandbox(1, Limits(), means=[flags.means] if flags.means else MEANS) as sandbox:
        print(f"isolation: {sandbox.isolation}")
        print(f"load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs\n")
        heads = ("programs", "sandbox /s", "bwrap + python /s", "ratio", "python -I -S /s", "ratio")
        print("{:<14}{:>12}{:>19}{:>7}{:>17}{:>7}".format(*heads))
        for name, programs in loads.items():
            peers: dict[str, Callable[[Sequence[Program]], float]] = {
                "sandbox": lambda programs: in_sandbox(sandbox, programs),
                **({"bwrap": fresh_bubblewrap} if shutil.which("bwrap") else {}),
                "fresh": fresh,
            }
            rates: dict[str, list[float]] = {peer: [] for peer in peers}
            for _ in range(flags.rounds):
                for peer, run in peers.items():
                    rates[peer].append(run(programs))
            medians = {peer: statistics.median(found) for peer, found in rates.items()}
            ours, bwrap, bare = medians["sandbox"], medians.get("bwrap", float("nan")), medians["fresh"]
            print(f"{name:<14}{ours:>12.0f}{bwrap:>19.0f}{ours / bwrap:>7.2f}{bare:>17.0f}{ours / bare:>7.2f}")


if __name__ == "__main__":
    main()
