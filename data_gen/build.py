"""Problems in, dataset directory out: the whole build, with its counts.

Everything but the time it takes follows from (problems, settings): the order of workers decides nothing. For a teacher
that is a model this holds as far as the model answers the same again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_gen import VERSION
from data_gen.card import write_card
from data_gen.contamination import Benchmarks, removed_line, texts_of
from data_gen.duplicates import near_duplicates as find_near_duplicates
from data_gen.families import family_problems as family_problems  # part of this module's interface
from data_gen.job import HELDOUT, INSTRUCTION, REFLECTION, Done, Job, Setup
from data_gen.journal import Journal, Split, refuse_other
from data_gen.parallel import usable_cpus
from data_gen.problems import Problem
from data_gen.runners import RUNNERS, run_beam, run_local
from data_gen.sandbox import Limits
from data_gen.statistics import STATISTICS, BuildError, Statistics, describe_records, read_statistics
from data_gen.teachers import TeacherStop
from data_gen.teachers.choice import OFFLINE, TEACHERS, TeacherOptions
from data_gen.templates import load_templates
from data_gen.verifiers.choice import VERIFIERS
from rcjax.progress import progress

LIMITS = Limits(cpu_seconds=1.0, wall_seconds=20.0)
REMOVED = "removed.jsonl"  # in the dataset's directory: which problems were left out before any work, and why


def build(
    problems: Sequence[Problem],
    output: str | os.PathLike[str],
    *,
    teacher: str = "bugs",
    seed: int = 0,
    rounds: int = 3,
    traces_per_problem: int = 1,
    heldout: float | int = 0.05,
    instruction_share: float = 1.0,
    reflection_share: float = 1.0,
    phrasings: int = 1,
    shown_tests: int = 1,
    workers: int | None = None,
    limits: Limits = LIMITS,
    prompts: str | os.PathLike[str] | None = None,
    verifiers: Sequence[str] = (),
    keep_first_try: bool = False,
    near_duplicates: float = 0.0,
    decontaminate: Sequence[str | os.PathLike[str]] = (),
    options: TeacherOptions | None = None,
    runner: str = "local",
    beam_options: Sequence[str] = (),
    finish: bool = False,
) -> Statistics:
    """Builds a dataset directory, whole or not at all. What is done of an unfinished one is kept in its journal.

    Args:
      problems: what to build from; several may share a ``task``, which then stays in one split.
      output: directory to make. One that holds a finished build of the same settings is left as it is.
      teacher: key of ``TEACHERS``, or several, ``omissions,slips``, to which the traced tasks are dealt in turn.
      seed: decides the split, the phrasings and the teacher's draws.
      rounds: most failed attempts in a trace.
      traces_per_problem: reflection examples per problem that gets any.
      heldout: tasks kept for evaluation: a share below 1, or a number.
      instruction_share, reflection_share: shares of the other tasks that give instruction examples and traces. They
        overlap only as far as they sum to more than 1.
      phrasings: instruction examples per problem, each of another phrasing.
      shown_tests: asserts in a CODE block; the final program is run on all of them.
      workers: processes, one a usable CPU if None. The records do not depend on it.
      limits: of one execution.
      prompts: directory of replaced prompt files.
      verifiers: keys of ``VERIFIERS``: who judges a program besides its tests.
      keep_first_try: keep traces whose first attempt passes.
      near_duplicates: problems at least so like another one (Jaccard index) are left out; 0: none.
      decontaminate: benchmark files; problems that overlap with them are left out.
      options: of teachers that are models.
      runner: one of ``RUNNERS``; the records do not depend on it.
      beam_options: passed to the Beam pipeline.
      finish: write what an unfinished build has, and work on no further problem.

    Raises:
      BuildError: a setting out of range, an output directory of another build, no examples left, a full disk.
      TeacherStop: the teacher can not go on; the same command goes on from there.
      TemplateError, SandboxError, VerifierError, ProblemError: see there.
    """
    output = Path(output)
    templates = load_templates(prompts)
    options = options or TeacherOptions()
    teachers = tuple(teacher.split(","))
    settings = {
        "version": VERSION,
        "problems": _digest([problem.plain() for problem in problems]),
        "teacher": teacher,
        "seed": seed,
        "rounds": rounds,
        "traces_per_problem": traces_per_problem,
        "heldout": heldout,
        "instruction_share": instruction_share,
        "reflection_share": reflection_share,
        "phrasings": phrasings,
        "shown_tests": shown_tests,
        "limits": dataclasses.asdict(limits),
        "prompts": _digest(templates.of(chat=not all(name in OFFLINE for name in teachers))),
    }
    settings |= {} if all(name in OFFLINE for name in teachers) else {"options": options.decisive()}
    settings |= {"verifiers": list(verifiers)} if verifiers else {}
    settings |= {"keep_first_try": True} if keep_first_try else {}
    settings |= {"near_duplicates": near_duplicates} if near_duplicates else {}
    settings |= {"decontaminate": files_digest(decontaminate, "--decontaminate")} if decontaminate else {}
    _check(settings, runner, options)
    if output.exists():
        return present(output, settings)
    with Journal(output, settings) as journal:
        clock = _Clock()
        statistics = Statistics(settings=settings)
        kept, removed = clean(problems, near_duplicates, decontaminate)
        shares = (instruction_share, reflection_share)
        try:
            jobs = plan(kept, statistics, heldout, *shares, phrasings, traces_per_problem, seed, teachers)
            _need_tests(jobs)
        except BuildError:
            journal.remove()
            raise
        statistics.problems |= {"read": len(problems)} | dict(Counter(f"removed: {why}" for _, why, _ in removed))
        setup = Setup(teachers, templates, limits, seed, rounds, shown_tests, tuple(verifiers), keep_first_try, options)
        left = [] if finish else [job for job in jobs if job.problem.id not in journal]
        if left:
            start = {"local": _local, "beam": _beam(beam_options)}[runner]
            _work(start(setup, left, workers, journal), left, len(jobs), journal)
        clock.stage("execute")
        names = [job.problem.id for job in jobs]
        counts = _count(journal, names, statistics)
        splits = {name: Split(journal, names, name, counts[name]) for name in (INSTRUCTION, REFLECTION, HELDOUT)}
        if not splits[INSTRUCTION] and not splits[REFLECTION]:
            left_out = {**statistics.problems, **statistics.traces}
            reasons = [(name.partition(": ")[2], n) for name, n in left_out.items() if ": " in name]
            told = "; ".join(f"{n} dropped: {why}" for why, n in reasons) or "none was asked for"
            if not finish:
                journal.remove()
            raise BuildError(f"no training examples are left of {len(problems)} problems ({told}); mend the problems")
        lengths = {name: describe_records(statistics, name, records) for name, records in splits.items() if records}
        write(splits, statistics, output, clock, lengths, removed)
        journal.remove()
    return statistics


def clean(
    problems: Sequence[Problem], near_duplicates: float, decontaminate: Sequence[str | os.PathLike[str]]
) -> tuple[list[Problem], list[tuple[str, str, dict[str, object]]]]:
    """(problems that stay, [(id, reason, details)] of the others)."""
    removed: list[tuple[str, str, dict[str, object]]] = []
    kept = list(problems)
    if decontaminate:
        benchmarks = Benchmarks(decontaminate)
        clear = []
        for problem in kept:
            found = benchmarks.overlap(texts_of(problem))
            if found is None:
                clear.append(problem)
            else:
                removed.append((problem.id, f"overlaps with {found.file}", dataclasses.asdict(found)))
        kept = clear
    if near_duplicates and kept:
        twins = find_near_duplicates(["\n".join(texts_of(problem)) for problem in kept], near_duplicates)
        for place, (other, likeness) in twins.items():
            details = {"of": kept[other].id, "jaccard": likeness}
            removed.append((kept[place].id, "near duplicate", details))
        kept = [problem for place, problem in enumerate(kept) if place not in twins]
    return kept, removed


def plan(
    problems: Sequence[Problem],
    statistics: Statistics,
    heldout: float | int,
    instruction_share: float,
    reflection_share: float,
    phrasings: int,
    traces: int,
    seed: int,
    teachers: tuple[str, ...],
) -> list[Job]:
    """Splits tasks, decides what each problem becomes and with which teacher; those that become nothing are left out.

    Raises:
      BuildError: no problems, two of one id, or more held out than there are tasks.
    """
    if not problems:
        raise BuildError("there are no problems to build from")
    repeated = [name for name, count in Counter(problem.id for problem in problems).items() if count > 1]
    if repeated:
        raise BuildError(f"problem id {repeated[0]!r} occurs more than once; ids must be unique")
    tasks = sorted({problem.task for problem in problems})
    random.Random(f"{seed}/split").shuffle(tasks)
    kept = round(heldout * len(tasks)) if isinstance(heldout, float) else heldout
    if kept >= len(tasks):
        raise BuildError(f"heldout is {heldout} but there are only {len(tasks)} tasks; hold out fewer")
    train = tasks[kept:]
    asked = set(train[: round(instruction_share * len(train))])
    traced = set(train[len(train) - round(reflection_share * len(train)) :])
    held = set(tasks[:kept])
    dealt = {task: teachers[place % len(teachers)] for place, task in enumerate(tasks)}
    statistics.problems = {"read": len(problems), "tasks": len(tasks), "heldout tasks": kept}
    jobs = []
    for problem in problems:
        if problem.task in held:
            jobs.append(Job(problem, True, 1, 0, dealt[problem.task]))
        elif problem.task in asked or problem.task in traced:
            shares = (phrasings if problem.task in asked else 0, traces if problem.task in traced else 0)
            jobs.append(Job(problem, False, *shares, dealt[problem.task]))
    return jobs


def _need_tests(jobs: Sequence[Job]) -> None:
    """Refuses a teacher that writes no tests where no problem of its own has any."""
    mine = [job for job in jobs if job.teacher in OFFLINE]
    bare = [job for job in mine if not job.problem.all_tests]
    if bare and len(bare) == len(mine):
        raise BuildError(
            f"problem {bare[0].problem.id!r} has no tests, and neither has any other, and teacher {bare[0].teacher} "
            "writes none; take --teacher=openai or checkpoint, or give the problems tests"
        )


# ---- running


def _local(setup: Setup, jobs: Sequence[Job], workers: int | None, journal: Journal) -> Iterator[tuple[int, Done]]:
    return run_local(setup, jobs, workers or usable_cpus(), journal.spend, journal.usage.get("cost", 0.0))


def _beam(options: Sequence[str]) -> Callable[..., Iterator[tuple[int, Done]]]:
    return lambda setup, jobs, workers, journal: run_beam(setup, jobs, options, journal.directory)


def _work(results: Iterator[tuple[int, Done]], jobs: Sequence[Job], total: int, journal: Journal) -> None:
    """Notes every result in the journal as it comes."""
    executions = traces = 0
    for done in journal.finished():
        executions += done.executions
        traces += sum(split == REFLECTION for split, _ in done.records)
    with progress("building traces", total=total, unit="problems", done=total - len(jobs)) as bar:
        try:
            for place, done in results:
                journal.add(jobs[place].problem.id, done)
                executions += done.executions
                traces += sum(split == REFLECTION for split, _ in done.records)
                spent = journal.usage.get("cost", 0)
                bar.advance(1)
                bar.note(f"{traces:,} traces, {executions:,} executions" + (f", ${spent:.2f}" if spent else ""))
        except TeacherStop as error:
            raise TeacherStop(
                f"{error}; {len(journal):,} of {total:,} problems are done and kept: the same command goes on from "
                "there, with --finish it writes what there is"
            ) from error


def _count(journal: Journal, names: Sequence[str], statistics: Statistics) -> Counter[str]:
    """Fills the counts of ``statistics`` from the journal; returns the number of records by split."""
    skipped, attempts, dropped, faults = Counter(), Counter(), Counter(), Counter()
    records, failed = Counter(), Counter()
    number = 0
    for done in journal.read(names):
        number += 1
        statistics.executions += done.executions
        statistics.isolation = done.isolation
        if done.skipped:
            skipped[done.skipped] += 1
        attempts.update(done.counts)
        dropped.update(done.dropped)
        faults.update(done.faults)
        records.update(split for split, _ in done.records)
        failed.update(record["rounds"] for split, record in done.records if split == REFLECTION)
    statistics.problems |= {f"skipped: {reason}": n for reason, n in sorted(skipped.items())}
    if number < len(names):
        statistics.problems["not reached"] = len(names) - number
    statistics.attempts = dict(attempts.most_common())
    statistics.faults = dict(faults.most_common())
    statistics.traces = {f"{n} failed": failed[n] for n in sorted(failed)}
    statistics.traces |= {f"dropped: {reason}": n for reason, n in dropped.most_common()}
    statistics.examples = {name: records[name] for name in (INSTRUCTION, REFLECTION, HELDOUT)}
    statistics.usage = {name: round(n, 6) for name, n in journal.usage.items()}
    return records


# ---- writing


def write(
    splits: Mapping[str, Sequence[dict[str, Any]]],
    statistics: Statistics,
    output: Path,
    clock: _Clock | None = None,
    lengths: Mapping[str, list[list[int]]] | None = None,
    removed: Sequence[tuple[str, str, dict[str, object]]] = (),
) -> None:
    """Writes dataset, card, statistics and the index of lengths aside and renames the directory into place.

    Raises:
      BuildError: the directory can not be written.
    """
    from data_gen.builder import write_dataset, write_lengths  # late: importing tensorflow_datasets takes a second

    aside = output.absolute().with_name(f".{output.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        made = write_dataset(splits, aside)
        if clock:
            clock.stage("write")
            statistics.seconds = clock.seconds
        if lengths:
            write_lengths(made / "lengths.npz", lengths)
        if removed:
            (made / REMOVED).write_text("".join(f"{removed_line(*line)}\n" for line in removed), encoding="utf-8")
        write_card(made / "README.md", statistics.to_json())
        (made / STATISTICS).write_text(json.dumps(statistics.to_json(), indent=2) + "\n", encoding="utf-8")
        os.replace(made, output)
    except OSError as error:
        raise BuildError(f"output {output} can not be written ({error.strerror}); name another --output") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def present(output: Path, settings: dict[str, Any]) -> Statistics:
    """The statistics of the build that is there, if it is the one asked for."""
    there = read_statistics(output)
    refuse_other(f"output {output}", there.settings, json.loads(json.dumps(settings)), "remove it")
    return there


def _check(settings: dict[str, Any], runner: str, options: TeacherOptions) -> None:
    for name in settings["teacher"].split(","):
        if name not in TEACHERS:
            raise BuildError(f"teacher {name!r} is unknown; there are {', '.join(TEACHERS)}")
    for name in settings.get("verifiers", ()):
        if name not in VERIFIERS:
            raise BuildError(f"verifier {name!r} is unknown; there are {', '.join(VERIFIERS)}")
    for name in ("rounds", "traces_per_problem", "phrasings", "shown_tests"):
        if settings[name] < 1:
            raise BuildError(f"{name} is {settings[name]}; it must be at least 1")
    for name in ("instruction_share", "reflection_share"):
        if not 0 <= settings[name] <= 1:
            raise BuildError(f"{name} is {settings[name]}; it must lie between 0 and 1")
    if not 0 <= settings.get("near_duplicates", 0) <= 1:
        raise BuildError(f"near_duplicates is {settings['near_duplicates']}; it must lie between 0 (off) and 1")
    heldout = settings["heldout"]
    if heldout < 0 or (isinstance(heldout, float) and heldout >= 1):
        raise BuildError(f"heldout is {heldout}; give a share below 1 or a whole number of tasks")
    if runner not in RUNNERS:
        raise BuildError(f"runner {runner!r} is unknown; there are {', '.join(RUNNERS)}")
    if runner == "beam" and options.spend_limit is not None:
        raise BuildError("a spend_limit is kept by one process; take --runner=local")
    if "options" in settings:
        if not options.model:
            raise BuildError(f"teacher {settings['teacher']!r} needs --model: which model shall write")
        if options.spend_limit is not None and not (options.price_in or options.price_out):
            raise BuildError("spend_limit needs --price-in and --price-out, dollars a million tokens, to be counted by")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def files_digest(paths: Sequence[str | os.PathLike[str]], flag: str) -> list[str]:
    """What stands for the content of files in the settings; ``flag`` is named in errors."""
    digests = []
    for path in paths:
        try:
            digests.append(hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16])
        except OSError as error:
            raise BuildError(f"{flag}: file {path} can not be read ({error.strerror})") from error
    return digests


class _Clock:
    """Wall time of stages that follow each other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def stage(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 2)
        self._last = now


__all__ = ["BuildError", "Statistics", "build", "family_problems", "read_statistics", "write"]
