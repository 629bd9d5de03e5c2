"""Command line: ``python -m data_gen build|inspect|languages``; see ``--help``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

DESCRIPTION = """\
Builds reflection traces (attempt, feedback of really running it, reflection, correction) from programming problems
with reference solutions and tests, and shows what was built.
"""
EPILOG = """\
examples:
  python -m data_gen build --problems=families --count=2000 --output=runs/traces
  python -m data_gen build --problems=sanitized-mbpp.json --format=mbpp --teacher=bugs --output=runs/mbpp
  python -m data_gen inspect runs/mbpp --examples=3
  python launch.py --config=configs/tiny.py --workdir=runs/mine --config.data.train=runs/mbpp
"""


def heldout(text: str) -> float | int:
    """A share ("0.05") or a number of tasks ("200")."""
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a share below 1 nor a whole number") from error


def parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m data_gen", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    from data_gen.readers import SCHEMA

    build = commands.add_parser(
        "build",
        help="make a dataset directory of traces from problems",
        description="Makes a dataset directory, whole or not at all. A finished one of the same settings is kept.",
        epilog=f"the jsonl format:\n{SCHEMA}",
        formatter_class=raw,
    )
    add = build.add_argument
    add("--problems", required=True, metavar="FILE", help="problem file, or the word `families` for our own problems")
    add(
        "--format",
        choices=("mbpp", "jsonl", "families"),
        help="form of FILE: mbpp (sanitized-mbpp.json or mbpp.jsonl), jsonl (schema below), families (no file); "
        "default: jsonl for a file",
    )
    add("--output", required=True, metavar="DIR", help="directory to make; it must not hold another build")
    add(
        "--teacher",
        default="bugs",
        metavar="NAME,..",
        help="who writes attempts: bugs (faults put into the reference; the default), omissions (faults that leave "
        "something out), slips (the other faults); several take tasks in turn",
    )
    add("--count", type=int, default=7000, help="families only: number of distinct tasks (default 7000)")
    add("--families", metavar="NAME,..", help="families only: which (default all)")
    add("--seed", type=int, default=0, help="decides splits, phrasings and faults (default 0)")
    add("--rounds", type=int, default=3, help="most failed attempts in one trace (default 3)")
    add("--traces-per-problem", type=int, default=1, help="reflection examples a problem (default 1)")
    add("--phrasings", type=int, default=1, help="instruction examples a problem, each phrased otherwise (default 1)")
    add(
        "--heldout",
        type=heldout,
        default=0.05,
        help="tasks kept for evaluation: a share below 1 or a number (default 0.05)",
    )
    add("--instruction-share", type=float, default=1.0, help="share of tasks with plain instruction examples (1.0)")
    add("--reflection-share", type=float, default=1.0, help="share of tasks with reflection traces (default 1.0)")
    add("--shown-tests", type=int, default=1, help="asserts in the CODE blocks; all tests decide (default 1)")
    add("--prompts", metavar="DIR", help="directory with replacements for the files of data_gen/prompts")
    add("--workers", type=int, help="processes; default: one a usable CPU")
    add("--cpu-seconds", type=float, default=1.0, help="CPU time of one execution (default 1)")
    add("--wall-seconds", type=float, default=20.0, help="time of one execution by the clock (default 20)")
    add("--memory-mb", type=int, default=512, help="memory of one execution, MiB (default 512)")
    look = commands.add_parser(
        "inspect",
        help="show the statistics of a dataset directory and some examples",
        description="Shows statistics and some examples, coloured by block type.",
    )
    look.add_argument("directory", metavar="DIR", help="directory that `build` made")
    look.add_argument("--split", default="", help="instruction, reflection or heldout (default: reflection)")
    look.add_argument("--examples", type=int, default=3, help="how many examples (default 3)")
    look.add_argument("--seed", type=int, default=0, help="which examples (default 0)")
    commands.add_parser(
        "languages",
        help="show which languages programs can be written in here, and how to add the rest",
        description="Shows which toolchains this machine has, the packages of those that it lacks, and the isolation.",
    )
    for command in commands.choices.values():
        command.add_argument(
            "--require_isolation",
            "--require-isolation",
            action="store_true",
            help="refuse to run programs where something of the sandbox's isolation is lacking (docs/sandbox.md)",
        )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    flags = parser().parse_args(arguments)
    from data_gen.build import BuildError
    from data_gen.parallel import WorkerError
    from data_gen.problems import ProblemError
    from data_gen.sandbox import REQUIRE, SandboxError
    from data_gen.templates import TemplateError
    from rcjax.data.tfrecord import RecordError

    if flags.require_isolation:
        os.environ[REQUIRE] = "1"
    try:
        {"build": run_build, "inspect": run_inspect, "languages": run_languages}[flags.command](flags)
    except (BuildError, ProblemError, TemplateError, SandboxError, RecordError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run_build(flags: argparse.Namespace) -> None:
    """The command ``build``."""
    from data_gen.build import BuildError, build, family_problems
    from data_gen.readers import read_problems
    from data_gen.sandbox import Limits

    if "families" in (flags.problems, flags.format):
        names = flags.families.split(",") if flags.families else None
        problems = family_problems(flags.count, flags.seed, names, workers=flags.workers)
    else:
        problems = read_problems(flags.problems, flags.format or "jsonl")
    try:
        limits = Limits(cpu_seconds=flags.cpu_seconds, wall_seconds=flags.wall_seconds, memory_mb=flags.memory_mb)
    except ValueError as error:
        raise BuildError(str(error)) from error
    statistics = build(
        problems,
        flags.output,
        teacher=flags.teacher,
        seed=flags.seed,
        rounds=flags.rounds,
        traces_per_problem=flags.traces_per_problem,
        heldout=flags.heldout,
        instruction_share=flags.instruction_share,
        reflection_share=flags.reflection_share,
        phrasings=flags.phrasings,
        shown_tests=flags.shown_tests,
        workers=flags.workers,
        limits=limits,
        prompts=flags.prompts,
    )
    for title in ("problems", "attempts", "traces", "examples"):
        print(f"{title}:")
        for name, number in getattr(statistics, title).items():
            print(f"  {number:>7,}  {name}")
    print(f"{statistics.executions:,} executions; isolation: {statistics.isolation}")
    print(f"wrote {flags.output}")


def run_inspect(flags: argparse.Namespace) -> None:
    """The command ``inspect``."""
    from data_gen.inspect import show

    show(flags.directory, flags.split, flags.examples, flags.seed)


def run_languages(flags: argparse.Namespace) -> None:
    """The command ``languages``."""
    from data_gen.languages import table

    print(table())


if __name__ == "__main__":
    sys.exit(main())
