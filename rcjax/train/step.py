"""The optimizer step: microbatches add up gradients, then one update.

Two compiled programs serve a whole curriculum, since microbatches have one shape and only their number varies.
Loss weights come normalised over the step (``packing.assemble``), so adding up is exact whatever the split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rcjax import model as llama
from rcjax.losses import vocabulary_loss
from rcjax.model import LlamaConfig
from rcjax.objective import Objective
from rcjax.sharding import partition_spec
from rcjax.train.state import TrainState

Microbatch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """What the loss needs besides parameters and data; static under jit."""

    model: LlamaConfig
    objective: Objective
    temperature: float = 1.0
    chunk: int = 64
    compute_dtype: Any = jnp.float32
    remat: str = "none"


def loss_fn(params, microbatch: Microbatch, settings: LossSettings) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of one microbatch: one forward pass over packed teacher and student views, then the vocabulary loss.

    Args:
      params: nested dict of master weights.
      microbatch: arrays [M, S] and [M, K] of ``packing.assemble``.

    Returns:
      This microbatch's share of the step's loss, and its parts ``ce`` and ``kl``.
    """
    hidden = llama.apply(
        settings.model,
        params,
        microbatch["tokens"],
        microbatch["positions"],
        microbatch["segment_ids"],
        dtype=settings.compute_dtype,
        remat=settings.remat,
    )  # [M, S, D]
    head = llama.head_kernel(settings.model, params).astype(settings.compute_dtype)  # [D, V]
    return vocabulary_loss(
        hidden,
        head,
        microbatch,
        ce_weight=settings.objective.ce_weight,
        kd_weight=settings.objective.kd_weight,
        temperature=settings.temperature,
        chunk=settings.chunk,
    )


@dataclasses.dataclass(frozen=True)
class Steps:
    """The compiled programs of training.

    ``zeros() -> sums``, ``accumulate(params, sums, microbatch) -> sums`` and
    ``update(state, sums) -> (state, zeroed sums, metrics)``; states and sums are donated.
    """

    zeros: Callable
    accumulate: Callable
    update: Callable
    row_sharding: NamedSharding


def make_steps(
    settings: LossSettings,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    shardings: TrainState,
    mesh: Mesh,
) -> Steps:
    """Compiles (lazily) the step for a mesh."""
    replicated = NamedSharding(mesh, PartitionSpec())
    sums_sharding = {"grads": shardings.params, "loss": replicated, "ce": replicated, "kl": replicated}
    shapes = llama.abstract_params(settings.model)

    def zeros():
        scalar = jnp.zeros((), jnp.promote_types(jnp.float32, settings.compute_dtype))
        grads = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return {"grads": grads, "loss": scalar, "ce": scalar, "kl": scalar}

    def accumulate(params, sums, microbatch):
        (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, microbatch, settings)
        with jax.named_scope("accumulate"):
            return jax.tree.map(jnp.add, sums, {"grads": grads, "loss": loss, **parts})

    def update(state, sums):
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(sums["grads"], state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": sums["loss"],
            "ce": sums["ce"],
            "kl": sums["kl"],
            "learning_rate": schedule(state.step),
            "grad_norm": optax.global_norm(sums["grads"]),
        }
        state = TrainState(step=state.step + 1, params=params, opt_state=opt_state)
        return state, jax.tree.map(jnp.zeros_like, sums), metrics

    return Steps(
        zeros=jax.jit(zeros, out_shardings=sums_sharding),
        accumulate=jax.jit(accumulate, donate_argnums=(1,), out_shardings=sums_sharding),
        update=jax.jit(update, donate_argnums=(0, 1), out_shardings=(shardings, sums_sharding, replicated)),
        row_sharding=NamedSharding(mesh, partition_spec(("batch",))),
    )
