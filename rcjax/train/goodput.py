"""Goodput: the share of a run's wall time that went into optimizer steps, and what took the rest.

Time is booked under one kind at a time. What the compiler took of it is booked as ``compile``, whatever was going on.
The account travels with checkpoints: what lies between the one that a run goes on from and its start (steps that were
lost, the time in which nothing ran) is ``restart``.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

STEP, COMPILE, START, INPUT, CHECKPOINT, EVALUATION, RESTART = KINDS = (
    "step",
    "compile",
    "start",  # parameters initialised, imported or restored
    "input",
    "checkpoint",
    "evaluation",
    "restart",
)
_COMPILE_EVENTS = "/jax/core/compile/"


class Goodput:
    """The account of one run.

    Args:
      clock: seconds of a clock that is never set back.
      wall: seconds since the epoch. Where it was set back between two runs, the time between them counts as none.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter, wall: Callable[[], float] = time.time):
        self._clock, self._wall = clock, wall
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._kind, self._began = START, wall()
        self._since, self._compiled = clock(), _compile_seconds()

    def resume(self, earlier: Mapping[str, Any]) -> None:
        """Adds the account of the checkpoint that the run goes on from, as ``state`` gave it."""
        for kind, seconds in earlier["seconds"].items():
            self._seconds[kind] += seconds
        self._seconds[RESTART] += max(0.0, self._began - earlier["time"])

    def steps_begin(self) -> None:
        """From here on time is that of steps, unless ``doing`` says otherwise."""
        self._settle()
        self._kind = STEP

    @contextlib.contextmanager
    def doing(self, kind: str) -> Iterator[None]:
        """Books the time of a block under ``kind``."""
        self._settle()
        before, self._kind = self._kind, kind
        try:
            yield
        finally:
            self._settle()
            self._kind = before

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by kind, up to now."""
        self._settle()
        return dict(self._seconds)

    def share(self, *, without: tuple[str, ...] = ()) -> float:
        """The share of steps in the time of all kinds but ``without``; 1 before any time has passed."""
        seconds = self.seconds
        total = sum(value for kind, value in seconds.items() if kind not in without)
        return seconds[STEP] / total if total else 1.0

    def state(self) -> dict[str, Any]:
        """JSON for a checkpoint."""
        return {"seconds": self.seconds, "time": self._wall()}

    def describe(self) -> str:
        """One line for people."""
        seconds = self.seconds
        rest = sorted(
            ((value, kind) for kind, value in seconds.items() if kind != STEP and value >= 0.05), reverse=True
        )
        parts = ", ".join(f"{kind} {value:.1f} s" for value, kind in rest)
        took = f"goodput {self.share():.1%} of {sum(seconds.values()):.0f} s" + (f" ({parts})" if parts else "")
        return f"{took}; {self.share(without=(COMPILE, START)):.1%} once compiled"

    def _settle(self) -> None:
        now, compiled = self._clock(), _compile_seconds()
        elapsed = now - self._since
        compiling = min(elapsed, compiled - self._compiled)
        self._seconds[COMPILE] += compiling
        self._seconds[self._kind] += elapsed - compiling
        self._since, self._compiled = now, compiled


def _compile_seconds() -> float:
    """Seconds that this thread has spent in tracing, lowering and compiling since it was first asked."""
    return _listen().get(threading.get_ident(), 0.0)


@functools.cache
def _listen() -> dict[int, float]:
    """Starts counting; gives the seconds by thread, which go on growing."""
    seconds: dict[int, float] = {}

    def count(event: str, duration: float, **_: Any) -> None:
        if event.startswith(_COMPILE_EVENTS):
            thread = threading.get_ident()
            seconds[thread] = seconds.get(thread, 0.0) + duration

    jax.monitoring.register_event_duration_secs_listener(count)
    return seconds
