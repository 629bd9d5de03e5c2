"""Executions a second per core of the sandbox, against a fresh isolated interpreter per program, in the same run.

    python benchmarks/sandbox_throughput.py [--programs=200] [--rounds=5] [--mbpp=sanitized-mbpp.json]

Peers: ``python -I -S`` under a fresh bubblewrap per program, with the sandbox's own view of the system (what the
sandbox has to beat by 5), and ``python -I -S`` with no isolation at all. Peers take turns, round by round; the table
shows medians, so that other load on the machine hits all alike. Below the rates stands the CPU time of a program, of
all processes together. Pin to one core (``taskset -c 0``) for rates per core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
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
from data_gen.isolated.supervisor import descendants
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


def cpu_seconds(sandbox: Sandbox) -> float:
    """CPU time so far of this process, of the children that it waited for, and of the sandbox's processes."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(usage.ru_utime + usage.ru_stime for usage in own)
    for worker in sandbox._all:
        root = worker._process.pid
        for pid in (root, *descendants(root)):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


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
        heads = ("programs", "", "sandbox", "bwrap + python", "ratio", "python -I -S", "ratio")
        print("{:<14}{:<12}{:>10}{:>16}{:>7}{:>15}{:>7}".format(*heads))
        for name, programs in loads.items():
            peers: dict[str, Callable[[Sequence[Program]], float]] = {
                "sandbox": lambda programs: in_sandbox(sandbox, programs),
                **({"bwrap": fresh_bubblewrap} if shutil.which("bwrap") else {}),
                "fresh": fresh,
            }
            rates: dict[str, list[float]] = {peer: [] for peer in peers}
            costs: dict[str, list[float]] = {peer: [] for peer in peers}
            for _ in range(flags.rounds):
                for peer, run in peers.items():
                    before = cpu_seconds(sandbox)
                    rates[peer].append(run(programs))
                    number = len(programs) if peer == "sandbox" else len(programs[:PEER_PROGRAMS])
                    costs[peer].append(1000 * (cpu_seconds(sandbox) - before) / number)
            for title, table, digits in (("/s", rates, 0), ("CPU ms each", costs, 2)):
                found = {peer: statistics.median(values) for peer, values in table.items()}
                ours, bwrap, bare = found["sandbox"], found.get("bwrap", float("nan")), found["fresh"]
                ratios = [ours / peer if table is rates else peer / ours for peer in (bwrap, bare)]
                row = f"{name:<14}{title:<12}{ours:>10.{digits}f}{bwrap:>16.{digits}f}{ratios[0]:>7.2f}"
                print(f"{row}{bare:>15.{digits}f}{ratios[1]:>7.2f}")


if __name__ == "__main__":
    main()
