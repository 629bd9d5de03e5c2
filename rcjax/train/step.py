"""The optimizer step: microbatches add up gradients, then one update.

Two compiled programs serve a whole curriculum, since microbatches have one shape and only their number varies.
Loss weights come normalised over the step (``packing.assemble``), so adding up is exact whatever the split.

Where devices hold the same sums, along ``replica`` or ``data``, each keeps those of its own rows instead: that takes no
more memory, and they cross devices once a step and not once a microbatch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rcjax import model as llama
from rcjax.losses import vocabulary_loss
from rcjax.model import LlamaConfig
from rcjax.model.precision import full_precision
from rcjax.objective import Objective
from rcjax.sharding import RULES, apart, partition_spec
from rcjax.train.state import Average, TrainState

Microbatch = dict[str, jax.Array]
NORMS = "norms"  # metric of the update: the gradient's norms by tensor and layer where it is not finite, else zeros


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """What the loss needs besides parameters and data; static under jit.

    Attributes:
      teacher: shape of a teacher that is another network; its vocabulary is the model's.
    """

    model: LlamaConfig
    objective: Objective
    teacher: LlamaConfig | None = None
    chunk: int = 64
    compute_dtype: Any = jnp.float32
    remat: str = "none"
    # None takes what is quicker on the backend; state both to compile for another backend than one's own.
    scan_layers: bool | None = None
    attention: str | None = None


def loss_fn(
    params, microbatch: Microbatch, settings: LossSettings, teacher_params=None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of one microbatch: one forward pass over packed teacher and student views, then the vocabulary loss.

    Args:
      params: nested dict of master weights.
      microbatch: arrays [M, S] and [M, K] of ``packing.assemble``.
      teacher_params: of ``settings.teacher``, of any dtype; it reads the microbatch's ``teacher_tokens``, if there are
        any, in a pass of its own that keeps nothing for a backward pass.

    Returns:
      This microbatch's share of the step's loss, and its parts ``ce`` and ``kl``.
    """
    hidden = _states(settings.model, params, microbatch, "", settings, settings.remat)  # [M, S, D]
    head = llama.head_kernel(settings.model, params).astype(settings.compute_dtype)  # [D, V]
    teacher = None
    if "teacher_tokens" in microbatch:
        with jax.named_scope("teacher"):
            fixed = jax.lax.stop_gradient(teacher_params)
            states = _states(settings.teacher, fixed, microbatch, "teacher_", settings, "none")  # [M, T, D']
            teacher = states, llama.head_kernel(settings.teacher, fixed).astype(settings.compute_dtype)
    objective = settings.objective
    return vocabulary_loss(
        hidden,
        head,
        microbatch,
        ce_weight=objective.ce_weight,
        kd_weight=objective.kd_weight,
        divergence=objective.divergence,
        temperature=objective.temperature,
        beta=objective.beta,
        chunk=settings.chunk,
        vocab_size=settings.model.vocab_size,
        teacher=teacher,
    )


def _states(
    config: LlamaConfig, params, microbatch: Microbatch, prefix: str, settings: LossSettings, remat: str
) -> jax.Array:
    """Final hidden states [M, S, D] of the rows whose arrays bear ``prefix``."""
    rows = (microbatch[prefix + name] for name in ("tokens", "positions", "segment_ids"))
    return llama.apply(
        config,
        params,
        *rows,
        dtype=settings.compute_dtype,
        remat=remat,
        scan_layers=settings.scan_layers,
        attention=settings.attention,
    )


@dataclasses.dataclass(frozen=True)
class Steps:
    """The compiled programs of training.

    ``zeros() -> sums``, ``accumulate(params, sums, microbatch, teacher_params) -> sums`` and
    ``update(state, sums) -> (state, zeroed sums, metrics)``; states and sums are donated. Where loss or gradient are
    not finite, ``update`` counts the step as skipped and leaves everything else as it is. ``teacher_params`` is None
    where the network teaches itself. ``row_sharding`` and ``sums_shardings`` tell where microbatches and sums lie.
    Where groups of devices keep sums of their own, these have a first dimension more, with a place for each group.
    """

    zeros: Callable
    accumulate: Callable
    update: Callable
    row_sharding: NamedSharding
    sums_shardings: dict[str, Any]


def make_steps(
    settings: LossSettings,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    shardings: TrainState,
    mesh: Mesh,
    average: Average | None = None,
    gradients: Any = None,
) -> Steps:
    """Compiles (lazily) the step for a mesh.

    Args:
      shardings: where each tensor of the state lives.
      average: keeps ``state.ema`` up.
      gradients: where each sum of gradients lives; None: where its parameter does.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    whole = {"grads": gradients or shardings.params, "loss": replicated, "ce": replicated, "kl": replicated}
    groups = _groups(mesh, whole["grads"])
    lead = (math.prod(mesh.shape[axis] for axis in groups),) if groups else ()
    sums_sharding = whole
    if groups:
        sums_sharding = jax.tree.map(lambda place: NamedSharding(mesh, PartitionSpec(groups, *place.spec)), whole)
    shapes = llama.abstract_params(settings.model)

    def zeros():
        scalar = jnp.zeros(lead, jnp.promote_types(jnp.float32, settings.compute_dtype))
        grads = jax.tree.map(lambda leaf: jnp.zeros(lead + leaf.shape, leaf.dtype), shapes)
        return {"grads": grads, "loss": scalar, "ce": scalar, "kl": scalar}

    def add_gradients(params, sums, microbatch, teacher_params):
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        with full_precision(settings.compute_dtype):
            (loss, parts), grads = gradient(params, microbatch, settings, teacher_params)
        with jax.named_scope("accumulate"):  # a group's sums are [1, ...] to it
            return jax.tree.map(jnp.add, sums, {"grads": grads, "loss": loss, **parts})

    def accumulate(params, sums, microbatch, teacher_params=None):
        run = apart(add_gradients, groups, in_split=(False, True, True, False)) if groups else add_gradients
        return run(params, sums, microbatch, teacher_params)

    def update(state, sums_of_groups):
        sums = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), sums_of_groups) if groups else sums_of_groups
        grads, norm = sums["grads"], optax.tree.norm(sums["grads"])
        finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(norm)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        step, skipped = state.step + 1, state.skipped + ~finite
        ema = state.ema if average is None else average.update(state.ema, params, step - skipped)
        # What an infinity would spoil for ever stays as it was.
        params, opt_state, ema = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state, ema),
            (state.params, state.opt_state, state.ema),
        )
        metrics = {
            "loss": sums["loss"],
            "ce": sums["ce"],
            "kl": sums["kl"],
            "learning_rate": schedule(state.step - state.skipped),
            "grad_norm": norm,
            "skipped": skipped,
            NORMS: jax.lax.cond(finite, _no_norms, _norms, grads),
        }
        state = TrainState(step=step, skipped=skipped, params=params, opt_state=opt_state, ema=ema)
        return state, jax.tree.map(jnp.zeros_like, sums_of_groups), metrics

    return Steps(
        zeros=jax.jit(zeros, out_shardings=sums_sharding),
        accumulate=jax.jit(accumulate, donate_argnums=(1,), out_shardings=sums_sharding),
        update=jax.jit(update, donate_argnums=(0, 1), out_shardings=(shardings, sums_sharding, replicated)),
        row_sharding=NamedSharding(mesh, partition_spec(("batch",))),
        sums_shardings=sums_sharding,
    )


def _groups(mesh: Mesh, gradients: Any) -> tuple[str, ...]:
    """The mesh axes along which every device would hold the same sums of gradients."""
    split = {
        axis
        for place in jax.tree.leaves(gradients)
        for entry in place.spec
        for axis in ((entry,) if isinstance(entry, str) else entry or ())
    }
    return tuple(axis for axis in RULES["groups"] if mesh.shape[axis] > 1 and axis not in split)


def _norms(grads):
    """The norm of each tensor, [L] where layers are stacked."""

    def norm(path, leaf):
        axes = range(1 if path[0].key == "layers" else 0, leaf.ndim)
        return jnp.sqrt(jnp.sum(jnp.square(leaf), axis=tuple(axes)))

    return jax.tree_util.tree_map_with_path(norm, grads)


def _no_norms(grads):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(_norms, grads))
