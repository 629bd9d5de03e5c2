"""The training program, top to bottom."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rcjax.blocks import BlockType, Example
from rcjax.checkpoint import Checkpoints
from rcjax.curriculum import Curriculum, Rate
from rcjax.data.loader import BatchSettings, StepBatch, StepSource, longest_views, step_batches
from rcjax.model import LlamaConfig
from rcjax.objective import make_objective
from rcjax.packing import RowTooShortError
from rcjax.progress import progress
from rcjax.sharding import make_mesh, row_shards
from rcjax.train.metrics import MetricsWriter
from rcjax.train.state import TrainState, abstract_state, init_state, make_optimizer, state_shardings
from rcjax.train.step import LossSettings, Steps, make_steps

COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """What a finished training leaves behind."""

    steps: int
    steps_done: int  # by this call; fewer than ``steps`` after a resume
    computed_tokens: int  # row slots in use, both views, all steps
    params: dict


def make_curriculum(config: ConfigDict) -> Curriculum:
    """The curriculum that ``config.curriculum`` describes."""
    unknown = [name for name in config.block_order if name not in BlockType.__members__]
    if unknown:
        raise ValueError(f"config.curriculum.block_order: unknown block type {unknown[0]!r}; use TEXT, CODE, EXECUTION")
    order = tuple(BlockType[name] for name in config.block_order)
    return Curriculum(config.name, order, Rate(**config.rate))


def total_steps(config: ConfigDict, examples_per_epoch: int) -> int:
    """Optimizer steps of the run: ``train.steps``, or as many as ``train.epochs`` needs."""
    if config.train.steps is not None:
        return config.train.steps
    return max(1, int(config.train.epochs * examples_per_epoch / config.train.batch_size))


def train(
    config: ConfigDict,
    workdir: Path,
    model_config: LlamaConfig,
    sources: Sequence[Sequence[Example]],
    repeats: Sequence[int],
    title: str = "train",
) -> TrainingRun:
    """Trains to the last step, from the newest checkpoint in ``workdir`` if there is one.

    Args:
      config: ``configs/base.py`` with overrides.
      workdir: gets ``checkpoints/``, ``metrics.jsonl`` and TensorBoard events.
      sources: tokenised examples of each source.
      repeats: how often each source stands in an epoch.
    """
    # ---- what to train on, on what, and how long
    mesh = make_mesh(config.mesh)
    objective = make_objective(config.objective.name, config.objective.alpha)
    steps_in_all = total_steps(config, sum(len(s) * r for s, r in zip(sources, repeats, strict=True)))
    settings = BatchSettings(
        objective=objective,
        curriculum=make_curriculum(config.curriculum),
        total_steps=steps_in_all,
        batch_size=config.train.batch_size,
        row_length=config.packing.row_length,
        rows_per_microbatch=config.packing.rows_per_device * row_shards(mesh),
        normalisation=config.objective.normalisation,
        seed=config.seed,
    )
    longest = max(longest_views(source, objective) for source in sources)
    if longest > settings.row_length:
        raise RowTooShortError(
            f"config.packing.row_length is {settings.row_length}, but the views of the longest example can take "
            f"{longest} slots; raise it, or lower config.data.max_length"
        )
    batches = step_batches(StepSource(sources, repeats, settings), config.data.prefetch)

    # ---- model, optimizer, compiled steps
    if config.train.compute_dtype not in COMPUTE_DTYPES:
        raise ValueError(f"config.train.compute_dtype is {config.train.compute_dtype!r}; use one of {COMPUTE_DTYPES}")
    tx, schedule = make_optimizer(config.optimizer, steps_in_all)
    shardings = state_shardings(model_config, tx, mesh)
    loss_settings = LossSettings(
        model=model_config,
        objective=objective,
        temperature=config.objective.temperature,
        chunk=config.objective.chunk,
        compute_dtype=jnp.dtype(config.train.compute_dtype).type,
        remat=config.train.remat,
    )
    steps = make_steps(loss_settings, tx, schedule, shardings, mesh)

    with jax.set_mesh(mesh):
        # ---- fresh start or resume
        checkpoints = Checkpoints(workdir / "checkpoints", every=config.checkpoint.every, keep=config.checkpoint.keep)
        done = checkpoints.latest()
        computed_tokens = 0
        if done is None:
            state = init_state(model_config, tx, shardings, config.seed)
        else:
            state, data_state = checkpoints.restore(abstract_state(model_config, tx, shardings))
            batches.set_state(data_state["iterator"])
            computed_tokens = data_state["computed_tokens"]

        # ---- the loop
        metrics = MetricsWriter(workdir, resume_step=done)
        pending = None  # metrics on the device of a step that may still run
        sums = steps.zeros()
        first = done or 0
        with progress(title, total=steps_in_all, unit="steps", done=first) as bar:
            clock = time.perf_counter()
            for step in range(first, steps_in_all):
                batch: StepBatch = next(batches)
                state, sums, on_device = run_step(steps, state, sums, batch)
                computed_tokens += int(batch.metrics["tokens"])
                # The previous step's numbers are fetched while this one runs: no stall.
                if pending is not None:
                    _log(metrics, bar, *pending, config.train.log_every, steps_in_all)
                clock, seconds = time.perf_counter(), time.perf_counter() - clock
                pending = (step + 1, on_device, batch, computed_tokens, seconds)
                last = step + 1 == steps_in_all
                if last or (step + 1) % config.checkpoint.every == 0:
                    # Metrics reach the disk before the checkpoint that a resume would start behind.
                    _log(metrics, bar, *pending, config.train.log_every, steps_in_all)
                    pending = None
                    metrics.flush()
                    data_state = {"iterator": batches.get_state(), "computed_tokens": computed_tokens}
                    checkpoints.save(step + 1, state, data_state, force=last)
                bar.advance()
        checkpoints.close()
        metrics.close()
    return TrainingRun(steps_in_all, steps_in_all - first, computed_tokens, state.params)


def restore_params(config: ConfigDict, workdir: Path, model_config: LlamaConfig) -> tuple[dict, int]:
    """Parameters of the newest checkpoint in ``workdir``, laid out on the configured mesh, and its step.

    Raises:
      FileNotFoundError: there is no checkpoint.
    """
    mesh = make_mesh(config.mesh)
    tx, _ = make_optimizer(config.optimizer, 1)
    abstract = abstract_state(model_config, tx, state_shardings(model_config, tx, mesh))
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        state, _ = checkpoints.restore(abstract)
        return state.params, int(state.step)
    finally:
        checkpoints.close()


def run_step(steps: Steps, state: TrainState, sums: dict, batch: StepBatch) -> tuple[TrainState, dict, dict]:
    """One optimizer step over the microbatches of ``batch``; returns (state, zeroed sums, metrics on the device)."""
    for index in range(batch.microbatches):
        with jax.profiler.TraceAnnotation("place"):
            microbatch = {
                name: jax.device_put(array[index], steps.row_sharding) for name, array in batch.arrays.items()
            }
        sums = steps.accumulate(state.params, sums, microbatch)
    return steps.update(state, sums)


def _log(metrics, bar, step, on_device, batch, computed_tokens, seconds, log_every, steps_in_all) -> None:
    values = {name: float(value) for name, value in on_device.items()}
    bar.note(f"loss {values['loss']:.3f} · rate {batch.metrics['mask_rate']:.2f}")
    if step % log_every and step not in (1, steps_in_all):
        return
    about = dict(batch.metrics)
    rates = {
        "examples_per_second": about.pop("examples") / seconds,
        "tokens_per_second": about.pop("tokens") / seconds,
        "computed_tokens": float(computed_tokens),
    }
    metrics.write(step, values | about | rates)
