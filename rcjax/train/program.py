"""What a config, a model's shape and a mesh make of training, before any data are there: the compiled programs and
where every tensor lives.

Training runs it, planning compiles it for devices that are not there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rcjax.blocks import BlockType
from rcjax.curriculum import Curriculum, Rate
from rcjax.layout import layout_of, mesh_of
from rcjax.model import LlamaConfig
from rcjax.model.llama import HOST_MEMORY, REMAT_POLICIES
from rcjax.objective import TABLES, Objective, make_objective
from rcjax.train.guards import check_guards
from rcjax.train.state import Average, Params, TrainState, check_mesh, make_optimizer, param_shardings, state_shardings
from rcjax.train.step import LossSettings, Steps, make_steps

TEACHERS = ("self", "frozen", "ema")
COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Program:
    """One training, ready to be run or compiled.

    Attributes:
      model: the shape of the network that is trained.
      loss: what the loss needs besides parameters and data.
      average: the moving average that the state keeps, or None.
      tx, schedule: the optimizer, and its learning rate by step.
      shardings: where each tensor of the state lives.
      teacher: where each parameter of another network that teaches lives, or None.
      steps: the compiled (lazily) programs.
    """

    mesh: Mesh
    model: LlamaConfig
    loss: LossSettings
    average: Average | None
    tx: optax.GradientTransformation
    schedule: Callable
    shardings: TrainState
    teacher: Params | None
    steps: Steps


def make_program(
    config: ConfigDict,
    model: LlamaConfig,
    mesh: Mesh,
    total_steps: int,
    *,
    teacher: LlamaConfig | None = None,
    scan_layers: bool | None = None,
    attention: str | None = None,
) -> Program:
    """The program of ``config`` (``configs/base.py`` with overrides).

    Args:
      total_steps: optimizer steps, from which the learning rate follows.
      teacher: shape of another network that teaches.
      scan_layers, attention: as ``LossSettings``; to be stated where the devices of ``mesh`` are not this process's.

    Raises:
      ValueError: a mesh that does not divide a dimension, or a setting that nothing can be made of (names the field).
    """
    tx, schedule = make_optimizer(config.optimizer, total_steps)
    average = average_of(config.teacher)
    layout = layout_of(config)
    check_mesh(model, layout, mesh, teacher)
    shardings = state_shardings(model, tx, mesh, ema=average is not None, layout=layout)
    loss = LossSettings(
        model=model,
        objective=objective_of(config.objective),
        teacher=teacher or (model if average else None),
        chunk=config.objective.chunk,
        compute_dtype=jnp.dtype(config.train.compute_dtype).type,
        remat=config.train.remat,
        scan_layers=scan_layers,
        attention=attention,
    )
    gradients = param_shardings(model, mesh, layout.gradients)
    steps = make_steps(loss, tx, schedule, shardings, mesh, average, gradients)
    taught_by = param_shardings(teacher, mesh, layout.teacher) if teacher else None
    return Program(mesh, model, loss, average, tx, schedule, shardings, taught_by, steps)


def objective_of(config: ConfigDict) -> Objective:
    """The objective that ``config.objective`` describes."""
    names = ("name", "alpha", "ce_weight", "kd_weight", "divergence", "beta", "temperature", *TABLES)
    return make_objective(**{name: config[name] for name in names})


def average_of(config: ConfigDict) -> Average | None:
    """The moving average that ``config.teacher`` asks for; None where another teacher is named."""
    if config.name not in TEACHERS:
        raise ValueError(f"config.teacher.name is {config.name!r}; expected one of {', '.join(TEACHERS)}")
    if config.name != "ema":
        return None
    return Average(config.decay, config.every, config.bias_correction)


def make_curriculum(config: ConfigDict, objective: Objective | None = None) -> Curriculum:
    """The curriculum that ``config.curriculum`` describes, or that the objective brings along."""
    unknown = [name for name in config.block_order if name not in BlockType.__members__]
    if unknown:
        raise ValueError(f"config.curriculum.block_order: unknown block type {unknown[0]!r}; use TEXT, CODE, EXECUTION")
    order = tuple(BlockType[name] for name in config.block_order)
    rate = Rate(**config.rate)
    if objective is not None and objective.curriculum is not None:
        return Curriculum(objective.curriculum, order, rate)
    return Curriculum(config.name, order, rate, tuple(config.mixture))


def check_settings(config: ConfigDict, mesh: Mesh | None = None) -> None:
    """Refuses what ``train`` could not do, by the field; a pipeline asks before it builds data.

    Args:
      mesh: that it is to be done on; None: the configured one of this process's devices.

    Raises:
      ValueError: names the field.
    """
    make_curriculum(config.curriculum, objective_of(config.objective))
    average_of(config.teacher)
    if config.train.compute_dtype not in COMPUTE_DTYPES:
        raise ValueError(f"config.train.compute_dtype is {config.train.compute_dtype!r}; use one of {COMPUTE_DTYPES}")
    for field in ("row_length", "rows_per_device", "cuts"):
        if config.packing[field] < 1:
            raise ValueError(f"config.packing.{field} is {config.packing[field]}; expected at least 1")
    for field, value in config.checkpoint.items():
        if value is not None and value < 0:
            raise ValueError(f"config.checkpoint.{field} is {value}; expected 0 or more")
    check_guards(config.guards)
    layout_of(config)
    check_remat(config.train.remat, mesh or mesh_of(config))


def check_remat(name: str, mesh: Mesh) -> None:
    """Refuses a policy that is unknown, or that the devices can not follow."""
    if name not in REMAT_POLICIES:
        raise ValueError(f"config.train.remat is {name!r}; expected one of {', '.join(REMAT_POLICIES)}")
    device = mesh.devices.flat[0]
    if name == "offload" and HOST_MEMORY not in {memory.kind for memory in device.addressable_memories()}:
        raise ValueError(
            f"config.train.remat is 'offload', but {device.device_kind} keeps nothing in the host's memory; use full"
        )
