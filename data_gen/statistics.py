"""What came of a build, in numbers: ``statistics.json`` in its directory."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

STATISTICS = "statistics.json"


class BuildError(ValueError):
    """A build that can not be done or gave nothing; one sentence with the mend."""


@dataclasses.dataclass
class Statistics:
    """What came of a build.

    Attributes:
      settings: everything that the records follow from.
      problems: read, used, heldout, removed and skipped by reason.
      attempts: failed ones by error, and those that passed by fault.
      traces: reflection examples by number of failed attempts, and problems without one by reason.
      examples: records by split.
      characters: by split, the mean per record of each block type.
      lengths: by split, characters of a whole record: shortest, quartiles, longest.
      languages: records by programming language.
      verdicts: of the traces' last programs, ``verifier: verdict``.
      faults: operators of the faults in the traces.
      usage: requests, tokens and cost of a teacher behind an endpoint.
      seconds: wall time of the stages (the one part that differs from run to run).
    """

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    problems: dict[str, int] = dataclasses.field(default_factory=dict)
    attempts: dict[str, int] = dataclasses.field(default_factory=dict)
    traces: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, int] = dataclasses.field(default_factory=dict)
    characters: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    lengths: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    languages: dict[str, int] = dataclasses.field(default_factory=dict)
    verdicts: dict[str, int] = dataclasses.field(default_factory=dict)
    faults: dict[str, int] = dataclasses.field(default_factory=dict)
    usage: dict[str, float] = dataclasses.field(default_factory=dict)
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


KINDS = ("user", "text", "code", "execution", "answer")  # columns of lengths.npz: who or what a character belongs to


def characters(record: Mapping[str, Any]) -> dict[str, int]:
    """Characters of a record by ``KINDS``; the last turn is the answer."""
    counts = dict.fromkeys(KINDS, 0)
    turns = json.loads(record["messages"])
    for number, turn in enumerate(turns):
        for block in turn["content"]:
            last = number == len(turns) - 1
            counts["user" if turn["role"] == "user" else "answer" if last else block["type"]] += len(block["content"])
    return counts


def describe_records(statistics: Statistics, split: str, records: Iterable[Mapping[str, Any]]) -> list[list[int]]:
    """Fills ``characters``, ``lengths``, ``languages`` and ``verdicts`` of one split; returns rows by ``KINDS``."""
    rows, totals, languages, verdicts = [], Counter(), Counter(statistics.languages), Counter(statistics.verdicts)
    for record in records:
        counts = characters(record)
        rows.append([counts[kind] for kind in KINDS])
        # The mean by block type has known no "answer" so far: the answer is text there.
        for kind, count in counts.items():
            totals["text" if kind == "answer" else kind] += count
        languages[record.get("language") or "python"] += 1
        for name, verdict in json.loads(record.get("verdicts") or "{}").items():
            verdicts[f"{name}: {verdict}"] += 1
    if not rows:
        return rows
    statistics.characters[split] = {kind: round(n / len(rows), 1) for kind, n in sorted(totals.items()) if n}
    sizes = sorted(map(sum, rows))
    places = {"shortest": 0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "longest": 1}
    statistics.lengths[split] = {name: sizes[round(share * (len(sizes) - 1))] for name, share in places.items()}
    statistics.languages = dict(languages.most_common())
    statistics.verdicts = dict(sorted(verdicts.items()))
    return rows
