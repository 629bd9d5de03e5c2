"""One-off generation on held-out problems: generate, cut out the code, run the tests, count.

``evaluate`` does all of it; ``score`` takes generations that are already there. What comes out is an
``Evaluation``: every sample with its verdict, the figures made of them, and its form on disk.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_gen.sandbox import Limits, Program, Sandbox, Verdict
from rcjax import progress as console
from rcjax.evaluation.pass_at_k import mean_pass_at_k, wilson_interval
from rcjax.evaluation.problems import Problem

EVALUATION_FILE = "evaluation.json"
SAMPLES_FILE = "samples.jsonl"
CONFIDENCE = 0.95
DEFAULT_LIMITS = Limits()
_FORMAT = 1

_PYTHON_FENCE = re.compile(r"^```[ \t]*(?:python3?|py)[ \t\r]*$\n?", re.IGNORECASE | re.MULTILINE)
_CLOSING_FENCE = re.compile(r"^```", re.MULTILINE)


class EvaluationError(ValueError):
    """An evaluation that can not be made or read; the message names the file or the mismatch."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One program that a model wrote for one problem, and how it fared.

    Attributes:
      problem: what was asked.
      number: 0 for the first sample of the problem, 1 for the second, ...
      generation: everything that the model wrote.
      code: the program cut out of it.
      verdict: what the run came to.
      error: class of the exception that ended it, empty if none did.
      feedback: output and traceback of the run.
      seconds: wall time of the run.
    """

    problem: Problem
    number: int
    generation: str
    code: str
    verdict: Verdict
    error: str
    feedback: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.verdict == Verdict.PASSED

    def to_json(self) -> dict[str, Any]:
        """A flat dictionary: the problem's fields, then the sample's."""
        problem = dataclasses.asdict(self.problem)
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "problem"}
        return {**problem, "tests": list(self.problem.tests), **own, "verdict": self.verdict.value}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Sample:
        """Inverse of ``to_json``; KeyError or ValueError for what is no sample."""
        problem = {field.name: row[field.name] for field in dataclasses.fields(Problem)}
        own = {field.name: row[field.name] for field in dataclasses.fields(cls) if field.name != "problem"}
        own["verdict"] = Verdict(own["verdict"])
        return cls(problem=Problem(**{**problem, "tests": tuple(problem["tests"])}), **own)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Samples in the order they were asked for, and what they come to.

    Attributes:
      samples: at least one; every problem may have several.
      seconds: wall time by part, ``generate`` and ``execute``.
    """

    samples: tuple[Sample, ...]
    seconds: Mapping[str, float]

    @property
    def num_problems(self) -> int:
        return len(self._counts())

    def pass_at(self, k: int) -> float:
        """Unbiased pass@k, the mean over problems; ValueError if a problem has fewer than k samples."""
        return mean_pass_at_k(self._counts().values(), k)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson interval of pass@1 at ``CONFIDENCE`` over the problems."""
        return wilson_interval(self.pass_at(1), self.num_problems, CONFIDENCE)

    def summary(self) -> dict[str, Any]:
        """The figures as JSON: pass@1, passed, num_problems, num_samples, interval, by_family, verdicts, errors.

        ``verdicts`` has every verdict, also those that did not occur; ``errors`` counts exception classes of
        samples that did not pass, most frequent first.
        """
        verdicts = collections.Counter(sample.verdict.value for sample in self.samples)
        errors = collections.Counter(sample.error for sample in self.samples if not sample.passed and sample.error)
        families = {}
        for family in sorted({sample.problem.family for sample in self.samples}):
            members = tuple(sample for sample in self.samples if sample.problem.family == family)
            families[family] = Evaluation(members, {})._figures()
        return {
            **self._figures(),
            "num_samples": len(self.samples),
            "confidence": CONFIDENCE,
            "by_family": families,
            "verdicts": {verdict.value: verdicts[verdict.value] for verdict in Verdict},
            "errors": dict(sorted(errors.items(), key=lambda item: (-item[1], item[0]))),
        }

    def to_json(self) -> dict[str, Any]:
        """``summary()`` with ``seconds`` and the ``samples`` themselves: what the report shows."""
        return {
            **self.summary(),
            "seconds": dict(self.seconds),
            "samples": [sample.to_json() for sample in self.samples],
        }

    def _counts(self) -> dict[str, tuple[int, int]]:
        """Problem id to (samples, passed samples)."""
        counts: dict[str, tuple[int, int]] = {}
        for sample in self.samples:
            drawn, passed = counts.get(sample.problem.id, (0, 0))
            counts[sample.problem.id] = (drawn + 1, passed + sample.passed)
        return counts

    def _figures(self) -> dict[str, Any]:
        return {
            "pass@1": self.pass_at(1),
            "passed": sum(sample.passed for sample in self.samples),
            "num_problems": self.num_problems,
            "interval": list(self.interval),
        }

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes ``evaluation.json`` and ``samples.jsonl``; the directory is replaced as a whole."""
        directory = Path(directory)
        aside = directory.with_name(f".{directory.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        head = {"format": _FORMAT, **self.summary(), "seconds": dict(self.seconds)}
        (aside / EVALUATION_FILE).write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")
        with open(aside / SAMPLES_FILE, "w", encoding="utf-8") as file:
            for sample in self.samples:
                file.write(json.dumps(sample.to_json()) + "\n")
        shutil.rmtree(directory, ignore_errors=True)
        os.rename(aside, directory)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Evaluation:
        """Reads what ``save`` wrote.

        Raises:
          EvaluationError: a file is missing or damaged; the message names it and says to evaluate again.
        """
        path = Path(directory) / EVALUATION_FILE
        try:
            head = json.loads(path.read_text(encoding="utf-8"))
            expected, seconds = head["num_samples"], head["seconds"]
            path = path.with_name(SAMPLES_FILE)
            with open(path, encoding="utf-8") as file:
                samples = tuple(Sample.from_json(json.loads(line)) for line in file)
            if len(samples) != expected:
                raise ValueError(f"{len(samples)} of {expected} samples")
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = type(error).__name__ if isinstance(error, KeyError) else str(error)
            raise EvaluationError(f"{path} can not be read ({why}); delete {directory} and evaluate again") from error
        return cls(samples, seconds)


def extract_code(generation: str) -> str:
    """The program in a generation: what stands in the first ```` ```python ```` fence, else the whole text.

    Fences count at the start of a line, so one inside an indented docstring is left alone. A fence that is
    never closed, as in a generation cut short, runs to the end.
    """
    opening = _PYTHON_FENCE.search(generation)
    if opening is None:
        return generation
    body = generation[opening.end() :]
    closing = _CLOSING_FENCE.search(body)
    if closing is not None:
        return body[: closing.start()]
    return body.partition("```")[0]


def evaluate(
    problems: Sequence[Problem],
    generate_fn: Callable[[list[str]], Sequence[str]],
    sandbox_limits: Limits = DEFAULT_LIMITS,
    progress: Callable[..., Any] = console.progress,
    workers: int | None = None,
) -> Evaluation:
    """Lets a model write one program a problem and runs the tests on it.

    Args:
      problems: what to ask, in the order that the samples keep.
      generate_fn: prompts (task statements) -> what the model wrote to each; called once, so that it can sort
        prompts into batches, and showing its own progress.
      sandbox_limits: of each run.
      progress: as ``rcjax.progress.progress``.
      workers: programs that run at a time; None lets the sandbox choose.

    Raises:
      EvaluationError: no problems, or another number of generations than of prompts.
    """
    if not problems:
        raise EvaluationError("there are no problems to evaluate on; give a heldout split with records")
    start = time.monotonic()
    generations = list(generate_fn([problem.prompt for problem in problems]))
    seconds = time.monotonic() - start
    scored = score(problems, generations, sandbox_limits, progress, workers)
    return dataclasses.replace(scored, seconds={"generate": seconds, **scored.seconds})


def score(
    problems: Sequence[Problem],
    generations: Sequence[str],
    sandbox_limits: Limits = DEFAULT_LIMITS,
    progress: Callable[..., Any] = console.progress,
    workers: int | None = None,
) -> Evaluation:
    """Runs the tests of each problem on the generation beside it; a problem may come several times.

    Raises:
      EvaluationError: no problems, or the two sequences differ in length.
    """
    if not problems or len(problems) != len(generations):
        raise EvaluationError(f"{len(generations)} generations for {len(problems)} problems: need one for each")
    start = time.monotonic()
    codes = [extract_code(generation) for generation in generations]
    programs = [Program(code, problem.tests) for problem, code in zip(problems, codes, strict=True)]
    drawn: collections.Counter[str] = collections.Counter()
    samples = []
    passed = 0
    with (
        progress("running tests", total=len(programs), unit="programs") as bar,
        Sandbox(workers=workers, limits=sandbox_limits) as sandbox,
    ):
        outcomes = sandbox.map(programs)
        for problem, generation, code, outcome in zip(problems, generations, codes, outcomes, strict=True):
            sample = Sample(
                problem=problem,
                number=drawn[problem.id],
                generation=generation,
                code=code,
                verdict=outcome.verdict,
                error=outcome.error,
                feedback=outcome.feedback,
                seconds=round(outcome.seconds, 4),
            )
            drawn[problem.id] += 1
            samples.append(sample)
            passed += sample.passed
            bar.advance(1)
            bar.note(f"pass@1 so far {passed / len(samples):.1%}")
    return Evaluation(tuple(samples), {"execute": time.monotonic() - start})


def write_results(
    path: str | os.PathLike[str],
    evaluation: Evaluation,
    *,
    baseline: Evaluation | None = None,
    export: str | os.PathLike[str] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Writes ``results.json``, whole or not at all, and returns its content.

    Args:
      path: the file.
      evaluation: of the run; its ``summary()`` makes the top level.
      baseline: of the run on instructions alone; left out when it was not run.
      export: directory of the exported checkpoint.
      seconds: wall time by stage.
    """
    results = evaluation.summary()
    if baseline is not None:
        results["baseline"] = baseline.summary()
    results["export"] = None if export is None else str(export)
    results["seconds"] = {stage: round(float(value), 3) for stage, value in (seconds or {}).items()}
    path = Path(path)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)
    return results
