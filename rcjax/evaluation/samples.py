"""Samples as evalplus takes them: JSON lines with ``task_id`` and ``solution`` (a program) or ``completion``."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rcjax.evaluation.tasks import Benchmark, BenchmarkError, read_records

SHOWN = 8  # ids in an error message


class SamplesError(ValueError):
    """Samples that can not be scored; the message names the file, the ids and the mend."""


@dataclasses.dataclass(frozen=True)
class CodeSample:
    """One program for one task.

    Attributes:
      task_id: of a task of the benchmark.
      solution: the whole program: prompt and completion where a completion was given.
      empty: whether what was given holds no text.
    """

    task_id: str
    solution: str
    empty: bool = False


@dataclasses.dataclass(frozen=True)
class SampleSet(Sequence[CodeSample]):
    """The samples of a file that belong to the benchmark, and what is wrong with it.

    Attributes:
      samples: in the order of the file.
      unknown: ids of the file that are not in the benchmark.
      missing: ids of the benchmark that the file has no sample for.
      uneven: ids with more samples than the task that has fewest.
    """

    samples: tuple[CodeSample, ...]
    unknown: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    uneven: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]

    @property
    def empty(self) -> tuple[str, ...]:
        """Ids of samples without text; they count as failed, as they do in evalplus."""
        return tuple(dict.fromkeys(sample.task_id for sample in self.samples if sample.empty))


def read_samples(path: str | Path, benchmark: Benchmark, allow_partial: bool = False) -> SampleSet:
    """The samples of a file.

    Ids that the benchmark does not have are left out and listed in ``unknown``: evalplus does the same, and published
    files hold tasks that later versions of a benchmark dropped.

    Args:
      path: JSON lines, gzipped or not.
      benchmark: what they are for.
      allow_partial: take a file that lacks tasks, or that has more samples of some tasks than of others.

    Raises:
      SamplesError: no file, a line of another form, no sample of this benchmark, or a partial set.
    """
    try:
        records = read_records(path)
    except BenchmarkError as error:
        raise SamplesError(f"--samples: {error}") from None
    samples: list[CodeSample] = []
    unknown: dict[str, None] = {}
    for where, row in records.rows:
        task_id = row.get("task_id")
        if not isinstance(task_id, str):
            raise SamplesError(f"{where}: field 'task_id' must be a string, e.g. {next(iter(benchmark.tasks))!r}")
        text = row.get("solution", row.get("completion"))
        if not isinstance(text, str):
            named = "solution" if "solution" in row else "completion" if "completion" in row else None
            raise SamplesError(
                f"{where} ({task_id}): field {named!r} must be a string; give several samples a line each"
                if named
                else f"{where} ({task_id}): neither 'solution' (a whole program) nor 'completion' is there"
            )
        task = benchmark.tasks.get(task_id)
        if task is None:
            unknown[task_id] = None
        else:
            solution = text if "solution" in row else task.prompt + text
            samples.append(CodeSample(task_id, solution, empty=not text.strip()))
    return _checked(samples, tuple(unknown), benchmark, str(path), allow_partial)


def _checked(
    samples: Sequence[CodeSample], unknown: tuple[str, ...], benchmark: Benchmark, path: str, allow_partial: bool
) -> SampleSet:
    counts = collections.Counter(sample.task_id for sample in samples)
    if not counts:
        raise SamplesError(
            f"{path} has no sample of {benchmark.name}: its ids are {_some(unknown)}, those of the benchmark "
            f"{_some(tuple(benchmark.tasks))}"
        )
    missing = tuple(task_id for task_id in benchmark.tasks if task_id not in counts)
    fewest = min(counts.values())
    uneven = tuple(task_id for task_id in benchmark.tasks if counts[task_id] > fewest)
    if missing and not allow_partial:
        also = f", and has unknown ids: {_some(unknown)}" if unknown else ""
        raise SamplesError(
            f"{path} has no sample for {len(missing)} of {len(benchmark.tasks)} tasks of {benchmark.name}: "
            f"{_some(missing)}{also}; add them, or score the partial set with --allow_partial"
        )
    if uneven and not allow_partial:
        few = tuple(task_id for task_id in counts if counts[task_id] == fewest)
        # Name the smaller group: the tasks that differ from the others.
        odd = uneven if len(uneven) <= len(few) else few
        raise SamplesError(
            f"{path} has duplicated ids: {_some(tuple(f'{task_id} ({counts[task_id]} samples)' for task_id in odd))}, "
            f"the other tasks have another number; give every task as many samples, or --allow_partial"
        )
    return SampleSet(tuple(samples), unknown, missing, uneven)


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")


def write_samples(path: str | Path, samples: Iterable[CodeSample]) -> None:
    """Writes evalplus's form, ``{"task_id", "solution"}`` a line; the file appears whole or not at all."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w", encoding="utf-8") as file:
        for sample in samples:
            file.write(json.dumps({"task_id": sample.task_id, "solution": sample.solution}) + "\n")
    os.replace(aside, path)
