"""A profile of some optimizer steps, for TensorBoard or xprof."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax


def profiled_steps(text: str) -> range:
    """``"10:13"`` -> range(10, 13), steps counted from 0; "" -> no steps.

    Raises:
      ValueError: of another form, or no step between the two.
    """
    if not text:
        return range(0)
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ValueError(f"config.profile.steps is {text!r}; expected FIRST:END, e.g. 10:13 for steps 10, 11 and 12")
    return range(int(found[1]), int(found[2]))


class Profile:
    """Writes a profile of ``steps`` to ``directory``, which appears whole and is not written again.

    The first steps of a call compile; leave them out. ``xprof DIRECTORY`` opens it, and TensorBoard with the plugin
    tensorboard-plugin-profile.
    """

    def __init__(self, directory: Path, steps: range):
        self._directory, self._steps = directory, range(0) if directory.exists() else steps
        self._aside = directory.with_name(f".{directory.name}.{os.getpid()}")
        self._on = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around optimizer step ``number``, counted from 0 over the whole run."""
        if number in self._steps and not self._on:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call: slow, and it hides the rest
            jax.profiler.start_trace(str(self._aside), profiler_options=options)
            self._on = True
        if not self._on:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def after(self, number: int, on_device: Any) -> None:
        """Ends the profile behind its last step; waits for ``on_device``, what that step computes."""
        if self._on and number + 1 >= self._steps.stop:
            self.close(on_device)

    def close(self, on_device: Any) -> None:
        """Ends a profile that is being taken, complete or not."""
        if not self._on:
            return
        self._on = False
        jax.block_until_ready(on_device)
        jax.profiler.stop_trace()
        shutil.rmtree(self._directory, ignore_errors=True)
        os.replace(self._aside, self._directory)
