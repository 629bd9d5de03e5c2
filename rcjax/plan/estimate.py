"""A plan: what a training takes of each device's memory, of the network, and of time."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from rcjax.plan import roofline
from rcjax.plan.hlo import by_kind
from rcjax.plan.programs import Compiled, Setting, compile_accumulate, compile_update, device_bytes
from rcjax.plan.topology import GIB
from rcjax.train.program import objective_of

PER_EXAMPLES = 100_000


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device: what lies in it all the time, and the most that does.

    Attributes:
      held: parameters, gradient sums, optimizer, and where there are some: moving average, teacher.
      activations: what computing the gradients of a microbatch takes besides.
      peak: of all programs.
      hbm: that there are, or None.
    """

    held: dict[str, float]
    activations: float
    peak: float
    hbm: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found.

    Attributes:
      accumulate, update: the compiled programs.
      load: of an optimizer step.
      microbatch, optimizer: times of one microbatch and of the optimizer's part; None without chips' figures.
      model_flops: of an optimizer step, all devices.
      run_steps: optimizer steps of the configured run, if that is known.
    """

    setting: Setting
    accumulate: Compiled
    update: Compiled
    memory: Memory
    load: roofline.Load
    model_flops: float
    microbatch: roofline.Times | None
    optimizer: roofline.Times | None
    run_steps: int | None

    @property
    def fits(self) -> bool | None:
        """The verdict; None where memory is not that of a chip."""
        if self.accumulate.refused or self.update.refused:
            return False
        return None if self.memory.hbm is None else self.memory.peak <= self.memory.hbm

    @property
    def share(self) -> float | None:
        """Of a device's memory that is used at most."""
        return self.memory.peak / self.memory.hbm if self.memory.hbm else None

    @property
    def seconds(self) -> float | None:
        """Of an optimizer step, at least."""
        if self.microbatch is None:
            return None
        return self.microbatch.overlapped * self.load.microbatches + self.optimizer.overlapped

    @property
    def seconds_one_by_one(self) -> float | None:
        """Of an optimizer step where nothing overlaps."""
        if self.microbatch is None:
            return None
        return self.microbatch.one_by_one * self.load.microbatches + self.optimizer.one_by_one

    def utilisation(self, seconds: float) -> float:
        """Share of the devices' peak that the model's own FLOPs are in so many seconds a step."""
        dtype = self.setting.config.train.compute_dtype
        return self.model_flops / seconds / self.setting.topology.size / roofline.peak(self.setting.topology, dtype)

    def sent(self) -> dict[str, tuple[int, float, float]]:
        """kind -> (operations of a microbatch and the optimizer, bytes of a microbatch, bytes of an optimizer step)."""
        parts = [by_kind(program.collectives) for program in (self.accumulate, self.update)]
        kinds = {}
        for kind in sorted(parts[0].keys() | parts[1].keys()):
            (count, each), (more, once) = (part.get(kind, (0, 0.0)) for part in parts)
            kinds[kind] = count + more, each, each * self.load.microbatches + once
        return kinds

    def chip_hours(self, steps: float) -> float:
        """Of ``steps`` optimizer steps at least."""
        return steps * self.seconds * self.setting.topology.size / 3600

    def to_json(self) -> dict[str, Any]:
        """Its figures."""
        setting, config = self.setting, self.setting.config
        figures = {
            "topology": setting.topology.name,
            "devices": setting.topology.size,
            "mesh": dict(setting.mesh.shape),
            "row_length": config.packing.row_length,
            "rows_per_device": config.packing.rows_per_device,
            "remat": config.train.remat,
            "chunk": config.objective.chunk,
            "max_length": config.data.max_length,
            "examples_per_step": self.load.examples,
            "tokens_per_step": self.load.tokens,
            "microbatches": self.load.microbatches,
            "held_bytes": self.memory.held,
            "activation_bytes": self.memory.activations,
            "peak_bytes": self.memory.peak,
            "hbm_bytes": self.memory.hbm,
            "fits": self.fits,
            "refused": self.accumulate.refused or self.update.refused,
            "sent_bytes_per_microbatch": {kind: each for kind, (_, each, _) in self.sent().items()},
            "sent_bytes_per_step": {kind: total for kind, (_, _, total) in self.sent().items()},
            "model_flops_per_step": self.model_flops,
            "compile_seconds": self.accumulate.seconds + self.update.seconds,
        }
        if self.microbatch is not None:
            figures |= {
                "microbatch_seconds": dataclasses.asdict(self.microbatch),
                "optimizer_seconds": dataclasses.asdict(self.optimizer),
                "binding": self.microbatch.binding,
                "step_seconds": self.seconds,
                "step_seconds_one_by_one": self.seconds_one_by_one,
                "utilisation": self.utilisation(self.seconds),
                "utilisation_one_by_one": self.utilisation(self.seconds_one_by_one),
                "chip_hours_per_100k_examples": self.chip_hours(PER_EXAMPLES / self.load.examples),
            }
        return figures


def make_plan(setting: Setting, run_steps: int | None = None) -> Plan:
    """Compiles both programs and puts the figures together.

    Raises:
      ValueError: see ``roofline.load_of``.
    """
    config, program, topology = setting.config, setting.program, setting.topology
    load = roofline.load_of(config, objective_of(config.objective), setting.rows)
    accumulate, update = compile_accumulate(setting), compile_update(setting)
    model, teacher, mesh = program.model, program.loss.teacher, dict(setting.mesh.shape)
    attention = program.loss.attention
    work = roofline.microbatch_work(config, model, teacher, load, mesh, attention)
    microbatch = optimizer = None
    if topology.chip is not None:
        places, dtype = list(setting.mesh.devices.flat), config.train.compute_dtype
        own = device_bytes(setting.inputs["state"].params) / roofline.FLOAT32
        moved = roofline.update_bytes(own, ema=program.average is not None)
        microbatch = roofline.times(
            topology, work.executed_flops, work.memory_bytes, accumulate.collectives, places, dtype
        )
        optimizer = roofline.times(topology, 0.0, moved, update.collectives, places, dtype)
    return Plan(
        setting=setting,
        accumulate=accumulate,
        update=update,
        memory=memory_of(setting, accumulate, update),
        load=load,
        # A last microbatch that is not full counts for what is in it.
        model_flops=work.model_flops * topology.size * load.examples / (load.examples_per_row * load.rows),
        microbatch=microbatch,
        optimizer=optimizer,
        run_steps=run_steps,
    )


def held_bytes(setting: Setting) -> dict[str, float]:
    """What lies in a device's memory all the time, by what it is."""
    state, inputs = setting.inputs["state"], setting.inputs
    held = {
        "parameters": device_bytes(state.params),
        "gradients": device_bytes(inputs["sums"]),
        "optimizer": device_bytes(state.opt_state),
    }
    if state.ema is not None:
        held["moving average"] = device_bytes(state.ema)
    if inputs["teacher"] is not state.ema:
        held["teacher"] = device_bytes(inputs["teacher"])
    return held


def memory_of(setting: Setting, accumulate: Compiled, update: Compiled) -> Memory:
    """See ``Memory``."""
    return Memory(
        held=held_bytes(setting),
        activations=max(0.0, (accumulate.wanted if accumulate.refused else accumulate.peak) - accumulate.arguments),
        peak=max(accumulate.in_all, update.in_all),
        hbm=setting.topology.chip.hbm if setting.topology.chip else None,
    )


def run_steps(config: ConfigDict) -> int | None:
    """Optimizer steps of the configured run, where its dataset or ``train.steps`` says; overlong examples count too."""
    if config.train.steps is not None:
        return config.train.steps
    if not config.data.train:
        return None
    from rcjax.data.records import INSTRUCTION, REFLECTION, count_examples

    counts = count_examples(config.data.train)
    repeats = {INSTRUCTION: config.data.instruction_repeats, REFLECTION: config.data.reflection_repeats}
    examples = sum(counts.get(split, 0) * repeat for split, repeat in repeats.items())
    return max(1, int(config.train.epochs * examples / config.train.batch_size))


def size(amount: float) -> str:
    """Bytes for people."""
    return f"{amount / GIB:,.2f} GiB" if amount >= GIB / 10 else f"{amount / 2**20:,.2f} MiB"
