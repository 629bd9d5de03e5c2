"""One problem, all of its records: a pure function of (job, setup) but for what teacher and sandbox answer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_gen.checking import LanguageError, Runner, check
from data_gen.mutations import normalize
from data_gen.problems import Problem
from data_gen.reflection import conversation, own_tests, reflect
from data_gen.sandbox import Limits, Program, Sandbox, Verdict
from data_gen.teachers import Teacher, TeacherError
from data_gen.teachers.choice import TeacherOptions, make_teacher
from data_gen.teachers.code_blocks import cut_out, fenced
from data_gen.templates import Templates
from data_gen.verifiers import Verifier
from data_gen.verifiers.choice import make_verifiers
from rcjax.blocks import GENERATION, Block, BlockType, Conversation, Message

INSTRUCTION, REFLECTION, HELDOUT = "instruction", "reflection", "heldout"  # splits


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every worker needs."""

    teachers: tuple[str, ...]
    templates: Templates
    limits: Limits
    seed: int
    rounds: int
    shown: int
    verifiers: tuple[str, ...] = ()
    keep_first_try: bool = False
    options: TeacherOptions = dataclasses.field(default_factory=TeacherOptions)


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

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the order of the fields; ``from_json`` is its inverse."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Done:
        """Inverse of ``to_json``."""
        values = {name: Counter(value) if isinstance(value, dict) else value for name, value in values.items()}
        values["records"] = [(split, record) for split, record in values["records"]]
        return cls(**values)


@contextlib.contextmanager
def worker(setup: Setup) -> Iterator[Callable[[Job], Done]]:
    """A function that does jobs in a sandbox of its own."""
    with contextlib.ExitStack() as stack:
        teachers = {
            name: stack.enter_context(make_teacher(name, setup.templates, setup.options)) for name in setup.teachers
        }
        verifiers = make_verifiers(setup.verifiers, teachers, setup.seed)
        sandbox = stack.enter_context(Sandbox(1, setup.limits))
        yield lambda job: work(job, setup, teachers[job.teacher], sandbox, verifiers)


def work(job: Job, setup: Setup, teacher: Teacher, sandbox: Sandbox, verifiers: Sequence[Verifier] = ()) -> Done:
    """The records of one problem.

    Raises:
      TeacherStop: from the teacher.
      VerifierError: from a verifier.
    """
    done = Done(isolation=sandbox.isolation)
    run = Runner(sandbox, job.problem.language)
    try:
        _work(job, setup, teacher, run, verifiers, done)
    except LanguageError as error:
        done.skipped = str(error)
    done.executions = run.executions
    return done


def _work(job: Job, setup: Setup, teacher: Teacher, run: Runner, verifiers: Sequence[Verifier], done: Done) -> None:
    problem = job.problem
    if teacher.needs_reference:
        if problem.language != "python" or not problem.solution or not problem.all_tests:
            lacks = (
                "not Python" if problem.language != "python" else "no reference" if not problem.solution else "no tests"
            )
            done.skipped = f"{lacks}, which teacher {teacher.name} needs"
            return
        try:
            problem = dataclasses.replace(problem, solution=normalize(problem.solution))
        except (SyntaxError, ValueError, RecursionError):
            done.skipped = "the reference does not parse"
            return
    if problem.solution and problem.all_tests:
        reference = run(Program(problem.solution, problem.all_tests))
        if reference.verdict != Verdict.PASSED:
            done.skipped = f"the reference fails its own tests ({reference.error or reference.verdict})"
            return
        for verifier in verifiers:
            if (said := verifier.verify(problem, problem.solution, run)).verdict == "failed":
                done.skipped = f"the reference fails {verifier.name} ({said.error})"
                return
    rng = random.Random(f"{setup.seed}/{problem.id}")
    prompts = list(problem.prompts)
    rng.shuffle(prompts)
    texts = setup.templates
    plain: list[tuple[str, str, str]] = []  # (split, id, question) of examples of two turns
    for number in range(min(job.instructions, len(prompts))):
        asked = texts.fill("problem", rng, problem=prompts[number])
        split, suffix = (HELDOUT, "h") if job.heldout else (INSTRUCTION, "i")
        plain.append((split, f"{problem.id}#{suffix}{number}", asked))
    told = fenced(problem.solution, problem.language) if problem.solution else ""
    if told:
        done.records += [(split, _plain(name, problem, asked, told, job.teacher)) for split, name, asked in plain]
    ways: set[tuple[str, ...]] = set()
    # Without a reference the answer of a trace, which is known to be right, is the only one there is.
    for number in range(job.traces if told else max(job.traces, 1)):
        draw = random.Random(f"{setup.seed}/{problem.id}/{number}")
        traced = _trace(problem, f"{problem.id}#r{number}", setup, teacher, run, verifiers, draw, ways, done)
        if traced is None:
            continue
        record, answer = traced
        if number < job.traces:
            done.records.append((REFLECTION, record))
        if not told:
            told = answer
            solved = dataclasses.replace(
                problem, solution=record["solution"], tests=tuple(json.loads(record["tests"])), hidden=()
            )
            done.records += [(split, _plain(name, solved, asked, told, job.teacher)) for split, name, asked in plain]


def _trace(
    problem: Problem,
    name: str,
    setup: Setup,
    teacher: Teacher,
    run: Runner,
    verifiers: Sequence[Verifier],
    draw: random.Random,
    ways: set[tuple[str, ...]],
    done: Done,
) -> tuple[dict[str, Any], str] | None:
    """One reflection record and its answer; None where there is none, with the reason counted."""
    try:
        trace = reflect(
            problem,
            teacher,
            run,
            draw,
            rounds=setup.rounds,
            shown=setup.shown,
            counts=done.counts,
            verifiers=verifiers,
            keep_first_try=setup.keep_first_try,
        )
        if isinstance(trace, str):
            done.dropped[trace] += 1
            return None
        way = tuple(made.attempt.code for made in trace.rounds)
        if way in ways:
            done.dropped["same attempts as another trace"] += 1
            return None
        ways.add(way)
        last = trace.rounds[-1].attempt
        answer = teacher.re_answer(problem, last, draw)
    except TeacherError as error:
        done.dropped[f"teacher: {error}"] += 1
        return None
    said = cut_out(answer, problem.language)
    judged = (
        problem if problem.all_tests else dataclasses.replace(problem, tests=own_tests(last.code, problem.language))
    )
    if said is None or not check(judged, said.code, judged.tests, run, verifiers).passed:
        done.dropped["the final answer fails"] += 1
        return None
    prompt = draw.choice(problem.prompts)
    example = conversation(name, problem, prompt, trace, answer, setup.templates, draw)
    for made in trace.rounds[:-1]:
        done.faults.update(made.attempt.faults[-1:])
    asked = example.messages[-2].blocks[0].content
    solved = judged if judged.solution else dataclasses.replace(judged, solution=said.code)
    verdicts = trace.verdicts if setup.verifiers else {}
    return _record(example, solved, asked, teacher.name, trace.failed, verdicts), answer


def _plain(name: str, problem: Problem, asked: str, told: str, source: str) -> dict[str, Any]:
    turns = (
        Message("user", (Block(BlockType.TEXT, asked),)),
        Message("assistant", (Block(BlockType.TEXT, told),)),
    )
    return _record(Conversation(name, GENERATION, turns), problem, asked, source, 0, {})


def _record(
    example: Conversation, problem: Problem, prompt: str, source: str, rounds: int, verdicts: dict[str, str]
) -> dict[str, Any]:
    record = {
        "id": example.id,
        "task": problem.task,
        "family": problem.family,
        "type": example.type,
        "source": source,
        "messages": json.dumps(example.to_json()["messages"], ensure_ascii=False),
        "prompt": prompt,
        "solution": problem.solution,
        "tests": json.dumps(list(problem.all_tests), ensure_ascii=False),
        "entry_point": problem.entry_point,
        "rounds": rounds,
    }
    # Only where they say something: a set that needs neither has the features it always had.
    if problem.language != "python":
        record["language"] = problem.language
    if verdicts:
        record["verdicts"] = json.dumps(verdicts)
    return record
