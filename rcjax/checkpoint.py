"""Checkpoints: train state and data iterator state together in one step directory, written by orbax.

A step's directory appears under its final name when it is whole, so a killed save leaves nothing behind that a
restore could mistake for a checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from rcjax.train.state import TrainState


class CheckpointError(OSError):
    """A checkpoint that can not be written; the message says why and how to go on."""


class Checkpoints:
    """The checkpoints of one training run. Saves are asynchronous; ``close`` waits for the last one."""

    def __init__(self, directory: str | Path, *, every: int = 1, keep: int | None = 2):
        options = ocp.CheckpointManagerOptions(
            save_interval_steps=every, max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self.directory = Path(directory).absolute()
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self) -> int | None:
        """Number of optimizer steps in the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data_state: dict[str, Any], *, force: bool = False) -> bool:
        """Saves after ``step`` optimizer steps if it is due; returns whether it did."""
        if self._manager.latest_step() == step:
            return False
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_state))
        with self._writing():
            return self._manager.save(step, args=args, force=force)

    def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """State (laid out as ``abstract`` says, whatever mesh saved it) and data iterator state.

        Raises:
          FileNotFoundError: no checkpoint.
          ValueError: a checkpoint that can not be read into this model.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self.directory}; train first or name another --workdir")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
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
        args = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
        )
        with self._reading(step):
            restored = self._manager.restore(step, args=ocp.args.Composite(state=args))
        return restored["state"][field], step

    def close(self) -> None:
        """Waits for the save in progress and releases threads."""
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """A checkpoint that can not be read, as one sentence."""
        try:
            yield
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(
                f"checkpoint {self.directory / str(step)} can not be restored ({str(error).splitlines()[0][:200]}); "
                "delete it to go on from an earlier one"
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Failures of a save, which may also surface at the next one, as one sentence."""
        try:
            yield
        except (OSError, ValueError) as error:
            why = "no space left on the device" if "No space left" in str(error) else str(error).splitlines()[0][:200]
            raise CheckpointError(
                f"a checkpoint in {self.directory} can not be written ({why}); earlier ones are whole: mend that and "
                "give the same command again"
            ) from error
