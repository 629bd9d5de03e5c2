"""A profile of a few optimizer steps, for TensorBoard or xprof."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

WARM_UP = 5  # steps of a call that are left out: they compile


class Profile:
    """Keeps ``steps`` consecutive optimizer steps in ``directory``, once; 0 keeps none.

    The first ``WARM_UP`` steps after a start or resume are left out where there are enough others. The directory
    appears whole: ``tensorboard --logdir=WORKDIR`` or ``xprof WORKDIR/profile`` opens it.
    """

    def __init__(self, directory: Path, steps: int):
        self._directory, self._left = directory, 0 if directory.exists() else steps
        self._aside = directory.with_name(f".{directory.name}.{os.getpid()}")
        self._on = False

    @contextlib.contextmanager
    def step(self, number: int, since_start: int, to_do: int) -> Iterator[None]:
        """Around an optimizer step.

        Args:
          number: of the step in the run, shown in the profile.
          since_start: of the step in this call, from 0.
          to_do: steps of this call.
        """
        if self._left and not self._on and since_start >= max(0, min(WARM_UP, to_do - self._left)):
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call: slow, and it hides the rest
            jax.profiler.start_trace(str(self._aside), profiler_options=options)
            self._on = True
        if not self._on:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        self._left -= 1

    def stop_if_done(self, on_device: Any) -> None:
        """Ends the profile behind its last step; waits for ``on_device``, what that step computes."""
        if self._on and not self._left:
            self.close(on_device)

    def close(self, on_device: Any) -> None:
        """Ends a profile that is being taken, complete or not."""
        if not self._on:
            return
        self._on, self._left = False, 0
        jax.block_until_ready(on_device)
        jax.profiler.stop_trace()
        shutil.rmtree(self._directory, ignore_errors=True)
        os.replace(self._aside, self._directory)
