"""Evaluation beside training: every N steps a copy of the parameters writes programs while the steps go on.

The copy is made on the device, then fetched and used by a thread of its own on one device, without collectives, so that
it can not get in the way of the steps' own. It reads nothing else of the training: the numbers of a run are the same
with and without it. One evaluation runs at a time; where one takes longer than N steps, the next one waits for it.

A result is logged with the step that it belongs to, late as it comes. Before a checkpoint is saved, results of earlier
steps are waited for; those of the very step are found anew from the checkpoint if a run was killed before they came.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcjax.progress import say
from rcjax.train.metrics import MetricsWriter, read_metrics

PREFIX = "heldout_"
Evaluate = Callable[[dict[str, Any]], Mapping[str, float]]


class PeriodicEvaluation:
    """Runs ``evaluate`` on the parameters of every ``every``-th step.

    Args:
      evaluate: parameters on the host -> figures by name; called in a thread. None: nothing is evaluated.
      every: optimizer steps; 0: nothing is evaluated.
      metrics: where results go.
      workdir: of ``metrics``.

    Raises:
      ValueError: ``every`` is negative, or there are several processes.
    """

    def __init__(self, evaluate: Evaluate | None, every: int, metrics: MetricsWriter, workdir: Path):
        if every < 0:
            raise ValueError(f"config.evaluation.every is {every}; give a number of optimizer steps, or 0 for none")
        self._on = evaluate is not None and every > 0
        if self._on and jax.process_count() > 1:
            raise ValueError(
                "config.evaluation.every evaluates beside training in one process alone; set it to 0 and evaluate the "
                "checkpoints with --mode=evaluate"
            )
        self._evaluate, self._every, self._metrics, self._workdir = evaluate, every, metrics, workdir
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="evaluation") if self._on else None
        self._running: tuple[int, Future] | None = None

    def resume(self, step: int, params: dict[str, Any]) -> None:
        """Evaluates the parameters that training goes on from, if that is due and was not finished."""
        if not self._on or step == 0 or step % self._every:
            return
        if not any(row["step"] == step and any(name.startswith(PREFIX) for name in row) for row in self._rows()):
            self._submit(step, params)

    def after(self, step: int, params: dict[str, Any]) -> None:
        """To be called after each optimizer step, before the parameters are given away to the next one."""
        if not self._on:
            return
        if self._running is not None and self._running[1].done():
            self._log()
        if step % self._every == 0:
            self._log()
            self._submit(step, params)

    def settle(self, before: int) -> None:
        """Waits for results of steps before ``before``."""
        if self._running is not None and self._running[0] < before:
            self._log()

    def close(self) -> None:
        """Waits for the last result."""
        self._log()
        if self._thread is not None:
            self._thread.shutdown()

    def _submit(self, step: int, params: dict[str, Any]) -> None:
        copy = jax.tree.map(jnp.copy, params)

        def run() -> dict[str, float]:
            start = time.monotonic()
            figures = self._evaluate(jax.tree.map(np.asarray, copy))
            return {**figures, "seconds": time.monotonic() - start}

        self._running = step, self._thread.submit(run)

    def _log(self) -> None:
        """Logs the result that is out, when it is there."""
        if self._running is None:
            return
        (step, future), self._running = self._running, None
        try:
            figures = future.result()
        except Exception as error:  # whatever it is, hours of training are worth more
            say(f"evaluation of step {step} failed, training goes on: {type(error).__name__}: {error}")
            return
        self._metrics.write_late(step, {PREFIX + name: value for name, value in figures.items()})

    def _rows(self) -> list[dict[str, Any]]:
        return read_metrics(self._workdir)
