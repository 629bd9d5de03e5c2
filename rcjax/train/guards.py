"""What watches over a run: updates that are not finite, losses that jump, a process that hangs.

The step itself leaves parameters and optimizer as they are where the loss or the gradient is not finite
(``train.step``); here such steps are counted, and too many in a row end the run with a dump of what they were made of.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import io
import math
import statistics
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rcjax.distributed import leads
from rcjax.progress import say
from rcjax.workdir import write_json

WINDOW = 64  # losses that a new one is compared with
FEWEST = 16  # and with how many at least


class NotFiniteError(ValueError):
    """Too many steps in a row whose loss or gradient is not finite; the message names the dump."""


def check_guards(config: ConfigDict) -> None:
    """Refuses settings of ``config.guards`` that mean nothing, by the field.

    Raises:
      ValueError: names the field.
    """
    for field, value in config.items():
        if value < 0:
            raise ValueError(f"config.guards.{field} is {value}; expected 0 (off) or more")


@dataclasses.dataclass
class Guards:
    """Sees every step's numbers, in order.

    Attributes:
      skips: steps in a row without a finite update after which the run ends; 0: never.
      spike: standard deviations above the mean of the last losses from which a loss is one; 0: none is.
      patience: spikes in a row after which to roll back; 0: never.
      dumps: directory for what is saved of steps that are not finite.
    """

    skips: int
    spike: float
    patience: int
    dumps: Path

    def __post_init__(self):
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._spikes: list[int] = []  # steps
        self._skipped: list[dict[str, Any]] = []

    def see(self, step: int, values: Mapping[str, float], norms: Any, examples: Sequence[str]) -> int | None:
        """Takes in what optimizer step ``step`` gave.

        Args:
          values: its metrics on the host; ``loss`` and ``grad_norm`` among them.
          norms: the gradient's norms by tensor, [layers] where layers are stacked; of steps that are not finite.
          examples: ids of what it was trained on.

        Returns:
          The first step of a spike, if it is time to go back to a checkpoint from before it.

        Raises:
          NotFiniteError: the last ``skips`` steps had no finite update.
        """
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            self._see_skipped(step, values, norms, examples)
            return None
        self._skipped.clear()
        if not self._is_spike(values["loss"]):
            self._spikes.clear()
            self._losses.append(values["loss"])
            return None
        self._spikes.append(step)
        if len(self._spikes) == 1:
            mean = statistics.fmean(self._losses)
            say(
                f"loss spike: {values['loss']:.3f} at step {step}, more than {self.spike:g} deviations above the mean "
                f"{mean:.3f} of the last {len(self._losses)} steps"
            )
        return self._spikes[0] if len(self._spikes) == self.patience else None

    def forget(self) -> None:
        """Begins anew: the parameters are others now."""
        self._losses.clear()
        self._spikes.clear()

    def _is_spike(self, loss: float) -> bool:
        if not self.spike or len(self._losses) < FEWEST:
            return False
        # The floor: a loss that hardly moves has deviations that mean nothing.
        deviation = max(statistics.pstdev(self._losses), 1e-3 * abs(statistics.fmean(self._losses)))
        return loss > statistics.fmean(self._losses) + self.spike * deviation

    def _see_skipped(self, step: int, values: Mapping[str, float], norms: Any, examples: Sequence[str]) -> None:
        self._skipped.append(
            {
                "step": step,
                "values": {name: repr(value) for name, value in values.items() if not math.isfinite(value)},
                "examples": list(examples),
                "gradient norms": {
                    jax.tree_util.keystr(path, simple=True, separator="/"): [repr(float(x)) for x in np.ravel(leaf)]
                    for path, leaf in jax.tree_util.tree_leaves_with_path(norms)
                },
            }
        )
        say(f"step {step} skipped: its loss is {values['loss']}, its gradient's norm {values['grad_norm']}")
        if self.skips and len(self._skipped) >= self.skips:
            path = self.dumps / f"step-{step}.json"
            if leads():
                self.dumps.mkdir(exist_ok=True)
                write_json(path, self._skipped)
            raise NotFiniteError(
                f"the last {len(self._skipped)} steps had no finite update (config.guards.skips); {path} holds their "
                "examples and the gradient's norm in each layer: lower config.optimizer.learning_rate, or look at those"
            )
        del self._skipped[: -self.skips or None]


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[Any]:
    """Prints every thread's stack to standard error when the function that it gives is not called for so long.

    Args:
      seconds: 0: never.
    """
    try:
        sys.stderr.fileno()
    except (AttributeError, io.UnsupportedOperation):
        seconds = 0  # nothing to print to
    if not seconds:
        yield lambda: None
        return

    def alive() -> None:
        faulthandler.dump_traceback_later(seconds, repeat=True)

    alive()
    try:
        yield alive
    finally:
        faulthandler.cancel_dump_traceback_later()
