"""What training changes from step to step: parameters, optimizer state, step."""

from __future__ import annotations

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rcjax import model as llama
from rcjax.model import LlamaConfig
from rcjax.sharding import check_divides, partition_spec

Params = Any


@flax.struct.dataclass
class TrainState:
    """One pytree: ``step`` int32 [], ``params`` nested dict of master weights, ``opt_state`` of optax."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState


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
        scale = jnp.minimum(1.0, limit / (optax.global_norm(updates) + 1e-6))
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


def state_shardings(config: LlamaConfig, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Where each tensor of the state lives: a TrainState of NamedShardings.

    Raises:
      ValueError: the mesh does not divide a dimension (named), before anything is allocated.
    """
    shapes = llama.abstract_params(config)

    def place(path, shape, axes):
        spec = partition_spec(axes)
        check_divides(mesh, shape.shape, spec, jax.tree_util.keystr(path, simple=True, separator="/"))
        return NamedSharding(mesh, spec)

    params = jax.tree_util.tree_map_with_path(
        place, shapes, llama.logical_axes(config), is_leaf=lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    )
    replicated = NamedSharding(mesh, PartitionSpec())
    # Moments lie as their parameters do; counters are replicated.
    opt_state = optax.tree_utils.tree_map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, shapes),
        params,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(step=replicated, params=params, opt_state=opt_state)


def init_state(config: LlamaConfig, tx: optax.GradientTransformation, shardings: TrainState, seed: int) -> TrainState:
    """Fresh state, every tensor born where it lives."""

    def init(key):
        params = llama.init_params(config, key)
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))

    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))


def abstract_state(config: LlamaConfig, tx: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of the state: what a checkpoint is restored into."""

    def init():
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), llama.abstract_params(config))
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))

    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(init),
        shardings,
    )
