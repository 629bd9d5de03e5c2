"""Preemption: the machine is wanted back, so the run saves and ends in a way that schedulers start again.

One process hears of it by SIGTERM, as SLURM, Kubernetes and cloud machines send it. Several agree through JAX's own
synchronisation: whichever of them is told, all stop behind the same step.
"""

from __future__ import annotations

import signal
import threading
from types import TracebackType

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again


class PreemptedError(Exception):
    """A run that saved and stopped because it was told to; the same command goes on."""


class Preemption:
    """Listens while it is entered. A second SIGTERM ends the process as it would have without."""

    def __init__(self):
        self._asked = False
        self._before = None

    def __enter__(self) -> Preemption:
        # With several processes JAX's own notifier holds the signal. Threads other than the main one can not.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _hear(self, *_: object) -> None:
        self._asked = True
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def reached(self, step: int) -> bool:
        """Whether to save behind optimizer step ``step`` and stop; every process must ask behind every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
