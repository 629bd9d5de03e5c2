"""The runs of all programs in parts, and who takes which: what ``evalplus.py`` gives to its threads."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

SHARE_SECONDS = 0.1  # a run that will take so long yet may be shared
_LOOK = 0.02


@dataclasses.dataclass(frozen=True)
class SuiteVerdict:
    """How a program fared on base or plus inputs, or on a part of them.

    Attributes:
      status: "pass", "fail" or "timeout".
      failure: what went wrong on which input, "" on pass.
      own_equality: an object of the program's own compared itself on the way.
      seconds: wall time.
    """

    status: str
    failure: str = ""
    own_equality: bool = False
    seconds: float = 0.0


@dataclasses.dataclass(order=True)
class Part:
    """A range of the inputs of a suite; sorts by the time that the canonical program took for it, longest first."""

    cost: float
    number: int  # of the program
    suite: str
    first: int
    last: int
    then: str = ""  # a suite that is taken in the same run, where this one passed


class Run(Protocol):
    """A part that is being run.

    Attributes:
      number: of the program.
      suite: "base" or "plus".
      at: the input that it has come to.
      last: the input before which it is to end; may be lowered.
    """

    number: int
    suite: str
    at: int
    last: int

    def seconds_left(self, at: int) -> float:
        """About so long it will take from there on."""


class Work:
    """The parts of all runs, given to threads the longest first, and what they came to.

    Where a suite is in parts, the others wait for the first as long as there is anything else to do: one that fails
    decides them all. How long a program takes is known of the canonical one alone. So a thread that finds nothing left
    takes over the second half of what lies before a run that will take long yet, where the order of inputs can not
    matter.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._todo: list[Part] = []
        self._later: dict[tuple[int, str], list[Part]] = {}  # (program, suite) to its other parts
        self._given = 0  # parts that are being run
        self._running: list[Run] = []
        self._shared: list[bool] = []
        self._stopped = False
        # Of each program, suite to first input to verdict, None while it is not there.
        self._found: list[dict[str, dict[int, SuiteVerdict | None]]] = []

    def add(self, number: int, parts: Mapping[str, Sequence[Part]], shared: bool) -> None:
        """The parts of a program by suite; programs come in the order of their numbers.

        Args:
          shared: whether its inputs may be taken in any order, in several processes.
        """
        self._shared.append(shared)
        self._found.append({suite: dict.fromkeys(part.first for part in own) for suite, own in parts.items()})
        todo = list(itertools.chain(*parts.values()))
        if shared and len(parts) == 2 and len(todo) == 2:
            base, plus = todo
            todo = [dataclasses.replace(base, cost=base.cost + plus.cost, then=plus.suite)]
        for part in todo:
            if part.first:
                self._later.setdefault((number, part.suite), []).append(part)
            else:
                heapq.heappush(self._todo, part)

    def put(self, part: Part) -> None:
        """One more part of a program that has been added."""
        with self._changed:
            heapq.heappush(self._todo, part)
            self._changed.notify()

    def take(self) -> Part | None:
        """The next part; None when nothing is left. Waits while parts that are being run may leave some."""
        with self._changed:
            while not self._stopped:
                if not self._todo and self._later:
                    self._release(next(iter(self._later)))
                part = heapq.heappop(self._todo) if self._todo else self._half_of_a_run()
                if part is not None:
                    self._given += 1
                    return part
                if not self._given:
                    return None
                self._changed.wait(_LOOK)
            return None

    def _release(self, suite: tuple[int, str]) -> None:
        for part in self._later.pop(suite, ()):
            heapq.heappush(self._todo, part)

    def _half_of_a_run(self) -> Part | None:
        halves = []
        for run in self._running:
            at, last = run.at, run.last  # its own thread moves `at` on meanwhile
            if last - at >= 2 and not self._is_decided(run.number, run.suite, at):
                halves.append((run.seconds_left(at), at + (last - at) // 2, run))
        seconds, first, run = max(halves, key=lambda half: half[0], default=(0.0, 0, None))
        if run is None or seconds < SHARE_SECONDS:
            return None
        # The run looks at `last` after each input. Should it have passed the middle by now, some are run twice.
        last, run.last = run.last, first
        self._found[run.number][run.suite][first] = None
        return Part(0.0, run.number, run.suite, first, last)

    @contextlib.contextmanager
    def divided(self, run: Run) -> Iterator[None]:
        """While it goes on, others may take over inputs of this run."""
        if not self._shared[run.number]:
            yield
            return
        with self._changed:
            self._running.append(run)
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(run)

    def is_decided(self, part: Part) -> bool:
        """Whether an earlier part of the suite failed, so that this one does not count."""
        with self._changed:
            return self._is_decided(part.number, part.suite, part.first)

    def _is_decided(self, number: int, suite: str, before: int) -> bool:
        others = self._found[number][suite].items()
        return any(one is not None and one.status != "pass" for first, one in others if first < before)

    def finish(self, part: Part, verdicts: Sequence[SuiteVerdict]) -> dict[str, list[SuiteVerdict]] | None:
        """Notes the verdicts of a part; by suite those of all parts, in order, if these were the last."""
        with self._changed:
            found = self._found[part.number]
            for suite, verdict in zip((part.suite, part.then), verdicts, strict=False):
                found[suite][part.first if suite == part.suite else 0] = verdict
            self._given -= 1
            if not part.first:
                self._release((part.number, part.suite))
            self._changed.notify_all()
            if self._stopped or any(None in parts.values() for parts in found.values()):
                return None
            return {suite: [parts[first] for first in sorted(parts)] for suite, parts in found.items()}

    def stop(self) -> None:
        """No part is given out any more, and no program is told to be through."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
