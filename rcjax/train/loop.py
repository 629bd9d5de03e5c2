"""The training program, top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

import rcjax
from rcjax.blocks import Example
from rcjax.checkpoint import Checkpoints
from rcjax.data.loader import BatchSettings, StepBatch, StepSource, most_slots, step_batches
from rcjax.distributed import leads, tell
from rcjax.layout import layout_of, mesh_of
from rcjax.model import LlamaConfig
from rcjax.model.flops import peak_flops
from rcjax.packing import RowTooShortError
from rcjax.progress import progress, say
from rcjax.sharding import place, row_shards
from rcjax.train.divergence import check_copies
from rcjax.train.evaluation import Evaluate, PeriodicEvaluation
from rcjax.train.executables import load as load_executables
from rcjax.train.goodput import CHECKPOINT, EVALUATION, INPUT, Goodput
from rcjax.train.guards import Guards, watchdog
from rcjax.train.meter import Meter
from rcjax.train.metrics import MetricsWriter, NoMetrics, wandb_run
from rcjax.train.preemption import PreemptedError, Preemption
from rcjax.train.profile import Profile, profiled_steps
from rcjax.train.program import check_settings, make_curriculum, make_program, objective_of
from rcjax.train.state import (
    TrainState,
    abstract_params,
    abstract_state,
    init_state,
    param_shardings,
)
from rcjax.train.step import NORMS, Steps


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Another network that teaches: its shape, and what reads its parameters, given where each is to lie."""

    config: LlamaConfig
    load: Callable[[dict], dict]


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
    mesh = mesh_of(config)
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
    source = StepSource(sources, repeats, settings)
    batches = step_batches(source, config.data.prefetch)

    # ---- model, optimizer, compiled steps
    program = make_program(config, model_config, mesh, steps_in_all, teacher=teacher.config if teacher else None)
    if executable is not None:
        steps = load_executables(executable, config, program, steps_in_all)
        program = dataclasses.replace(program, steps=steps)

    run = _Run(config, workdir, title, steps_in_all, program, source, batches, load, teacher, evaluate)
    with jax.set_mesh(mesh):
        try:
            return run.run()
        except BaseException:
            run.checkpoints.abandon()
            raise


class _Run:
    """One call of ``train``: what it owns, and the loop."""

    def __init__(self, config, workdir, title, steps_in_all, program, source, batches, load, teacher, evaluate):
        self.config, self.workdir, self.title, self.steps_in_all = config, workdir, title, steps_in_all
        self.program, self.source, self.batches = program, source, batches
        self.load, self.teacher, self.evaluate = load, teacher, evaluate
        self.goodput = Goodput()
        # Before the mesh is set: it measures devices of this process alone.
        peak = peak_flops(program.loss.compute_dtype) if leads() else math.inf
        self.meter = Meter(program.model, program.loss.teacher, peak)
        self.guards = make_guards(config.guards, workdir)
        self.checkpoints = Checkpoints(workdir / "checkpoints", **config.checkpoint, about=about(config, program.model))

    def run(self) -> TrainingRun:
        first = self._start()
        if leads():
            wandb = wandb_run(self.config.wandb, self.workdir, self.config.to_dict())
            self.metrics = MetricsWriter(self.workdir, resume_step=first or None, wandb=wandb)
        else:
            self.metrics = NoMetrics()
        self.evaluations = PeriodicEvaluation(self.evaluate, self.config.evaluation.every, self.metrics, self.workdir)
        self.evaluations.resume(first, self.state.params)
        self.profile = Profile(self.workdir / "profile", profiled_steps(self.config.profile.steps if leads() else ""))
        with (
            contextlib.closing(self.metrics),
            Preemption() as preemption,
            watchdog(self.config.guards.hang) as alive,
            progress(self.title, total=self.steps_in_all, unit="steps", done=first, live=True) as self.bar,
        ):
            self._loop(first, preemption, alive)
            self.profile.close(self.sums)
            self.checkpoints.close()
            self.evaluations.close()
        if self.steps_in_all > first:
            say(self.goodput.describe())
        return TrainingRun(self.steps_in_all, self.steps_in_all - first, self.computed_tokens, self.state.params)

    def _start(self) -> int:
        """Makes or restores the state; returns the number of steps that are done."""
        program, shardings = self.program, self.program.shardings
        self.computed_tokens = 0
        done = tell(self.checkpoints.latest())  # which file systems may show to some processes later than to others
        if done is None:
            params = self.load(shardings.params) if self.load else None
            # The state owns them from here on: the first update gives their memory away.
            self.state = init_state(program.model, program.tx, shardings, self.config.seed, params)
        else:
            self.state, data = self.checkpoints.restore(abstract_state(program.model, program.tx, shardings))
            self.batches.set_state(data["iterator"])
            self.computed_tokens = data["computed_tokens"]
            self.goodput.resume(data["goodput"])
        self.teacher_params = self.teacher.load(program.teacher) if self.teacher else None
        self.sums = program.steps.zeros()
        return done or 0

    def _loop(self, first: int, preemption: Preemption, alive: Callable[[], None]) -> None:
        pending: _Pending | None = None  # numbers of a step that may still run
        self.goodput.steps_begin()
        clock = time.perf_counter()
        for step in range(first, self.steps_in_all):
            asked = time.perf_counter()
            with self.goodput.doing(INPUT):
                batch: StepBatch = next(self.batches)
            waited = time.perf_counter() - asked
            with self.profile.step(step):
                self.state, self.sums, on_device = run_step(
                    self.program.steps, self.state, self.sums, batch, self.teacher_params
                )
            self.profile.after(step, on_device)
            with self.goodput.doing(EVALUATION):
                self.evaluations.after(step + 1, self.state.params)
            self.computed_tokens += int(batch.metrics["tokens"])
            # The previous step's numbers are fetched while this one runs: no stall.
            spike = self._log(pending)
            if self.config.guards.divergence_every and (step + 1) % self.config.guards.divergence_every == 0:
                check_copies(self.state.params, step + 1)
            clock, seconds = time.perf_counter(), time.perf_counter() - clock
            rates = self.meter.rates(batch, seconds, waited)
            pending = _Pending(step + 1, on_device, batch, self.computed_tokens, rates)
            alive()
            last, preempted = step + 1 == self.steps_in_all, preemption.reached(step + 1)
            if last or preempted or self.checkpoints.due(step + 1) or spike is not None:
                later, pending = self._log(pending), None
                spike = later if spike is None else spike
                if spike is not None:
                    self._roll_back(spike, step + 1)
                with self.goodput.doing(EVALUATION):
                    self.evaluations.settle(before=step + 1)
                self._save(step + 1, batch, last=last or preempted)
            self.bar.advance()
            if preempted and not last:
                raise PreemptedError(
                    f"told to stop: saved behind step {step + 1} of {self.steps_in_all}; the same command goes on"
                )

    def _save(self, step: int, batch: StepBatch, last: bool) -> None:
        with self.goodput.doing(CHECKPOINT):
            data = {
                "iterator": self.batches.get_state(),
                "computed_tokens": self.computed_tokens,
                "curriculum": {"name": self.config.curriculum.name, "mask_rate": batch.metrics["mask_rate"]},
                "goodput": self.goodput.state(),
            }
            self.checkpoints.save(step, self.state, data, last=last)

    def _roll_back(self, spike: int, step: int) -> None:
        """Parameters of before the spike, for the steps behind ``step``: those between are not done again."""
        self.guards.forget()
        target = self.checkpoints.before(spike)
        if target is None:
            say(f"no checkpoint from before step {spike} to go back to; training goes on as it is")
            return
        say(f"back to the parameters of step {target}; training goes on with the data behind step {step}")
        abstract = abstract_state(self.program.model, self.program.tx, self.program.shardings)
        state, _ = self.checkpoints.restore(abstract, target)
        lost = step - target
        self.state = dataclasses.replace(state, step=state.step + lost, skipped=state.skipped + lost)
        self.checkpoints.drop_from(spike)

    def _log(self, pending: _Pending | None) -> int | None:
        """Waits for a step's numbers, shows and writes them; what the guards say to them."""
        if pending is None:
            return None
        step, batch, about_step = pending.step, pending.batch, pending.batch.metrics
        values = {name: float(value) for name, value in pending.on_device.items() if name != NORMS}
        rates = dict(pending.rates)
        self.bar.figures(
            {
                "loss": f"{values['loss']:.3f}",
                "ce": f"{values['ce']:.3f}",
                "kl": f"{values['kl']:.3f}",
                "mask rate": f"{about_step['mask_rate']:.2f}",
                "learning rate": f"{values['learning_rate']:.2e}",
                "tokens/s": f"{rates['tokens_per_second']:,.0f}",
                "utilisation": f"{rates['utilisation']:.0%}",
                "goodput": f"{self.goodput.share():.1%}",
            }
        )
        if step % self.config.train.log_every == 0 or step in (1, self.steps_in_all):
            shown = {name: value for name, value in about_step.items() if name not in ("examples", "tokens")}
            account = {"computed_tokens": float(pending.computed_tokens), "goodput": self.goodput.share()}
            self.metrics.write(step, values | shown | rates | account)
        finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
        norms, examples = ({}, ()) if finite else (pending.on_device[NORMS], self.source.example_ids(batch.step))
        return self.guards.see(step, values, norms, examples)


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A step whose numbers are not fetched yet."""

    step: int
    on_device: dict
    batch: StepBatch
    computed_tokens: int
    rates: Mapping[str, float]


def make_guards(config: ConfigDict, workdir: Path) -> Guards:
    """What watches over a run, from ``config.guards``."""
    return Guards(config.skips, config.spike, config.rollback, workdir / "dumps")


def about(config: ConfigDict, model: LlamaConfig) -> dict:
    """What a checkpoint tells of the run that made it."""
    stored = json.loads(config.to_json_best_effort())
    return {
        "model": {**model.to_hf(), "vocab_multiple": model.vocab_multiple},
        "optimizer": stored["optimizer"],
        "teacher": {"name": stored["teacher"]["name"]},
        "config": stored,
        "versions": {"rcjax": rcjax.__version__, "jax": jax.__version__},
    }


def restore_params(
    config: ConfigDict, workdir: Path, model_config: LlamaConfig, step: int | None = None, weights: str = "student"
) -> tuple[dict, int]:
    """Parameters of a checkpoint in ``workdir``, laid out on the configured mesh, and its step.

    The optimizer's state is not read. Every process of a run calls this.

    Args:
      step: of the checkpoint; None takes the newest.
      weights: ``student``, or ``ema`` for their moving average.

    Raises:
      FileNotFoundError: there is no checkpoint, or none of ``step``.
    """
    places = param_shardings(model_config, mesh_of(config), layout_of(config).params)
    abstract = abstract_params(model_config, places)
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    try:
        step = tell(checkpoints.latest()) if step is None else step
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
            microbatch = {name: place(array, steps.row_sharding) for name, array in arrays}
        sums = steps.accumulate(state.params, sums, microbatch, teacher_params)
    return steps.update(state, sums)
