"""Checkpoints: all that a run needs to go on, together in one step directory, written by orbax.

``state`` holds parameters, optimizer state, moving average and step; ``data`` what the loop keeps on the host: the data
iterator, the curriculum's mask rate, counts, the goodput account; ``about`` what it was made by: config, model, seed,
versions. Random draws derive from (seed, step), so both are all that there is of random state.

A step's directory appears under its final name when it is whole, so a killed save leaves nothing behind that a
restore could mistake for a checkpoint. Tensors are stored whole, whatever they were split over: another mesh, preset or
number of hosts restores them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import absl.logging
import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN

from rcjax.distributed import ELSEWHERE, Barrier, OutOfStepError, everywhere, exchange, leads, tell
from rcjax.progress import say
from rcjax.train.state import TrainState
from rcjax.workdir import flatten


class CheckpointError(OSError):
    """A checkpoint that can not be written; the message says why and how to go on."""


# What a checkpoint must have in common with the run that restores it; part of `about`.
BINDING = ("model", "optimizer", "teacher")
_STORAGE_ERRORS = (OSError, ValueError, RuntimeError)  # by what tensorstore and orbax raise


class Checkpoints:
    """The checkpoints of one training run. Saves are asynchronous; ``close`` waits for the last one.

    Args:
      directory: of the step directories; made if missing.
      every: optimizer steps between two saves; 0: only the clock counts.
      minutes: between two saves; 0: only steps count.
      keep: newest ones that are kept; None: all.
      keep_every: those of multiples of so many steps are kept besides; 0: none.
      failures: saves in a row that may fail before the run ends.
      read_only: nothing is written, nor is what a killed save left cleared away.
      about: JSON that is saved with every checkpoint, and whose ``BINDING`` parts a restored one must have.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        every: int = 1,
        minutes: float = 0,
        keep: int | None = 2,
        keep_every: int = 0,
        failures: int = 0,
        read_only: bool = False,
        about: dict[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.directory = Path(directory).absolute()
        self._every, self._minutes, self._clock = every, minutes, clock
        self._keep, self._keep_every, self._read_only = keep, keep_every, read_only
        self._failures, self._failed, self._pending = failures, 0, False
        self._about = about or {}
        self._last_save = clock()
        if not os.environ.get("RCJAX_TRACEBACK"):
            _say_failures_once()
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        kept = [LatestN(self._keep)]  # of None: all
        if self._keep_every:
            kept.append(EveryNSteps(self._keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(kept),
            cleanup_tmp_directories=not self._read_only,
            enable_async_checkpointing=True,
            async_options=None if self._read_only else ocp.AsyncOptions(barrier_sync_fn=Barrier()),
            read_only=self._read_only,
        )
        # Compression takes the processor's time for a tenth of the size: weights are noise to it. OCDBT, which puts
        # tensors together in few files, writes and reads more slowly (benchmarks/checkpoint.py).
        state = ocp.PyTreeCheckpointHandler(use_compression=False, use_ocdbt=False)
        handlers = {"state": state, "data": ocp.JsonCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """Number of optimizer steps in the newest whole checkpoint."""
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        """Whether to save behind ``step``; with ``minutes`` every process must ask behind every step."""
        due = bool(self._every) and step % self._every == 0
        if self._minutes:
            late = self._clock() - self._last_save >= 60 * self._minutes
            if jax.process_count() > 1:  # the clock of process 0 decides
                late = bool(multihost_utils.broadcast_one_to_all(late))
            due = due or late
        return due

    def save(self, step: int, state: TrainState, data: dict[str, Any], *, last: bool = False) -> None:
        """Saves after ``step`` optimizer steps; what can not be written is said, and training goes on.

        Args:
          data: JSON, what the loop keeps on the host.
          last: the run ends behind it: waits until it is written.

        Raises:
          CheckpointError: more than ``failures`` saves in a row could not be written, or the last one.
        """
        self._last_save = self._clock()
        self._finish(last=False)
        if self._manager.latest_step() != step and self._can_begin(last):
            args = ocp.args.Composite(
                state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(data), about=ocp.args.JsonSave(self._about)
            )
            try:
                self._manager.save(step, args=args, force=True)
                self._pending = True
            except _STORAGE_ERRORS as error:
                if jax.process_count() > 1:  # the others may be in the midst of it and wait for this one
                    raise self._error(_why(error)) from error
                self._lost(_why(error), last, error)
        if last:
            self._finish(last=True)

    def _can_begin(self, last: bool) -> bool:
        """Whether a directory can be made. In orbax, several processes would wait for minutes for one that can not."""
        if jax.process_count() == 1:
            return True
        why = None
        if leads():
            try:
                trial = self.directory / ".trial"
                trial.mkdir(exist_ok=True)  # a kill may have left it
                trial.rmdir()
            except OSError as error:
                why = _why(error)
        why = tell(why)
        if why is not None:
            self._lost(why, last, reopen=False)
        return why is None

    def _finish(self, last: bool) -> None:
        """Waits for the save in progress; all processes learn whether all have written their parts."""
        error = None
        try:
            self._manager.wait_until_finished()
        except _STORAGE_ERRORS as caught:
            error = caught
        why = None if error is None else _why(error)
        if self._pending:
            self._pending = False
            failed = [(reason, process) for process, reason in enumerate(exchange(why)) if reason is not None]
            if not failed:
                self._failed = 0
                return
            why, process = min(failed, key=lambda found: found[0] == ELSEWHERE)
            why = f"process {process}: {why}" if process else why
        if why is not None:
            self._lost(why, last, error)

    def _lost(self, why: str, last: bool, error: Exception | None = None, reopen: bool = True) -> None:
        """A save that failed, in every process: goes on without it, or ends the run."""
        self._failed += 1
        if last or self._failed > self._failures:
            raise everywhere(self._error(why)) from error
        if reopen:
            with contextlib.suppress(*_STORAGE_ERRORS):
                self._manager.close()
            self._manager = self._open()  # the old one would raise the same error for ever
        left = self._failures - self._failed
        say(
            f"WARNING: {self._complaint(why)}. TRAINING GOES ON WITHOUT IT; the newest checkpoint is of step "
            f"{self.latest()}, "
            + (f"{left} more failures in a row are borne" if left else "the next failure ends the run")
        )

    def _complaint(self, why: str) -> str:
        return f"a checkpoint in {self.directory} can not be written ({why})"

    def _error(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self._complaint(why)}; earlier ones are whole: mend that and give the same command again"
        )

    def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """State (laid out as ``abstract`` says, whatever mesh saved it) and what the loop keeps on the host.

        Raises:
          FileNotFoundError: no checkpoint.
          ValueError: a checkpoint that can not be read into this model, or that was made by another one.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self.directory}; train first or name another --workdir")
        with self._reading(step):
            about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        self._check_about(step, about)
        args = ocp.args.Composite(state=_restore_args(abstract), data=ocp.args.JsonRestore())
        with self._reading(step):
            restored = self._manager.restore(step, args=args)
        return restored["state"], restored["data"]

    def restore_params(
        self, abstract: dict[str, Any], step: int | None = None, *, field: str = "params"
    ) -> tuple[dict[str, Any], int]:
        """The parameters alone, without the optimizer's state, and their step.

        Args:
          abstract: the parameter dict of ``jax.ShapeDtypeStruct``s with shardings.
          step: which checkpoint; None takes the newest.
          field: of the state: ``params``, or ``ema`` for their moving average.

        Raises:
          FileNotFoundError: no checkpoint, or none of this step (the others are named).
          ValueError: a checkpoint that can not be read into this model.
        """
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise FileNotFoundError(f"no checkpoint in {self.directory}; train first or name another --workdir")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise FileNotFoundError(
                f"no checkpoint of step {step} in {self.directory}; there are {', '.join(map(str, steps))}"
            )
        wanted = {field: abstract}
        args = _restore_args(wanted, partial_restore=True)
        with self._reading(step):
            restored = self._manager.restore(step, args=ocp.args.Composite(state=args))
        return restored["state"][field], step

    def before(self, step: int) -> int | None:
        """The newest checkpoint of fewer than ``step`` optimizer steps; None where there is none."""
        self._finish(last=False)
        return max((found for found in self._manager.all_steps() if found < step), default=None)

    def drop_from(self, step: int) -> None:
        """Deletes the checkpoints of ``step`` and later ones."""
        self._finish(last=False)
        for found in self._manager.all_steps():
            if found >= step:
                self._manager.delete(found)

    def close(self) -> None:
        """Waits for the save in progress and releases threads."""
        self._finish(last=True)
        self._manager.close()

    def abandon(self) -> None:
        """Releases threads whatever state they are in: an error is on its way already."""
        if jax.process_count() > 1:
            return  # it would wait for the others, one of which may be the error
        with contextlib.suppress(*_STORAGE_ERRORS):
            self._manager.close()

    def _check_about(self, step: int, about: dict[str, Any]) -> None:
        for part in BINDING:
            ours, theirs = (flatten({part: of.get(part)} if part in of else {}) for of in (self._about, about))
            for field in sorted(ours.keys() & theirs.keys()):
                if ours[field] != theirs[field]:
                    raise ValueError(
                        f"checkpoint {self.directory / str(step)} was made with {field} {theirs[field]!r}, this run "
                        f"has {ours[field]!r}; name another --workdir or give the old value"
                    )

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """A checkpoint that can not be read, as one sentence."""
        try:
            yield
        except Exception as error:  # of orbax and tensorstore, of many kinds
            raise ValueError(
                f"checkpoint {self.directory / str(step)} can not be restored ({str(error).splitlines()[0][:200]}); "
                "delete it to go on from an earlier one"
            ) from error


def _why(error: BaseException) -> str:
    """Why a save failed, in one line; ``ELSEWHERE`` where this process only waited for another."""
    while isinstance(error, OutOfStepError) and error.__context__ is not None:
        error = error.__context__  # what went wrong here, before it came out of step
    if isinstance(error, OutOfStepError):
        return ELSEWHERE
    if "No space left" in str(error):
        return "no space left on the device"
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _restore_args(abstract: Any, **keywords: Any) -> ocp.args.PyTreeRestore:
    """To be laid out as ``abstract`` says; a tensor of another shape is an error."""
    return ocp.args.PyTreeRestore(
        item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), **keywords
    )


@functools.cache
def _say_failures_once() -> None:
    """Leaves it to the sentences of this module to tell of failures.

    orbax logs the traceback of each tensor that could not be written or read, asyncio that of each that nobody asked
    for, and tensorstore then reports to event loops that are closed, a traceback for each of these too: hundreds of
    lines in which the sentence is lost. At every save orbax warns besides that there is no OCDBT, which is as it should
    be.
    """
    absl.logging.get_absl_logger().addFilter(
        lambda record: not ("orbax" in record.pathname and (record.exc_info or "OCDBT" in record.getMessage()))
    )
    logging.getLogger("asyncio").addFilter(lambda record: not (record.exc_info and _of_orbax(record.exc_info[2])))
    hook = sys.unraisablehook

    def without_theirs(unraisable: Any) -> None:
        trace = unraisable.exc_traceback
        code = trace.tb_frame.f_code if trace is not None else None
        if code is None or not (code.co_name == "call_soon_threadsafe" or "orbax" in code.co_filename):
            hook(unraisable)

    sys.unraisablehook = without_theirs


def _of_orbax(trace: types.TracebackType | None) -> bool:
    """Whether an error came through orbax."""
    return any("orbax" in frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace))
