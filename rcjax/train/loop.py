"""The training program, top to bottom."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rcjax.blocks import Example
from rcjax.checkpoint import Checkpoints
from rcjax.data.loader import BatchSettings, StepBatch, StepSource, most_slots, step_batches
from rcjax.model import LlamaConfig
from rcjax.model.flops import peak_flops
from rcjax.packing import RowTooShortError
from rcjax.progress import progress
from rcjax.sharding import make_mesh, row_shards
from rcjax.train.evaluation import Evaluate, PeriodicEvaluation
from rcjax.train.executables import load as load_executables
from rcjax.train.meter import Meter
from rcjax.train.metrics import MetricsWriter
from rcjax.train.profile import Profile, profiled_steps
from rcjax.train.program import check_settings, make_curriculum, make_program, objective_of
from rcjax.train.state import (
    TrainState,
    abstract_params,
    abstract_state,
    init_state,
    param_shardings,
)
from rcjax.train.step import Steps


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Another network that teaches: its shape, and how to lay its parameters out on a mesh."""

    config: LlamaConfig
    load: Callable[[Mesh], dict]


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """What a finished training leaves behind."""

    steps: int
    steps_done: int  # by this call; fewer than ``steps`` after a resume
    computed_tokens: int  # row slots in use, both views, all steps
    params: dict


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
    *,
    title: str = "train",
    load: Callable[[dict], dict] | None = None,
    teacher: Teacher | None = None,
    evaluate: Evaluate | None = None,
    executable: str | None = None,
) -> TrainingRun:
    """Trains to the last step, from the newest checkpoint in ``workdir`` if there is one.

    Args:
      config: ``configs/base.py`` with overrides.
      workdir: gets ``checkpoints/``, ``metrics.jsonl`` and TensorBoard events.
      sources: tokenised examples of each source.
      repeats: how often each source stands in an epoch.
      load: reads the parameters to start from, given the sharding of each; None draws fresh ones.
      teacher: another network that teaches, for ``config.teacher.name`` ``frozen``.
      evaluate: finds figures of parameters beside the steps, every ``config.evaluation.every`` of them.
      executable: directory of compiled programs to run (``rcjax.train.executables``); None compiles.
    """
    # ---- what to train on, on what, and how long
    check_settings(config)
    mesh = make_mesh(config.mesh)
    objective = objective_of(config.objective)
    if teacher is None and config.teacher.name == "frozen":
        raise ValueError("config.teacher.name is 'frozen', but there is no teacher; name one with config.teacher.model")
    steps_in_all = total_steps(config, sum(len(s) * r for s, r in zip(sources, repeats, strict=True)))
    settings = BatchSettings(
        objective=objective,
        curriculum=make_curriculum(config.curriculum, objective),
        total_steps=steps_in_all,
        batch_size=config.train.batch_size,
        row_length=config.packing.row_length,
        rows_per_microbatch=config.packing.rows_per_device * row_shards(mesh),
        normalisation=config.objective.normalisation,
        seed=config.seed,
        own_teacher=config.teacher.name == "self",
        cuts=config.packing.cuts,
    )
    longest = max((example for source in sources for example in source), key=lambda e: most_slots(e, objective))
    if most_slots(longest, objective) > settings.row_length:
        raise RowTooShortError(
            f"config.packing.row_length is {settings.row_length}, but the views of example {longest.id!r} can take "
            f"{most_slots(longest, objective)} slots; raise it, or lower config.data.max_length"
        )
    batches = step_batches(StepSource(sources, repeats, settings), config.data.prefetch)

    # ---- model, optimizer, compiled steps
    program = make_program(config, model_config, mesh, steps_in_all, teacher=teacher.config if teacher else None)
    steps, shardings = program.steps, program.shardings
    peak = peak_flops(program.loss.compute_dtype)  # outside of the mesh: it measures devices of this process alone
    if executable is not None:
        steps = load_executables(executable, config, program, steps_in_all)

    with jax.set_mesh(mesh):
        # ---- fresh start or resume
        checkpoints = Checkpoints(workdir / "checkpoints", every=config.checkpoint.every, keep=config.checkpoint.keep)
        done = checkpoints.latest()
        computed_tokens = 0
        if done is None:
            params = load(shardings.params) if load else None
            state = init_state(model_config, program.tx, shardings, config.seed, params)
            del params  # the state owns them: the first update gives their memory away
        else:
            state, data_state = checkpoints.restore(abstract_state(model_config, program.tx, shardings))
            batches.set_state(data_state["iterator"])
            computed_tokens = data_state["computed_tokens"]

        teacher_params = teacher.load(mesh) if teacher else None

        # ---- the loop
        metrics = MetricsWriter(workdir, resume_step=done)
        profile = Profile(workdir / "profile", profiled_steps(config.profile.steps))
        evaluations = PeriodicEvaluation(evaluate, config.evaluation.every, metrics, workdir)
        evaluations.resume(done or 0, state.params)
        meter = Meter(model_config, program.loss.teacher, peak)
        pending = None  # metrics on the device of a step that may still run
        sums = steps.zeros()
        first = done or 0
        with progress(title, total=steps_in_all, unit="steps", done=first) as bar:
            clock = time.perf_counter()
            for step in range(first, steps_in_all):
                asked = time.perf_counter()
                batch: StepBatch = next(batches)
                waited = time.perf_counter() - asked
                with profile.step(step):
                    state, sums, on_device = run_step(steps, state, sums, batch, teacher_params)
                profile.after(step, on_device)
                evaluations.after(step + 1, state.params)
                computed_tokens += int(batch.metrics["tokens"])
                # The previous step's numbers are fetched while this one runs: no stall.
                if pending is not None:
                    _log(metrics, bar, *pending, config.train.log_every, steps_in_all)
                clock, seconds = time.perf_counter(), time.perf_counter() - clock
                pending = (step + 1, on_device, batch, computed_tokens, meter.rates(batch, seconds, waited))
                last = step + 1 == steps_in_all
                if last or (step + 1) % config.checkpoint.every == 0:
                    # Metrics reach the disk before the checkpoint that a resume would start behind.
                    _log(metrics, bar, *pending, config.train.log_every, steps_in_all)
                    pending = None
                    evaluations.settle(before=step + 1)
                    metrics.flush()
                    data_state = {"iterator": batches.get_state(), "computed_tokens": computed_tokens}
                    checkpoints.save(step + 1, state, data_state, force=last)
                bar.advance()
        profile.close(sums)
        checkpoints.close()
        evaluations.close()
        metrics.close()
    return TrainingRun(steps_in_all, steps_in_all - first, computed_tokens, state.params)


def restore_params(
    config: ConfigDict, workdir: Path, model_config: LlamaConfig, step: int | None = None, weights: str = "student"
) -> tuple[dict, int]:
    """Parameters of a checkpoint in ``workdir``, laid out on the configured mesh, and its step.

    The optimizer's state is not read.

    Args:
      step: of the checkpoint; None takes the newest.
      weights: ``student``, or ``ema`` for their moving average.

    Raises:
      FileNotFoundError: there is no checkpoint, or none of ``step``.
    """
    abstract = abstract_params(model_config, param_shardings(model_config, make_mesh(config.mesh)))
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        return checkpoints.restore_params(abstract, step, field="ema" if weights == "ema" else "params")
    finally:
        checkpoints.close()


def run_step(
    steps: Steps, state: TrainState, sums: dict, batch: StepBatch, teacher_params: dict | None = None
) -> tuple[TrainState, dict, dict]:
    """One optimizer step over the microbatches of ``batch``; returns (state, zeroed sums, metrics on the device).

    ``teacher_params``: of another network that teaches; None: the moving average, if the state keeps one.
    """
    teacher_params = state.ema if teacher_params is None else teacher_params
    for index in range(batch.microbatches):
        with jax.profiler.TraceAnnotation("place"):
            arrays = batch.microbatch(index).items()
            microbatch = {name: jax.device_put(array, steps.row_sharding) for name, array in arrays}
        sums = steps.accumulate(state.params, sums, microbatch, teacher_params)
    return steps.update(state, sums)


def _log(metrics, bar, step, on_device, batch, computed_tokens, rates, log_every, steps_in_all) -> None:
    values = {name: float(value) for name, value in on_device.items()}
    bar.note(f"loss {values['loss']:.3f} · rate {batch.metrics['mask_rate']:.2f}")
    if step % log_every and step not in (1, steps_in_all):
        return
    about = {name: value for name, value in batch.metrics.items() if name not in ("examples", "tokens")}
    metrics.write(step, values | about | dict(rates) | {"computed_tokens": float(computed_tokens)})
