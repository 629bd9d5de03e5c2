"""``--mode=score``: samples of a file in, figures and ``results.json`` out."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from data_gen.call_sandbox import started_ahead
from rcjax.evaluation.benchmarks import Benchmark, load_benchmark
from rcjax.evaluation.python_sets import with_find_zero_fixed
from rcjax.evaluation.samples import SampleSet, read_samples
from rcjax.evaluation.scoring import BenchmarkScore, score_samples
from rcjax.evaluation.tasks import without_collection
from rcjax.progress import say

SHOWN = 8
AHEAD = 8  # workers at most that start before it is known how many samples there are


class OutputError(ValueError):
    """The results can not be written; the message names the directory."""


def score_files(
    name: str,
    samples: str | Path,
    *,
    data: str | Path | None = None,
    output: str | Path | None = None,
    allow_partial: bool = False,
    workers: int | None = None,
    fixed: bool = False,
) -> BenchmarkScore:
    """Scores the samples of a file, tells the figures, and writes ``results.json`` into ``output``.

    Args:
      name: of the benchmark.
      samples: file as ``read_samples`` takes it.
      data: the benchmark's file, None: from the Hub.
      output: directory, made if need be; None writes nothing.
      allow_partial: take samples of a part of the tasks.
      workers: programs that run at a time, None: as many as there are usable CPUs.
      fixed: let HumanEval/32 be passed, which evalplus 0.3.1 does not.

    Raises:
      BenchmarkError, SamplesError: of the files; OutputError: before anything is run.
    """
    # Of kind "evalplus", whose workers are worth starting now: their interpreters get ready beside the reading.
    count = min(workers or len(os.sched_getaffinity(0)), AHEAD) if name.endswith("+") else 0
    with started_ahead(count):
        benchmark, chosen = _read(name, samples, data, allow_partial, fixed)
        if output is not None:
            try:
                Path(output).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"--output={output} can not be made ({error.strerror}); name another") from None
        score = score_samples(benchmark, chosen, workers=workers)
    tell(score)
    if output is not None:
        try:
            say(f"results: {score.save(output)}")
        except OSError as error:
            raise OutputError(f"--output={output} can not be written ({error.strerror}); name another") from None
    return score


def _read(
    name: str, samples: str | Path, data: str | Path | None, allow_partial: bool, fixed: bool
) -> tuple[Benchmark, SampleSet]:
    """The benchmark and the samples of it; tells what is odd about them."""
    with without_collection():
        benchmark = load_benchmark(name, data)
        gc.freeze()  # else the collector would walk all inputs again and again
    say(f"{benchmark.name}: {len(benchmark.tasks)} tasks, data {benchmark.version}")
    if benchmark.version.startswith("sha256:"):
        say("this data is none of the released versions that are known here; do not compare with published figures")
    if fixed:
        benchmark = with_find_zero_fixed(benchmark)
    chosen = read_samples(samples, benchmark, allow_partial)
    for ids, what in (
        (chosen.unknown, "samples of unknown tasks are left out"),
        (chosen.missing, "tasks have no sample; the figures are of the others alone"),
        (chosen.empty, "tasks have empty samples, which count as failed unless their tests pass"),
    ):
        if ids:
            say(f"{len(ids)} {what}: {_some(ids)}")
    return benchmark, chosen


def tell(score: BenchmarkScore) -> None:
    """Prints the figures."""
    if score.skipped:
        say(f"{len(score.skipped)} tasks skipped, in no figure: {next(iter(score.skipped.values()))}")
    for task_id, note in score.notes.items():
        say(f"{task_id}: {note}")
    if not score.verdicts:
        return
    partial = f" (partial: {len(score.verdicts)} of {len(score.benchmark.tasks)} tasks)" if score.partial else ""
    for tests in ("base", "plus") if score.benchmark.has_plus else ("base",):
        figures = "   ".join(f"pass@{k} {score.pass_at(k, tests):.1%}" for k in score.ks)
        passed = sum(count for _, count in score.counts(tests).values())
        drawn = sum(count for count, _ in score.counts(tests).values())
        say(f"{score.benchmark.name} {tests}: {figures}   ({passed} of {drawn} samples){partial}")


def _some(ids: tuple[str, ...]) -> str:
    return ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
