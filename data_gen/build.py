"""Problems in, dataset directory out: the whole build, with its counts.

Everything but the time it takes follows from (problems, settings): the order of workers decides nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_gen import VERSION
from data_gen.card import write_card
from data_gen.families import family_problems as family_problems  # part of this module's interface
from data_gen.mutations import normalize
from data_gen.parallel import ordered_map, usable_cpus
from data_gen.problems import Problem
from data_gen.reflection import answer, conversation, reflect
from data_gen.sandbox import Limits, Outcome, Program, Sandbox, Verdict
from data_gen.teachers import Teacher
from data_gen.teachers.bugs import BugTeacher
from data_gen.templates import Templates, load_templates
from rcjax.blocks import GENERATION, Block, BlockType, Conversation, Message
from rcjax.progress import progress

TEACHERS: dict[str, Callable[[Templates], Teacher]] = {
    "bugs": BugTeacher,
    "omissions": functools.partial(BugTeacher, name="omissions", omissions=True),
    "slips": functools.partial(BugTeacher, name="slips", omissions=False),
}
LIMITS = Limits(cpu_seconds=1.0, wall_seconds=20.0)
INSTRUCTION, REFLECTION, HELDOUT = "instruction", "reflection", "heldout"  # splits
STATISTICS = "statistics.json"


class BuildError(ValueError):
    """A build that can not be done or gave nothing; one sentence with the mend."""


@dataclasses.dataclass
class Statistics:
    """What came of a build; ``statistics.json`` in its directory.

    Attributes:
      settings: everything that the records follow from.
      problems: read, used, heldout, and skipped by reason.
      attempts: failed ones by error, and those that passed by fault.
      traces: reflection examples by number of failed attempts, and problems without one by reason.
      examples: records by split.
      characters: by split, the mean per record of each block type.
      faults: operators of the faults in the traces.
      seconds: wall time of the stages (the one part that differs from run to run).
    """

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    problems: dict[str, int] = dataclasses.field(default_factory=dict)
    attempts: dict[str, int] = dataclasses.field(default_factory=dict)
    traces: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, int] = dataclasses.field(default_factory=dict)
    characters: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    faults: dict[str, int] = dataclasses.field(default_factory=dict)
    executions: int = 0
    isolation: str = ""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain dict."""
        return dataclasses.asdict(self)


def read_statistics(directory: str | os.PathLike[str]) -> Statistics:
    """The statistics of a finished build.

    Raises:
      BuildError: there is no build, or its statistics can not be read.
    """
    path = Path(directory) / STATISTICS
    try:
        return Statistics(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise BuildError(f"{directory} holds no {STATISTICS}; name a directory that `data_gen build` wrote") from error
    except (OSError, ValueError, TypeError) as error:
        raise BuildError(f"{path} can not be read ({error}); build the dataset again") from error


# ---- one problem, a pure function but for the sandbox


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every worker needs."""

    teachers: tuple[str, ...]
    templates: Templates
    limits: Limits
    seed: int
    rounds: int
    shown: int


@dataclasses.dataclass(frozen=True)
class Job:
    """A problem and what it becomes."""

    problem: Problem
    heldout: bool
    instructions: int  # examples, each of another phrasing
    traces: int
    teacher: str


@dataclasses.dataclass
class Done:
    """What came of a job."""

    skipped: str = ""
    records: list[tuple[str, dict[str, Any]]] = dataclasses.field(default_factory=list)
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    faults: Counter[str] = dataclasses.field(default_factory=Counter)
    executions: int = 0
    isolation: str = ""


@contextlib.contextmanager
def worker(setup: Setup) -> Iterator[Callable[[Job], Done]]:
    """A function that does jobs in a sandbox of its own."""
    teachers = {name: TEACHERS[name](setup.templates) for name in setup.teachers}
    with Sandbox(1, setup.limits) as sandbox:
        yield lambda job: work(job, setup, teachers[job.teacher], sandbox)


def work(job: Job, setup: Setup, teacher: Teacher, sandbox: Sandbox) -> Done:
    """The records of one problem."""
    done = Done(isolation=sandbox.isolation)
    outcomes: dict[str, Outcome] = {}

    def run(program: Program) -> Outcome:
        if program.source not in outcomes:
            outcomes[program.source] = sandbox.run(program)
            done.executions += 1
        return outcomes[program.source]

    problem = job.problem
    try:
        problem = dataclasses.replace(problem, solution=normalize(problem.solution))
    except (SyntaxError, ValueError, RecursionError):
        done.skipped = "the reference does not parse"
        return done
    reference = run(Program(problem.solution, problem.tests))
    if reference.verdict != Verdict.PASSED:
        done.skipped = f"the reference fails its own tests ({reference.error or reference.verdict})"
        return done
    rng = random.Random(f"{setup.seed}/{problem.id}")
    prompts = list(problem.prompts)
    rng.shuffle(prompts)
    texts = setup.templates
    for number in range(min(job.instructions, len(prompts))):
        asked = Block(BlockType.TEXT, texts.fill("problem", rng, problem=prompts[number]))
        told = Block(BlockType.TEXT, answer(problem.solution))
        split, suffix = (HELDOUT, "h") if job.heldout else (INSTRUCTION, "i")
        turns = (Message("user", (asked,)), Message("assistant", (told,)))
        example = Conversation(f"{problem.id}#{suffix}{number}", GENERATION, turns)
        done.records.append((split, _record(example, problem, asked.content, job.teacher, 0)))
    ways: set[tuple[str, ...]] = set()
    for number in range(job.traces):
        draw = random.Random(f"{setup.seed}/{problem.id}/{number}")
        trace = reflect(problem, teacher, run, draw, rounds=setup.rounds, shown=setup.shown, counts=done.counts)
        if isinstance(trace, str):
            done.dropped[trace] += 1
            continue
        way = tuple(made.attempt.code for made in trace.rounds)
        if way in ways:
            done.dropped["same attempts as another trace"] += 1
            continue
        ways.add(way)
        prompt = draw.choice(problem.prompts)
        example = conversation(f"{problem.id}#r{number}", problem, prompt, trace, texts, draw)
        for made in trace.rounds[:-1]:
            done.faults.update(made.attempt.faults[-1:])
        asked = example.messages[-2].blocks[0].content
        done.records.append((REFLECTION, _record(example, problem, asked, job.teacher, trace.failed)))
    return done


def _record(example: Conversation, problem: Problem, prompt: str, source: str, rounds: int) -> dict[str, Any]:
    return {
        "id": example.id,
        "task": problem.task,
        "family": problem.family,
        "type": example.type,
        "source": source,
        "messages": json.dumps(example.to_json()["messages"], ensure_ascii=False),
        "prompt": prompt,
        "solution": problem.solution,
        "tests": json.dumps(list(problem.tests), ensure_ascii=False),
        "entry_point": problem.entry_point,
        "rounds": rounds,
    }


# ---- the whole build


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
) -> Statistics:
    """Builds a dataset directory, whole or not at all.

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

    Raises:
      BuildError: a setting out of range, an output directory of another build, no examples left.
      TemplateError, SandboxError: see there.
    """
    output = Path(output)
    templates = load_templates(prompts)
    settings = {
        "version": VERSION,
        "problems": _digest([dataclasses.astuple(problem) for problem in problems]),
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
        "prompts": _digest(templates.texts),
    }
    _check(settings)
    if output.exists():
        return _present(output, settings)
    clock = _Clock()
    statistics = Statistics(settings=settings)
    teachers = tuple(teacher.split(","))
    shares = (instruction_share, reflection_share)
    jobs = plan(problems, statistics, heldout, *shares, phrasings, traces_per_problem, seed, teachers)
    setup = Setup(teachers, templates, limits, seed, rounds, shown_tests)
    splits: dict[str, list[dict[str, Any]]] = {INSTRUCTION: [], REFLECTION: [], HELDOUT: []}
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("skipped", "attempts", "dropped", "faults")}
    executions = 0
    with progress("building traces", total=len(jobs), unit="problems") as bar:
        results = ordered_map("data_gen.build:worker", setup, jobs, workers or usable_cpus())
        for done in results:
            bar.advance(1)
            executions += done.executions
            statistics.isolation = done.isolation
            if done.skipped:
                counts["skipped"][done.skipped] += 1
            counts["attempts"].update(done.counts)
            counts["dropped"].update(done.dropped)
            counts["faults"].update(done.faults)
            for split, record in done.records:
                splits[split].append(record)
            bar.note(f"{len(splits[REFLECTION]):,} traces, {executions:,} executions")
    clock.stage("execute")
    statistics.executions = executions
    statistics.problems |= {f"skipped: {reason}": n for reason, n in sorted(counts["skipped"].items())}
    statistics.attempts = dict(counts["attempts"].most_common())
    statistics.faults = dict(counts["faults"].most_common())
    failed = Counter(record["rounds"] for record in splits[REFLECTION])
    statistics.traces = {f"{n} failed": failed[n] for n in sorted(failed)}
    statistics.traces |= {f"dropped: {reason}": n for reason, n in counts["dropped"].most_common()}
    statistics.examples = {name: len(records) for name, records in splits.items()}
    statistics.characters = {name: _characters(records) for name, records in splits.items() if records}
    if not splits[INSTRUCTION] and not splits[REFLECTION]:
        reasons = counts["skipped"] + counts["dropped"]
        told = "; ".join(f"{n} dropped: {reason}" for reason, n in reasons.most_common()) or "none was asked for"
        raise BuildError(f"no training examples are left of {len(problems)} problems ({told}); mend the problems")
    write(splits, statistics, output, clock)
    return statistics


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


def write(
    splits: dict[str, list[dict[str, Any]]], statistics: Statistics, output: Path, clock: _Clock | None = None
) -> None:
    """Writes dataset, card and statistics aside and renames the directory into place.

    Raises:
      BuildError: the directory can not be written.
    """
    from data_gen.builder import write_dataset  # late: importing tensorflow_datasets takes a second

    aside = output.absolute().with_name(f".{output.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        made = write_dataset(splits, aside)
        if clock:
            clock.stage("write")
            statistics.seconds = clock.seconds
        write_card(made / "README.md", statistics.to_json())
        (made / STATISTICS).write_text(json.dumps(statistics.to_json(), indent=2) + "\n", encoding="utf-8")
        os.replace(made, output)
    except OSError as error:
        raise BuildError(f"output {output} can not be written ({error.strerror}); name another --output") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _present(output: Path, settings: dict[str, Any]) -> Statistics:
    """The statistics of the build that is there, if it is the one asked for."""
    there = read_statistics(output)
    plain = json.loads(json.dumps(settings))
    for name in plain.keys() | there.settings.keys():
        old, new = there.settings.get(name), plain.get(name)
        if old != new:
            if name in ("problems", "prompts"):
                raise BuildError(f"output {output} was built from other {name}; name another --output or remove it")
            raise BuildError(
                f"output {output} was built with {name}={old!r}, now it is {new!r}; name another --output or remove it"
            )
    return there


def _check(settings: dict[str, Any]) -> None:
    for name in settings["teacher"].split(","):
        if name not in TEACHERS:
            raise BuildError(f"teacher {name!r} is unknown; there are {', '.join(TEACHERS)}")
    for name in ("rounds", "traces_per_problem", "phrasings", "shown_tests"):
        if settings[name] < 1:
            raise BuildError(f"{name} is {settings[name]}; it must be at least 1")
    for name in ("instruction_share", "reflection_share"):
        if not 0 <= settings[name] <= 1:
            raise BuildError(f"{name} is {settings[name]}; it must lie between 0 and 1")
    heldout = settings["heldout"]
    if heldout < 0 or (isinstance(heldout, float) and heldout >= 1):
        raise BuildError(f"heldout is {heldout}; give a share below 1 or a whole number of tasks")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _characters(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    totals: Counter[str] = Counter()
    for record in records:
        for turn in json.loads(record["messages"]):
            for block in turn["content"]:
                totals[block["type"] if turn["role"] == "assistant" else "user"] += len(block["content"])
    return {name: round(total / len(records), 1) for name, total in sorted(totals.items())}


class _Clock:
    """Wall time of stages that follow each other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def stage(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 2)
        self._last = now
