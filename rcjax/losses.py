"""Cross-entropy and distillation over a large vocabulary, in chunks.

Only labelled slots reach the output projection: gather first, project second. A chunk of labels is projected,
its loss taken and its gradient with respect to hidden states and projection computed at once, so no
[tokens, vocabulary] tensor outlives a chunk; the backward pass only scales what the forward pass kept.
Logits, softmax and loss are float32 (float64 in float64 runs) whatever the compute dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

Labels = Mapping[str, jax.Array]

SINGLE = ("single_targets", "single_ce")
PAIR = ("pair_targets", "pair_teacher_ce", "pair_student_ce", "pair_kd")


def kl_divergence(teacher_logits: jax.Array, student_logits: jax.Array, temperature: float = 1.0) -> jax.Array:
    """KL(teacher || student) of softmax(logits / T), times T**2 (Hinton et al. 2015, so that gradients keep scale).

    The teacher's logits are a constant. [..., V], [..., V] -> [...].
    """
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits) / temperature)
    student = jax.nn.log_softmax(student_logits / temperature)
    return jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1) * temperature**2


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits)[target]: [..., V], [...] -> [...]."""
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def vocabulary_loss(
    hidden: jax.Array,
    head: jax.Array,
    labels: Labels,
    *,
    ce_weight: float,
    kd_weight: float,
    temperature: float = 1.0,
    chunk: int = 64,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of one microbatch, ``ce_weight * CE + kd_weight * KL``.

    Args:
      hidden: [B, S, D] final hidden states.
      head: [D, V] output projection.
      labels: ``single_*`` [B, K] and ``pair_*`` [B, P] of ``packing.assemble``; weights are normalised already.
      ce_weight, kd_weight: the objective's.
      temperature: of the divergence.
      chunk: label columns projected at a time (B * chunk rows of logits, twice that for pairs).

    Returns:
      The loss (a scalar) and its parts ``ce`` and ``kl`` (for metrics; no gradient flows through the parts).
    """
    with jax.named_scope("gather_labels"):
        single = _gather(hidden, labels["single_slots"])  # [B, K, D]
        teacher = _gather(hidden, labels["pair_teacher_slots"])  # [B, P, D]
        student = _gather(hidden, labels["pair_student_slots"])  # [B, P, D]
    single_labels = {name: labels[name] for name in SINGLE}
    pair_labels = {name: labels[name] for name in PAIR}
    weights = (float(ce_weight), float(kd_weight), float(temperature))
    with jax.named_scope("vocabulary_loss"):
        loss_s, ce_s, kl_s = _chunked(_single_loss, weights, chunk, (single,), head, single_labels)
        loss_p, ce_p, kl_p = _chunked(_pair_loss, weights, chunk, (teacher, student), head, pair_labels)
    return loss_s + loss_p, {"ce": ce_s + ce_p, "kl": kl_s + kl_p}


def _gather(hidden: jax.Array, slots: jax.Array) -> jax.Array:
    return jnp.take_along_axis(hidden, slots[..., None], axis=1)


def _project(states: jax.Array, head: jax.Array) -> jax.Array:
    precise = jnp.promote_types(jnp.float32, states.dtype)
    return jnp.einsum("bcd,dv->bcv", states, head, preferred_element_type=precise)


def _single_loss(weights, states, head, labels):
    nll = cross_entropy(_project(states[0], head), labels["single_targets"])  # [B, C]
    ce = jnp.sum(nll * labels["single_ce"])
    return weights[0] * ce, (ce, jnp.zeros_like(ce))


def _pair_loss(weights, states, head, labels):
    teacher, student = (_project(state, head) for state in states)  # [B, C, V]
    ce = jnp.sum(cross_entropy(teacher, labels["pair_targets"]) * labels["pair_teacher_ce"])
    ce += jnp.sum(cross_entropy(student, labels["pair_targets"]) * labels["pair_student_ce"])
    kl = jnp.sum(kl_divergence(teacher, student, weights[2]) * labels["pair_kd"])
    return weights[0] * ce + weights[1] * kl, (ce, kl)


def _chunks_in_use(labels: Labels, chunk: int) -> jax.Array:
    used = functools.reduce(jnp.logical_or, (value != 0 for name, value in labels.items() if "targets" not in name))
    columns = jnp.where(used, jnp.arange(1, used.shape[1] + 1), 0)
    return (jnp.max(columns, initial=0) + chunk - 1) // chunk


def _padded(array: jax.Array, chunk: int) -> jax.Array:
    short = -array.shape[1] % chunk
    return jnp.pad(array, ((0, 0), (0, short), *((0, 0),) * (array.ndim - 2)))


def _slice(array: jax.Array, index: jax.Array, chunk: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, index * chunk, chunk, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(loss_fn, weights, chunk, states, head, labels):
    """Sum of ``loss_fn`` over chunks of label columns: (loss, ce, kl). Only ``loss`` is differentiable."""
    states = tuple(_padded(state, chunk) for state in states)
    labels = {name: _padded(value, chunk) for name, value in labels.items()}

    def body(index, totals):
        part = tuple(_slice(state, index, chunk) for state in states)
        loss, (ce, kl) = loss_fn(weights, part, head, {n: _slice(v, index, chunk) for n, v in labels.items()})
        return totals[0] + loss, totals[1] + ce, totals[2] + kl

    zero = jnp.zeros((), jnp.promote_types(jnp.float32, states[0].dtype))
    return jax.lax.fori_loop(0, _chunks_in_use(labels, chunk), body, (zero, zero, zero))


def _chunked_forward(loss_fn, weights, chunk, states, head, labels):
    lengths = [state.shape[1] for state in states]
    states = tuple(_padded(state, chunk) for state in states)
    labels = {name: _padded(value, chunk) for name, value in labels.items()}
    precise = jnp.promote_types(jnp.float32, states[0].dtype)

    def body(index, carry):
        (loss, ce, kl), d_states, d_head = carry
        part = tuple(_slice(state, index, chunk) for state in states)
        part_labels = {name: _slice(value, index, chunk) for name, value in labels.items()}
        (new_loss, (new_ce, new_kl)), (d_part, d_head_part) = jax.value_and_grad(
            lambda part, head: loss_fn(weights, part, head, part_labels), argnums=(0, 1), has_aux=True
        )(part, head)
        d_states = tuple(
            jax.lax.dynamic_update_slice_in_dim(whole, piece.astype(whole.dtype), index * chunk, axis=1)
            for whole, piece in zip(d_states, d_part, strict=True)
        )
        return (loss + new_loss, ce + new_ce, kl + new_kl), d_states, d_head + d_head_part.astype(precise)

    zero = jnp.zeros((), precise)
    start = ((zero, zero, zero), tuple(map(jnp.zeros_like, states)), jnp.zeros(head.shape, precise))
    totals, d_states, d_head = jax.lax.fori_loop(0, _chunks_in_use(labels, chunk), body, start)
    d_states = tuple(grad[:, :length] for grad, length in zip(d_states, lengths, strict=True))
    return totals, (d_states, d_head.astype(head.dtype))


def _chunked_backward(loss_fn, weights, chunk, kept, cotangents):
    d_states, d_head = kept
    scale = cotangents[0]  # ce and kl are metrics: their cotangents are dropped on purpose
    return (
        tuple((grad * scale).astype(grad.dtype) for grad in d_states),
        (d_head * scale).astype(d_head.dtype),
        None,
    )


_chunked.defvjp(_chunked_forward, _chunked_backward)
