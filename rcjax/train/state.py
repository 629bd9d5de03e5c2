"""What training changes from step to step: parameters, optimizer state, step."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from rcjax import model as llama
from rcjax.layout import RULE_SETS, Layout
from rcjax.model import LlamaConfig
from rcjax.sharding import RULES, Placed, Rules, check_divides, tensor_spec

Params = Any
AnyMesh = Mesh | AbstractMesh


@flax.struct.dataclass
class TrainState:
    """One pytree: ``step`` int32 [], ``params`` nested dict of master weights, ``opt_state`` of optax.

    ``skipped`` int32 []: how many of the steps changed nothing, since their gradient was not finite or since the run
    went back behind them; the optimizer does not count them.
    ``ema``: a moving average of ``params`` (``Average``), or None.
    """

    step: jax.Array
    skipped: jax.Array
    params: Params
    opt_state: optax.OptState
    ema: Params | None = None


@dataclasses.dataclass(frozen=True)
class Average:
    """Exponential moving average of parameters p, brought up to date behind every ``every``-th optimizer step.

    The n-th update is ema += w (p - ema). Without correction w = 1 - decay, and the average starts from the
    parameters of step 0, which it forgets slowly. With ``bias_correction`` w = (1 - decay) / (1 - decay**n): that is
    the average started from 0 and divided by 1 - decay**n (Kingma & Ba 2015, arXiv 1412.6980, section 3), kept
    divided, so that it can be used as it lies.

    Attributes:
      decay: from 0 (the newest parameters) to below 1.
      every: optimizer steps between two updates.
    """

    decay: float = 0.999
    every: int = 1
    bias_correction: bool = True

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise ValueError(f"config.teacher.decay is {self.decay}; expected at least 0 and below 1")
        if self.every < 1:
            raise ValueError(f"config.teacher.every is {self.every}; expected at least 1")

    def update(self, ema: Params, params: Params, step: jax.Array) -> Params:
        """The average after optimizer step ``step`` (from 1), which made ``params``."""
        count = (step // self.every).astype(jnp.result_type(float))
        weight = 1.0 - self.decay
        if self.bias_correction:
            weight = weight / (1.0 - self.decay ** jnp.maximum(count, 1))
        weight = jnp.where(step % self.every == 0, weight, 0.0)
        return jax.tree.map(lambda old, new: old + weight.astype(old.dtype) * (new - old), ema, params)


def learning_rate_schedule(learning_rate: float, warmup_ratio: float, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0 over W = ceil(warmup_ratio * total_steps) steps, then cosine to 0.

    Step i (from 0) uses lr * i / W for i < W, else lr * (1 + cos(pi (i - W) / (total_steps - W))) / 2,
    as transformers' cosine schedule does.
    """
    warmup = math.ceil(warmup_ratio * total_steps)

    def schedule(step):
        step = jnp.asarray(step, jnp.result_type(float))  # float64 in float64 runs, whatever the counter is
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * (step - warmup) / max(1, total_steps - warmup)))
        return learning_rate * jnp.where(step < warmup, step / max(1, warmup), cosine)

    return schedule


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Gradient times min(1, limit / (norm + 1e-6)): torch's rule, which optax's differs from by the 1e-6."""

    def update(updates, state, params=None):
        scale = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda gradient: gradient * scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(config, total_steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW with clipping from ``config.optimizer``; weight decay leaves vectors (norms, biases) alone."""
    schedule = learning_rate_schedule(config.learning_rate, config.warmup_ratio, total_steps)
    adamw = optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decays,
    )
    return optax.chain(clip_by_global_norm(config.clip), adamw), schedule


def decays(params: Params) -> Any:
    """True for matrices. Norm scales are [D], or [layers, D] when stacked, and are named ``scale``."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "scale" not in jax.tree_util.keystr(path[-1:]), params)


def tensors_of(config: LlamaConfig, rules: Rules, whose: str = "") -> list[Placed]:
    """Every parameter by name, with the rules that something of its shape is to lie by.

    Args:
      whose: stands before the names.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(llama.abstract_params(config))
    axes = jax.tree.leaves(llama.logical_axes(config), is_leaf=lambda leaf: isinstance(leaf, tuple))
    return [
        Placed(whose + jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, names, rules)
        for (path, leaf), names in zip(flat, axes, strict=True)
    ]


def check_mesh(config: LlamaConfig, layout: Layout, mesh: AnyMesh, teacher: LlamaConfig | None = None) -> None:
    """Refuses a mesh that does not divide a dimension of anything that training keeps or computes.

    Args:
      teacher: shape of another network that teaches.

    Raises:
      ValueError: names the tensor, the dimension, and the nearest meshes that do, before anything is allocated.
    """
    # Whatever the rules of what lies between programs, layers are computed by those of `tensor`.
    kept = [layout.params, layout.gradients, layout.optimizer, layout.ema, RULE_SETS["tensor"]]
    tensors = [tensor for rules in kept for tensor in tensors_of(config, rules)]
    if teacher is not None:
        for rules in (layout.teacher, RULE_SETS["tensor"]):
            tensors += tensors_of(teacher, rules, "the teacher's ")
    check_divides(mesh, tensors)


def param_shardings(config: LlamaConfig, mesh: AnyMesh, rules: Rules = RULES) -> Params:
    """Where each parameter lives: the parameter dict with a NamedSharding at each leaf.

    Raises:
      ValueError: the mesh does not divide a dimension (named), before anything is allocated.
    """
    tensors = tensors_of(config, rules)
    check_divides(mesh, tensors)
    places = [NamedSharding(mesh, tensor_spec(mesh, tensor)) for tensor in tensors]
    return jax.tree.unflatten(jax.tree.structure(llama.abstract_params(config)), places)


def state_shardings(
    config: LlamaConfig,
    tx: optax.GradientTransformation,
    mesh: AnyMesh,
    *,
    ema: bool = False,
    layout: Layout | None = None,
) -> TrainState:
    """Where each tensor of the state lives: a TrainState of NamedShardings.

    Args:
      ema: the state keeps a moving average of the parameters.
      layout: by which rules; None lays everything out as ``param_shardings`` does.

    Raises:
      ValueError: the mesh does not divide a dimension (named), before anything is allocated.
    """
    params, moments, average = (
        param_shardings(config, mesh, rules)
        for rules in ((layout.params, layout.optimizer, layout.ema) if layout else (RULES, RULES, RULES))
    )
    replicated = NamedSharding(mesh, PartitionSpec())
    # What the optimizer keeps for each parameter lies by its rules; counters are replicated.
    opt_state = optax.tree_utils.tree_map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, llama.abstract_params(config)),
        moments,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(
        step=replicated, skipped=replicated, params=params, opt_state=opt_state, ema=average if ema else None
    )


def init_state(
    config: LlamaConfig,
    tx: optax.GradientTransformation,
    shardings: TrainState,
    seed: int,
    params: Params | None = None,
) -> TrainState:
    """The state before the first step, every tensor born where it lives.

    Args:
      params: imported ones, laid out as ``shardings`` says; None draws them from ``seed``.
    """
    if params is None:
        init = functools.partial(llama.init_params, config)
        params = jax.jit(init, out_shardings=shardings.params)(jax.random.key(seed))
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
    step, skipped = (jax.jit(lambda: jnp.zeros((), jnp.int32), out_shardings=shardings.step)() for _ in range(2))
    ema = None
    if shardings.ema is not None:  # a copy: the first update gives the buffers of both away
        ema = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings.ema)(params)
    return TrainState(step=step, skipped=skipped, params=params, opt_state=opt_state, ema=ema)


def abstract_params(config: LlamaConfig, shardings: Params) -> Params:
    """Shapes, dtypes and shardings of the parameters alone."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        llama.abstract_params(config),
        shardings,
    )


def abstract_state(config: LlamaConfig, tx: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of the state: what a checkpoint is restored into."""

    def init():
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), llama.abstract_params(config))
        ema = None if shardings.ema is None else params
        zero = jnp.zeros((), jnp.int32)
        return TrainState(step=zero, skipped=zero, params=params, opt_state=tx.init(params), ema=ema)

    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(init),
        shardings,
    )
