"""Command line: ``python -m data_gen build|import|inspect|validate|languages``; see ``--help``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence

from data_gen.flags import parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    flags = parser().parse_args(arguments)
    from data_gen.parallel import WorkerError
    from data_gen.problems import ProblemError
    from data_gen.sandbox import REQUIRE, SandboxError
    from data_gen.statistics import BuildError
    from data_gen.teachers import TeacherStop
    from data_gen.templates import TemplateError
    from data_gen.verifiers import VerifierError
    from rcjax.data.tfrecord import RecordError

    if flags.require_isolation:
        os.environ[REQUIRE] = "1"
    commands = {
        "build": run_build,
        "import": run_import,
        "inspect": run_inspect,
        "validate": run_validate,
        "languages": run_languages,
    }
    expected = (
        BuildError, ProblemError, TemplateError, SandboxError, RecordError, WorkerError, TeacherStop, VerifierError
    )  # fmt: skip
    try:
        return commands[flags.command](flags) or 0
    except expected as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def run_build(flags: argparse.Namespace) -> None:
    """The command ``build``."""
    from data_gen.build import build, family_problems
    from data_gen.readers import read_problems
    from data_gen.sandbox import Limits
    from data_gen.statistics import BuildError
    from data_gen.teachers.choice import TeacherOptions

    families = "families" in (flags.problems, flags.format)
    if families:
        names = flags.families.split(",") if flags.families else None
        problems = family_problems(flags.count, flags.seed, names, workers=flags.workers)
    else:
        problems = read_problems(flags.problems, flags.format or "auto")[: flags.limit]
    near = flags.near_duplicates
    try:
        limits = Limits(cpu_seconds=flags.cpu_seconds, wall_seconds=flags.wall_seconds, memory_mb=flags.memory_mb)
    except ValueError as error:
        raise BuildError(str(error)) from error
    fields = [field.name for field in dataclasses.fields(TeacherOptions)]
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
        verifiers=flags.verifiers,
        keep_first_try=flags.keep_first_try,
        near_duplicates=(0.0 if families else 0.8) if near is None else near,
        decontaminate=flags.decontaminate,
        options=TeacherOptions(**{name: getattr(flags, name) for name in fields if hasattr(flags, name)}),
        runner=flags.runner,
        beam_options=shlex.split(flags.beam_options),
        finish=flags.finish,
    )
    for title in ("problems", "attempts", "traces", "examples", "verdicts", "languages"):
        print(f"{title}:")
        for name, number in getattr(statistics, title).items():
            print(f"  {number:>7,}  {name}")
    print(f"{statistics.executions:,} executions; isolation: {statistics.isolation}")
    if statistics.usage:
        print("teacher: " + ", ".join(f"{number:,.6g} {name}" for name, number in statistics.usage.items()))
    print(f"wrote {flags.output}")


def run_import(flags: argparse.Namespace) -> None:
    """The command ``import``."""
    from data_gen.importers import import_records

    statistics = import_records(
        flags.input,
        flags.output,
        form=flags.format,
        skip_invalid=flags.skip_invalid,
        near_duplicates=flags.near_duplicates,
        decontaminate=flags.decontaminate,
    )
    for name, number in {**statistics.problems, **statistics.examples}.items():
        print(f"  {number:>7,}  {name}")
    print(f"wrote {flags.output}")


def run_inspect(flags: argparse.Namespace) -> None:
    """The command ``inspect``."""
    if flags.html:
        from data_gen.page import write_page

        count = write_page(flags.directory, flags.html, flags.split, flags.examples or 200, flags.seed)
        print(f"wrote {flags.html} with {count:,} examples")
        return
    from data_gen.inspect import show

    show(flags.directory, flags.split, 3 if flags.examples is None else flags.examples, flags.seed)


def run_validate(flags: argparse.Namespace) -> int:
    """The command ``validate``."""
    from data_gen.validate import validate

    report = validate(flags.directory, flags.examples, flags.seed, flags.workers)
    for name, number in report.counts.items():
        print(f"  {number:>7,}  {name}")
    for line in report.failures[:20]:
        print(f"not so: {line}")
    if len(report.failures) > 20:
        print(f"... and {len(report.failures) - 20:,} more")
    print(f"{report.checked:,} examples executed again, {len(report.failures):,} failures")
    return 1 if report.failures else 0


def run_languages(flags: argparse.Namespace) -> None:
    """The command ``languages``."""
    from data_gen.languages import table

    print(table())


if __name__ == "__main__":
    sys.exit(main())
