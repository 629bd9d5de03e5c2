"""Proof by doing it again: programs of a dataset are executed once more and must answer what the records say."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_gen.checking import LanguageError, Runner, check, shortened
from data_gen.dataset import sample
from data_gen.parallel import usable_cpus
from data_gen.problems import Problem
from data_gen.reflection import SUCCESS
from data_gen.sandbox import Limits, Program, Sandbox, Verdict
from data_gen.statistics import Statistics, read_statistics
from data_gen.teachers.code_blocks import cut_out
from data_gen.verifiers import Verifier
from data_gen.verifiers.choice import make_verifiers
from rcjax.progress import progress

REPEATABLE = ("properties", "typing")  # verifiers that say the same again; a teacher's tests are not in the records


@dataclasses.dataclass
class Report:
    """What held and what did not.

    Attributes:
      checked: examples.
      counts: what was executed, by kind.
      failures: a sentence each.
    """

    checked: int = 0
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    failures: list[str] = dataclasses.field(default_factory=list)


def validate(
    directory: str | os.PathLike[str], examples: int = 100, seed: int = 0, workers: int | None = None
) -> Report:
    """Executes ``examples`` records of every split again (all of them if 0), under the limits of the build.

    Raises:
      BuildError: no dataset there.
      RecordError: a damaged record file.
    """
    statistics = read_statistics(directory)
    splits = [name for name, number in statistics.examples.items() if number]
    limits = _limits(statistics)
    names = [name for name in statistics.settings.get("verifiers", ()) if name in REPEATABLE]
    verifiers = make_verifiers(names, {}, statistics.settings.get("seed", 0))
    count = workers or usable_cpus()
    report = Report()

    def records() -> Iterator[Mapping[str, Any]]:
        for split in splits:
            yield from sample(Path(directory), split, examples or None, seed)

    with Sandbox(count, limits) as sandbox, ThreadPoolExecutor(count) as pool:
        total = sum(min(examples or number, number) for number in statistics.examples.values())
        with progress("executing again", total=total, unit="examples") as bar:
            for counts, failures in pool.map(lambda record: again(record, sandbox, verifiers), records()):
                report.checked += 1
                report.counts.update(counts)
                report.failures += failures
                bar.advance(1)
    return report


def _limits(statistics: Statistics) -> Limits:
    there = statistics.settings.get("limits", {})
    known = {field.name for field in dataclasses.fields(Limits)}
    return Limits(**{name: value for name, value in there.items() if name in known})


def again(record: Mapping[str, Any], sandbox: Sandbox, verifiers: list[Verifier]) -> tuple[Counter[str], list[str]]:
    """One record: (what was executed, what does not hold)."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    name, language = record["id"], record.get("language") or "python"
    run = Runner(sandbox, language)
    tests = tuple(json.loads(record["tests"]))
    problem = Problem(name, name, "", (record["prompt"],), record["solution"], record["entry_point"], tests, language)
    turns = json.loads(record["messages"])
    try:
        if record["type"] == "reflection":
            _rounds(record, problem, turns[1]["content"], run, verifiers, counts, failures)
        said = cut_out("\n".join(block["content"] for block in turns[-1]["content"]), language)
        if not tests:
            counts["answers without tests"] += 1
        elif said is None or run(Program(said.code, tests)).verdict != Verdict.PASSED:
            failures.append(f"{name}: the answer does not pass its tests")
        else:
            counts["answers that pass their tests"] += 1
    except LanguageError as error:
        counts[f"not executed: {error}"] += 1
    return counts, failures


def _rounds(
    record: Mapping[str, Any],
    problem: Problem,
    blocks: list[dict[str, str]],
    run: Runner,
    verifiers: list[Verifier],
    counts: Counter[str],
    failures: list[str],
) -> None:
    pairs = [
        (one["content"], two["content"])
        for one, two in itertools.pairwise(blocks)
        if (one["type"], two["type"]) == ("code", "execution")
    ]
    failed = 0
    for number, (shown, told) in enumerate(pairs, 1):
        outcome = run(Program(shown))
        words, wrong = outcome.feedback, outcome.verdict != Verdict.PASSED
        if not wrong and words.rstrip("\n") != told and told != SUCCESS:
            # The tests were content; then a verifier was not.
            code, behind = _split(shown, problem)
            checked = check(problem, code, behind, run, verifiers)
            words, wrong = checked.outcome.feedback, not checked.passed
            if not wrong and set(json.loads(record.get("verdicts") or "{}")) - {"tests", *REPEATABLE}:
                counts["rounds of verifiers that can not be asked again"] += 1
                failed += 1
                continue
        failed += wrong
        forms = {words.rstrip("\n") or SUCCESS, shortened(words).rstrip("\n")}
        if told not in forms:
            failures.append(f"{record['id']}: round {number} says {told[-80:]!r}, its program {words[-80:]!r}")
        elif wrong != (number < len(pairs)):
            failures.append(f"{record['id']}: round {number} {'fails' if wrong else 'passes'}")
        else:
            counts["rounds with the same feedback"] += 1
    if failed != record["rounds"]:
        failures.append(f"{record['id']}: {failed} attempts fail, the record says {record['rounds']}")


def _split(shown: str, problem: Problem) -> tuple[str, tuple[str, ...]]:
    """A CODE block as the program and the test lines behind it."""
    lines = shown.split("\n")
    cut = len(lines)
    while cut and (lines[cut - 1] in problem.tests or lines[cut - 1].startswith("assert ")):
        cut -= 1
    return "\n".join(lines[:cut]) + "\n", tuple(lines[cut:])
