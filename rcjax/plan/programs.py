"""The programs of a training, compiled for devices that are not there, and what the compiler says about them."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rcjax import layout
from rcjax.data.loader import StepBatch
from rcjax.model import LlamaConfig
from rcjax.packing import assemble, part_widths
from rcjax.plan.hlo import Collective, collectives
from rcjax.plan.topology import Topology
from rcjax.sharding import row_shards
from rcjax.train.program import Program, check_settings, make_program
from rcjax.train.state import abstract_params, abstract_state
from rcjax.views import Work

PLAN_STEPS = 1000  # of a run whose length is not known: the learning rate follows from it, and nothing else


class PlanError(ValueError):
    """A config that can not be planned as it stands; the message names the field."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Everything that compiling needs.

    Attributes:
      program: of the training.
      inputs: what programs get, as shapes with shardings: ``state``, ``sums``, ``teacher`` (parameters, or None).
    """

    config: ConfigDict
    topology: Topology
    program: Program
    inputs: dict[str, Any]

    @property
    def mesh(self) -> Mesh:
        """Of the topology's devices."""
        return self.program.mesh

    @property
    def rows(self) -> int:
        """Of a microbatch, over all devices."""
        return self.config.packing.rows_per_device * row_shards(self.mesh)

    def microbatch(self, width: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a microbatch that is computed over ``width`` slots; None: over the whole row.

        Where another network teaches, its rows are cut to ``width``, and width 0 leaves them out.
        """
        length = self.config.packing.row_length
        width = length if width is None else width
        own = self.config.teacher.name == "self"
        arrays = assemble([], [[]], row_length=length, rows_per_microbatch=self.rows, own_teacher=own)
        cut = ((width,), ()) if own else ((length,), (width,))
        batch = StepBatch(0, arrays, {}, Work(), Work(), Work(), *cut)
        place = self.program.steps.row_sharding
        return {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)
            for name, array in batch.microbatch(0).items()
        }

    def widths(self) -> list[int]:
        """Every width that a run may compute, the widest first."""
        found = part_widths(self.config.packing.row_length, self.config.packing.cuts)
        return found if self.config.teacher.name == "self" else [*found, 0]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compiled program.

    Attributes:
      executable: None where it was refused.
      seconds: that compiling took.
      arguments, peak: bytes of a device; the peak counts arguments.
      beside: bytes that lie in its memory meanwhile, and are no argument.
      collectives: what it sends.
      refused: why the compiler gave it up: what it says of memory.
      wanted: bytes that the compiler asked for in vain.
    """

    name: str
    executable: Any
    seconds: float
    arguments: float = 0.0
    peak: float = 0.0
    beside: float = 0.0
    collectives: tuple[Collective, ...] = ()
    refused: str = ""
    wanted: float = 0.0

    @property
    def in_all(self) -> float:
        """Bytes of a device's memory while it runs; where it was refused, at least so many."""
        return (self.wanted if self.refused else self.peak) + self.beside


def prepare_setting(
    config: ConfigDict, topology: Topology, *, total_steps: int = PLAN_STEPS, own: bool = False
) -> Setting:
    """The training of ``config`` on ``topology``; nothing is compiled yet.

    Args:
      total_steps: optimizer steps.
      own: of ``cpu`` topologies, the program is to be what a run on a CPU makes, and not what accelerators would run:
        there layers stand in a row, here in a scan.

    Raises:
      ValueError: names the field: a shape that is not stated, a mesh that does not divide, a setting that nothing can
        be made of.
    """
    model = model_of(config)
    mesh = mesh_of(config, topology)
    check_settings(config, mesh)
    teacher = teacher_of(config, model) if config.teacher.name == "frozen" else None
    program = make_program(
        config,
        model,
        mesh,
        total_steps,
        teacher=teacher,
        scan_layers=None if own and topology.platform == "cpu" else True,
        attention=topology.chip.attention if topology.chip else "tiles",
    )
    state = abstract_state(model, program.tx, program.shardings)
    inputs = {"state": state, "sums": jax.eval_shape(program.steps.zeros), "teacher": state.ema}
    if teacher is not None:
        inputs["teacher"] = _teacher_params(config, teacher, program.teacher)
    return Setting(config, topology, program, inputs)


def mesh_of(config: ConfigDict, topology: Topology) -> Mesh:
    """The configured mesh over the topology's devices.

    Raises:
      ValueError: the mesh does not divide them, or not along the grid.
    """
    try:
        return layout.mesh_of(config, topology.devices())
    except NotImplementedError as error:  # of jax.make_mesh, which splits no dimension of a grid
        sizes = ", ".join(f"{axis}={size}" for axis, size in layout.mesh_shape(config).items() if size != 1)
        raise PlanError(
            f"config.mesh ({sizes}) can not be laid on the grid of {topology.name}: each axis must be the product of "
            "some of the grid's dimensions"
        ) from error


def model_of(config: ConfigDict) -> LlamaConfig:
    """The shape that a config file states; no checkpoint or tokenizer is read.

    Raises:
      PlanError: a field is missing.
    """
    from rcjax.hf.base_model import REQUIRED, shape_fields

    given = shape_fields(config.model)
    for name in (*REQUIRED, "vocab_size"):
        if config.model[name] is None:
            why = "; a run counts its tokenizer, which is not there yet" if name == "vocab_size" else ""
            raise PlanError(f"config.model.{name} is not set{why}; give it with --config.model.{name}=N")
    return LlamaConfig(**given, vocab_size=config.model.vocab_size, vocab_multiple=config.model.vocab_multiple)


def teacher_of(config: ConfigDict, model: LlamaConfig) -> LlamaConfig:
    """Shape of a ``frozen`` teacher: that of a directory at hand, else the student's."""
    if os.path.isdir(config.teacher.model):
        from rcjax.hf.load import load_config

        shape = load_config(config.teacher.model)
        return dataclasses.replace(shape, vocab_size=model.vocab_size, vocab_multiple=model.vocab_multiple)
    return model


def _teacher_params(config: ConfigDict, teacher: LlamaConfig, shardings: Any) -> Any:
    dtype = jnp.dtype(config.teacher.dtype)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding),
        abstract_params(teacher, shardings),
    )


def compile_accumulate(setting: Setting, width: int | None = None) -> Compiled:
    """Gradients of one microbatch (``Setting.microbatch``), added up."""
    state, teacher = setting.inputs["state"], setting.inputs["teacher"]
    beside = [state.opt_state]  # stays where it is
    if teacher is not state.ema:
        beside.append(state.ema)
    arguments = (state.params, setting.inputs["sums"], setting.microbatch(width), teacher)
    return _compile(setting, "accumulate", setting.program.steps.accumulate, arguments, beside)


def compile_update(setting: Setting) -> Compiled:
    """The optimizer."""
    state, teacher = setting.inputs["state"], setting.inputs["teacher"]
    beside = None if teacher is state.ema else teacher
    return _compile(setting, "update", setting.program.steps.update, (state, setting.inputs["sums"]), beside)


def compile_zeros(setting: Setting) -> Compiled:
    """The first sums."""
    return _compile(setting, "zeros", setting.program.steps.zeros, (), ())


def _compile(setting: Setting, name: str, program: Any, arguments: tuple, beside: Any) -> Compiled:
    beside, clock = device_bytes(beside), time.perf_counter()
    with jax.set_mesh(setting.mesh):
        lowered = program.lower(*arguments)
        try:
            executable = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            refused, wanted = out_of_memory(str(error))
            if not refused:
                raise
            seconds = time.perf_counter() - clock
            return Compiled(name, None, seconds, device_bytes(arguments), beside=beside, refused=refused, wanted=wanted)
    seconds = time.perf_counter() - clock
    memory = executable.memory_analysis()
    if setting.topology.platform == "tpu":
        # What the compiler holds against the memory that there is. Its `temporaries` are more than ever lie in memory
        # at a time: with arguments, more than there is, of programs that it lets pass.
        peak = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
    else:
        fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes  # other results lie where arguments did
        peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes + fresh
        peak += memory.generated_code_size_in_bytes
    chunks = -(-setting.config.packing.row_length // setting.config.objective.chunk)
    sent = collectives(executable.as_text(), setting.topology.size, unknown_trips=chunks)
    return Compiled(name, executable, seconds, memory.argument_size_in_bytes, peak, beside, tuple(sent))


def out_of_memory(message: str) -> tuple[str, float]:
    """(the compiler's sentence, bytes it asked for) where it says that memory does not suffice, else ("", 0)."""
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return "", 0.0
    line = message.strip().splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
    sizes = re.findall(r"([\d.]+)\s*([KMG])i?B?\b", line)
    scale = {"K": 2**10, "M": 2**20, "G": 2**30}
    return line, max((float(size) * scale[unit] for size, unit in sizes), default=0.0)


def device_bytes(tree: Any) -> int:
    """Bytes of one device's part of a tree of shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
