"""One command from a model to its scores: generate, cut out the programs, score, and write what came of it.

Files of the output directory:

  results.json         model, settings, and for each benchmark the scores, intervals, costs and verdict of every task
  samples.jsonl        one-off programs in evalplus's form, with prompt, answer and verdict beside
  samples-BENCHMARK.jsonl, samples-BENCHMARK-roundN.jsonl   the programs alone, for other tools
  report.html          the same to look at
  evaluation.json, journal/                                 whose it is, and what a killed run goes on from
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rcjax.evaluation.benchmarks import Benchmark, load_benchmark
from rcjax.evaluation.generation import Generated, GenerationSettings, generate_round, journal_identity
from rcjax.evaluation.journal import OutputDirectory, OutputError, replace_text
from rcjax.evaluation.model import EvaluatedModel
from rcjax.evaluation.pass_at_k import wilson_interval
from rcjax.evaluation.prompting import Prompter
from rcjax.evaluation.refinement import Round, refine
from rcjax.evaluation.samples import CodeSample, write_samples
from rcjax.evaluation.scoring import RESULTS_FILE, BenchmarkScore, score_samples
from rcjax.workdir import write_json

SAMPLES_FILE = "samples.jsonl"
REPORT_FILE = "report.html"
FORMAT = 1


def evaluate_benchmarks(
    model: EvaluatedModel,
    benchmarks: Mapping[str, str | Path | None],
    settings: GenerationSettings,
    output: str | Path,
    *,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluates a model on benchmarks; goes on where a killed call with the same arguments stopped.

    Args:
      benchmarks: name -> its file, None for the Hub.
      output: directory; made, or one that holds an unfinished evaluation of the same model and settings.
      about: further facts for ``results.json``, such as the command and versions.

    Returns:
      The content of ``results.json``.

    Raises:
      BenchmarkError, OutputError, PromptError, SettingsError: one sentence each.
    """
    loaded = {name: load_benchmark(name, path) for name, path in benchmarks.items()}
    # Feedback comes from the base tests alone, so the further ones are not even loaded for it.
    base = {
        name: load_benchmark(name.removesuffix("+"), benchmarks[name]) if one.has_plus else one
        for name, one in loaded.items()
    }
    prompter = Prompter(model.tokenizer, settings.prompt_format, model.eos_ids)
    identity = {"model": model.name, "fingerprint": model.fingerprint, **settings.identity()}
    with OutputDirectory(output, identity | {"prompt_format": prompter.format}) as place:
        results = _read(place.path) or {"format": FORMAT, "benchmarks": {}}
        results |= {
            "model": model.describe(),
            "settings": settings.identity()
            | {"prompt_format": prompter.format, "num_samples": settings.num_samples, "rounds": settings.rounds},
            **(about or {}),
        }
        rows = [row for row in read_rows(place.path) if row["benchmark"] not in loaded]
        results.pop("comparison", None)
        for name, benchmark in loaded.items():
            found, new_rows = _run(model, prompter, benchmark, base[name], settings, place)
            results["benchmarks"][name] = found
            rows += new_rows
            replace_text(place.path / SAMPLES_FILE, "".join(json.dumps(row) + "\n" for row in rows))
            write_json(place.path / RESULTS_FILE, results)
    return results


def _run(
    model: EvaluatedModel,
    prompter: Prompter,
    benchmark: Benchmark,
    base: Benchmark,
    settings: GenerationSettings,
    place: OutputDirectory,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What ``results.json`` says about one benchmark, and its rows of ``samples.jsonl``."""
    journal = place.journal(benchmark.name, journal_identity(benchmark, prompter))
    try:

        def generate(number=1, attempts=None) -> list[Generated]:
            return generate_round(model, prompter, benchmark, settings, journal, round=number, attempts=attempts)

        def score(samples: Sequence[Generated]) -> BenchmarkScore:
            return score_samples(benchmark, [CodeSample(sample.task_id, sample.solution) for sample in samples])

        samples = generate()
        start = time.monotonic()
        scored = score(samples)
        score_seconds = time.monotonic() - start
        first = Round(
            number=1,
            score=scored,
            retried=0,
            tokens=sum(sample.tokens for sample in samples),
            executions=0,
            seconds=sum(sample.seconds for sample in samples),
        )
        rounds, further = refine(base, first, samples, settings.rounds, generate, score)
    finally:
        journal.close()
    stem = f"samples-{benchmark.name}"
    write_samples(place.path / f"{stem}.jsonl", _programs(samples))
    latest = {sample.task_id: sample for sample in samples}
    for number, retried in enumerate(further, 2):
        latest |= {sample.task_id: sample for sample in retried}
        write_samples(place.path / f"{stem}-round{number}.jsonl", _programs(latest.values()))
    found = scored.to_json() | {
        "intervals": _intervals(scored),
        "generated_tokens": first.tokens,
        "unfinished": [sample.task_id for sample in samples if not sample.finished],
        "seconds": {"generate": round(first.seconds, 3), "score": round(score_seconds, 3)},
    }
    if settings.rounds > 1:
        found["rounds"] = [one.to_json() for one in rounds]
    return found, [_row(benchmark, sample, scored) for sample in samples]


def _programs(samples: Iterable[Generated]) -> list[CodeSample]:
    return [CodeSample(sample.task_id, sample.solution) for sample in samples]


def _intervals(score: BenchmarkScore) -> dict[str, list[float]]:
    """Wilson intervals of pass@1 over tasks."""
    tests = ("base", "plus") if score.benchmark.has_plus else ("base",)
    return {name: list(wilson_interval(score.pass_at(1, name), len(score.verdicts))) for name in tests}


def _row(benchmark: Benchmark, sample: Generated, score: BenchmarkScore) -> dict[str, Any]:
    verdicts = score.verdicts.get(sample.task_id)
    row = {
        "task_id": sample.task_id,
        "solution": sample.solution,
        "benchmark": benchmark.name,
        "language": benchmark.tasks[sample.task_id].language,
        "number": sample.number,
        "prompt": sample.prompt,
        "answer": sample.answer,
        "tokens": sample.tokens,
        "finished": sample.finished,
    }
    if verdicts is None:  # this machine can not run it
        return row | {"base": "skipped", "plus": None, "failure": score.skipped.get(sample.task_id, "")}
    verdict = verdicts[sample.number]
    return row | {"base": verdict.base, "plus": verdict.plus, "failure": verdict.failure}


def read_results(directory: str | Path) -> dict[str, Any]:
    """``results.json`` of a finished evaluation.

    Raises:
      OutputError: there is none, or it can not be read.
    """
    results = _read(Path(directory))
    if results is None:
        raise OutputError(f"{directory} holds no {RESULTS_FILE} of --mode=evaluate; name the --output of an evaluation")
    return results


def _read(directory: Path) -> dict[str, Any] | None:
    path = directory / RESULTS_FILE
    if not path.exists():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(results["benchmarks"], dict):
            raise ValueError("no benchmarks")
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path} can not be read ({error!r}); evaluate again into another --output") from None
    return results


def read_rows(directory: str | Path) -> list[dict[str, Any]]:
    """Rows of ``samples.jsonl``; none where there is no file."""
    path = Path(directory) / SAMPLES_FILE
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise OutputError(f"{path} can not be read ({error}); evaluate again into another --output") from None
