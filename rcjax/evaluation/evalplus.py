"""Verdicts as evalplus 0.3.1 gives them, in the project's sandbox.

A program is run on the base and on the plus inputs as if in two processes, and must return what the canonical program
returned (``expected.py``); ``data_gen/call_sandbox.py`` says who holds what. Limits, statuses and rules are evalplus's:

    an input may take max(1 s, 4 times the canonical program's time); more is "fail", as any exception is
    all inputs of a run may take min(60 s, the sum of those limits) and 2 s; more is "timeout", as a crash is
    the first wrong output ends the run

What is quicker here: inputs are loaded once a worker, not sent with each program; the longest runs start first, and
those of programs that can keep no state (``stateless.py``) are cut into parts, or base and plus inputs taken in one run
where both are short; at the end runs are shared; equal programs are run once; outputs that come as the same bytes need
no comparison.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import math
import os
import pickle
import reprlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_gen.call_frames import COMPARED, FOREIGN, LARGE, LOADED, OUTPUT, RAISED, SAME, TRACEBACK, OutOfTime
from data_gen.call_sandbox import Call, CallsLost, CallWorker, Judge, packed
from data_gen.isolated import feedback
from data_gen.isolated.evalplus_rules import FLOATS_ATOL, rule_of
from rcjax.evaluation.expected import SUITES, Expected, expected_outputs, inputs_of
from rcjax.evaluation.parts import Part, SuiteVerdict, Work
from rcjax.evaluation.samples import CodeSample
from rcjax.evaluation.stateless import is_stateless, keeps_to_plain_modules
from rcjax.evaluation.tasks import Benchmark, Task

MIN_SECONDS = 1.0
FACTOR = 4.0
MOST_SECONDS = 60.0  # of a whole run
MORE_SECONDS = 2.0  # what evalplus grants a run beyond
PART_SECONDS = 2.0  # of the canonical program: about so long is a part of a run that is cut
# evalplus limits a run to 4 GiB of address space, in which it holds the expected outputs of the whole benchmark: this
# is what is left to a program (VmSize measured in evalplus 0.3.1; in MBPP+ it shrinks in the course of a run). One
# input of Mbpp/255 needs more, so no program passes it there.
MEMORY_MB = {"humaneval": 1900, "mbpp": 950}
OWN_EQUALITY = "it returned an object of a class of its own that says itself that it equals the expected output"
FIND_ZERO = (
    "evalplus 0.3.1 counts HumanEval/32 as failed whatever is returned; by its oracle, mended after the release, "
    "this program passed: --evalplus_rules=fixed counts it so"
)


def score(
    benchmark: Benchmark,
    samples: Sequence[CodeSample],
    done: Callable[[int, Any], None],
    workers: int | None,
) -> None:
    """Scorer of kind "evalplus", see ``scoring.Scorer``."""
    from rcjax.evaluation.scoring import SampleVerdict

    expected = expected_outputs(benchmark, workers)
    suites = SUITES if benchmark.has_plus else SUITES[:1]
    indices: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    for index, sample in enumerate(samples):
        indices[sample.task_id, sample.solution].append(index)
    programs = list(indices)
    work, stateless, plain = Work(), [], []
    for number, (task_id, source) in enumerate(programs):
        stateless.append(is_stateless(source))
        plain.append(keeps_to_plain_modules(source))
        cut = [_parts(number, suite, expected.suite(task_id, suite).seconds, stateless[-1]) for suite in suites]
        shared = stateless[-1] and _rule(benchmark.tasks[task_id]) != "root"  # whose text tells of all inputs
        work.add(number, dict(zip(suites, cut, strict=True)), shared)
    tasks = {task_id: benchmark.tasks[task_id] for task_id, _ in programs}
    inputs = packed({task_id: inputs_of(task) for task_id, task in tasks.items()})
    pool = _Pool(inputs)
    failures: list[BaseException] = []
    told = threading.Lock()

    def run_parts() -> None:
        judge = Judge()
        try:
            while (part := work.take()) is not None:
                task_id, source = programs[part.number]
                with pool.worker(plain[part.number]) as worker:
                    task = tasks[task_id]
                    verdicts = run_part(worker, judge, task, source, expected, part, work, stateless[part.number])
                if part.then and len(verdicts) == 1:  # in a run of its own
                    last = len(expected.suite(task_id, part.then).seconds)
                    work.put(dataclasses.replace(part, suite=part.then, first=0, last=last, then=""))
                whole = work.finish(part, verdicts)
                if whole is not None:
                    limits = [total_limit(time_limits(expected.suite(task_id, suite).seconds)) for suite in suites]
                    joined = [_whole(whole[suite], limit) for suite, limit in zip(suites, limits, strict=True)]
                    with told:
                        for index in indices[task_id, source]:
                            done(index, _verdict(joined, SampleVerdict))
        except BaseException as error:
            failures.append(error)
            work.stop()
        finally:
            judge.close()

    count = workers or len(os.sched_getaffinity(0))
    threads = [threading.Thread(target=run_parts, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:  # an interrupt: runs that are under way may take a minute, nobody waits for them
        work.stop()
        raise
    pool.close()
    if failures:
        raise failures[0]


class _Pool:
    """Workers that threads lend each other: few programs need numpy, and its import takes longer than most runs."""

    def __init__(self, inputs: bytes):
        self._inputs = inputs
        self._idle: dict[bool, list[CallWorker]] = {True: [], False: []}

    @contextlib.contextmanager
    def worker(self, plain: bool) -> Iterator[CallWorker]:
        """One that nobody else has."""
        try:
            worker = self._idle[plain].pop()
        except IndexError:
            worker = CallWorker(self._inputs, plain)
        try:
            yield worker
        finally:
            self._idle[plain].append(worker)

    def close(self) -> None:
        """Ends those that are idle."""
        for workers in self._idle.values():
            while workers:
                workers.pop().close()


def time_limits(seconds: Sequence[float]) -> list[float]:
    """Seconds that a program may take for each input, from those of the canonical program."""
    return [FACTOR * one if FACTOR * one > MIN_SECONDS else MIN_SECONDS for one in seconds]


def total_limit(limits: Sequence[float]) -> float:
    """Seconds that a program may take for all inputs."""
    return min(MOST_SECONDS, sum(limits)) + MORE_SECONDS


def _parts(number: int, suite: str, seconds: Sequence[float], stateless: bool) -> list[Part]:
    """The inputs of a suite in one part, or in several of about ``PART_SECONDS`` where their order can not matter."""
    if sum(seconds) < 2 * PART_SECONDS or not stateless:
        return [Part(-sum(seconds), number, suite, 0, len(seconds))]
    parts, first, taken = [], 0, 0.0
    for index, one in enumerate(seconds):
        taken += one
        if taken >= PART_SECONDS or index == len(seconds) - 1:
            parts.append(Part(-taken, number, suite, first, index + 1))
            first, taken = index + 1, 0.0
    return parts


def _whole(parts: Sequence[SuiteVerdict], limit: float) -> SuiteVerdict:
    """What one run over all parts would have come to."""
    seconds = 0.0
    for part in parts:
        seconds += part.seconds
        if seconds > limit:
            return SuiteVerdict("timeout", f"TimeoutError: no end within {limit:g} s\n", part.own_equality)
        if part.status != "pass":
            return part
    return SuiteVerdict("pass", "", any(part.own_equality for part in parts))


def _verdict(suites: Sequence[SuiteVerdict], make: Callable[..., Any]) -> Any:
    base, plus = suites[0], suites[1] if len(suites) > 1 else None
    failure = base.failure or (plus.failure if plus else "")
    note = OWN_EQUALITY if any(suite.own_equality for suite in suites) else ""
    return make(base=base.status, plus=plus and plus.status, failure=failure, note=note)


def _rule(task: Task) -> str:
    return rule_of(task.data["family"], task.entry_point)


def run_part(
    worker: CallWorker,
    judge: Judge,
    task: Task,
    source: str,
    expected: Expected,
    part: Part,
    work: Work,
    stateless: bool = False,
) -> list[SuiteVerdict]:
    """Runs one program on a part of its task's inputs; one verdict, two where ``part.then`` was run as well."""
    if work.is_decided(part):
        return [SuiteVerdict("pass")]
    verdicts: list[SuiteVerdict] = []
    suites = (part.suite, part.then) if part.then else (part.suite,)
    first, last, lost = part.first, part.last, 0
    while len(verdicts) < len(suites):
        left = suites[len(verdicts) :]
        limits = [time_limits(expected.suite(task.id, suite).seconds) for suite in left]
        call = Call(
            source=source,
            task=task.id,
            suites=left,
            entry_point=task.entry_point,
            rule=_rule(task),
            seconds=[*limits[0][first:last], *itertools.chain(*limits[1:])],
            memory_mb=MEMORY_MB[task.data["family"]],
            stateless=stateless,
            first=first,
        )
        try:
            with contextlib.closing(worker.run(call, total_limit(limits[0]))) as frames:
                for suite, own in zip(left, limits, strict=True):
                    run = _Run(worker, judge, task, suite, call, expected, range(first, last), own, part.number)
                    if suite != left[0]:
                        worker.extend(total_limit(own))
                        run.begin()
                    # Outputs on the first suite's inputs all come before those on the second's.
                    with work.divided(run) if suite == suites[-1] else contextlib.nullcontext():
                        verdict = run.verdict(frames, total_limit(own))
                    verdicts.append(dataclasses.replace(verdict, seconds=time.monotonic() - run.started))
                    if verdict.status != "pass":
                        return verdicts
                    if len(verdicts) < len(suites):
                        first, last, lost = 0, len(expected.suite(task.id, suites[len(verdicts)]).seconds), 0
        except CallsLost:
            # A worker may be lost through no fault of the program, but hardly twice.
            first, last, lost = run.first, run.last, lost + 1  # what others have taken over is theirs
            if lost > 1:
                return [*verdicts, SuiteVerdict("timeout", "Crashed: the program took its interpreter down\n")]
    return verdicts


class _Run:
    """One program on a range of the inputs of a suite, its frames taken in order."""

    def __init__(self, worker, judge, task, suite, call, expected, indices: range, limits, number: int):
        outputs = expected.suite(task.id, suite)
        self.worker, self.judge, self.task, self.suite, self.call = worker, judge, task, suite, call
        self.expected, self.same, self.floats = expected, outputs.same, outputs.floats
        self.at, self.last, self.limits = indices.start, indices.stop, limits  # others may lower `last`
        self.number, self.first, self.end, self.started = number, indices.start, indices.stop, time.monotonic()
        self.atol = task.data["atol"]
        if self.atol == 0 and any(self.floats[: self.at]):
            self.atol = FLOATS_ATOL
        self.own_equality = self.loaded = False

    def seconds_left(self, at: int) -> float:
        """About so long it will take from there on."""
        return (time.monotonic() - self.started) * (self.last - at) / (at - self.first + 1)

    def begin(self) -> None:
        """Outputs come from now on."""
        self.loaded = True
        if 0 not in self.same:
            frames, ends = (
                self.expected.frames(self.task.id, self.suite),
                self.expected.suite(self.task.id, self.suite).ends,
            )
            start = ends[self.at - 1] if self.at else 0
            self.worker.reader.expect(frames[start:], [end - start for end in ends[self.at :]] if start else ends)

    def verdict(self, frames, seconds: float) -> SuiteVerdict:
        """Takes frames until the range is through or the program failed; ``seconds`` are its limit."""
        raised = False
        self.seconds = seconds
        if self.loaded and self.at == self.last:
            return self._passed()
        try:
            for kind, content in frames:
                if kind == TRACEBACK and raised:
                    return self._failed(self._traceback(content))
                if kind == RAISED:
                    raised = True
                elif kind == LOADED:
                    self.begin()
                elif kind == SAME:
                    if self.atol == 0 and any(self.floats[self.at : self.at + content]):
                        self.atol = FLOATS_ATOL
                    self.at += content
                else:
                    failure = self._output(kind, content, frames)
                    if failure:
                        return self._failed(failure)
                    self.at += 1
                if not raised and self.loaded and self.at >= self.last:
                    return self._passed()
        except OutOfTime:
            if not raised:
                return self._ended("timeout", f"TimeoutError: no end within {seconds:g} s\n")
        if raised:
            return self._failed("an exception that can not be shown\n")
        return self._ended("timeout", "Crashed: the program ended before it returned\n")

    def _output(self, kind: int, content: bytearray, frames) -> str:
        """Judges an output: what is wrong with it, "" if nothing is."""
        expected = self.expected.content(self.task.id, self.suite, self.at)
        if kind == OUTPUT and self.same[self.at] and content == expected:
            if self.atol == 0 and self.floats[self.at]:
                self.atol = FLOATS_ATOL
            return ""
        if kind == OUTPUT:
            arguments = pickle.dumps(list(self._arguments()), 5)
            item = (self.call.rule, arguments, bytes(content), bytes(expected), self.atol)
            ((right, self.atol, text),) = self.judge.compare([item], self.seconds)
        elif kind == FOREIGN:
            right, self.atol, text = self._compared_there(frames, expected)
            self.own_equality = self.own_equality or right
        else:
            right, text = False, "its output is too large" if kind == LARGE else "no output"
        return "" if right is True else f"{feedback.scrub(str(text))}\n"

    def _compared_there(self, frames, expected) -> tuple[bool, float, str]:
        """What the program's own process says of an output of a class that is known there alone."""
        failed = False, self.atol, "its output's own comparison failed"
        try:
            self.worker.hand_in(bytes(expected), self.atol)
            kind, content = next(frames, (RAISED, b""))
            right, atol, text = json.loads(content) if kind == COMPARED else failed
        except (OSError, ValueError, TypeError, RecursionError):  # a program may write such frames itself
            return failed
        if not (isinstance(right, bool) and isinstance(atol, (int, float)) and math.isfinite(atol)):
            return failed
        return right, float(atol), str(text) or failed[2]

    def _arguments(self) -> Sequence[Any]:
        return self.task.data[f"{self.suite}_input"][self.at]

    def _traceback(self, content: bytearray) -> str:
        try:
            error = feedback.genuine(json.loads(content))
        except (ValueError, RecursionError):
            return "an exception that can not be shown\n"
        if error["type"] in ("_TimeUp", "TimeoutException") and self.loaded and self.at < self.end:
            return f"TimeoutError: no result within {self.limits[self.at]:.3g} s\n"
        return feedback.written(error, self.call.source.splitlines())

    def _failed(self, failure: str) -> SuiteVerdict:
        return self._ended("fail", failure)

    def _ended(self, status: str, failure: str) -> SuiteVerdict:
        if self.loaded and self.at < self.end:
            arguments = ", ".join(_SHORT.repr(argument) for argument in self._arguments())
            failure = f"{self.task.entry_point}({arguments}): {failure}"
        return SuiteVerdict(status, failure, self.own_equality)

    def _passed(self) -> SuiteVerdict:
        if self.call.rule == "root" and self.task.data.get("rules") != "fixed":
            return SuiteVerdict("fail", FIND_ZERO, self.own_equality)
        return SuiteVerdict("pass", "", self.own_equality)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 3 * feedback.SHOWN
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxdict = 20
