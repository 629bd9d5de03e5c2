"""Cross-entropy and distillation over a large vocabulary, in chunks.

Only labelled slots reach the output projection: gather first, project second. A chunk of labels is projected,
its loss taken and its gradient with respect to hidden states and projection computed at once, so no
[tokens, vocabulary] tensor outlives a chunk; the backward pass only scales what the forward pass kept.
Logits, softmax and loss are float32 (float64 in float64 runs) whatever the compute dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

Labels = Mapping[str, jax.Array]

SINGLE = ("single_targets", "single_ce")
PAIR = ("pair_targets", "pair_teacher_ce", "pair_student_ce", "pair_kd")


def divergence(
    teacher_logits: jax.Array,
    student_logits: jax.Array,
    kind: str = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
) -> jax.Array:
    """D(teacher, student) of softmax(logits / T), times T**2: [..., V], [..., V] -> [...].

    The factor keeps the scale of gradients whatever T is (Hinton et al. 2015, arXiv 1503.02531, section 2). The
    teacher's logits are a constant.

    Args:
      kind: a name of ``DIVERGENCES``.
      temperature: T.
      beta: weight of the teacher in the mixture of ``jsd``.
    """
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits) / temperature)
    student = jax.nn.log_softmax(student_logits / temperature)
    return DIVERGENCES[kind](teacher, student, beta) * temperature**2


def _kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """sum_v exp(p) (p - q) of log-probabilities."""
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def _jsd(teacher: jax.Array, student: jax.Array, beta: float) -> jax.Array:
    """beta KL(teacher || M) + (1 - beta) KL(student || M) with M = beta teacher + (1 - beta) student.

    Generalized Jensen-Shannon divergence: Agarwal et al. 2023, arXiv 2306.13649, section 2.
    """
    mixture = jnp.logaddexp(teacher + jnp.log(beta), student + jnp.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


DIVERGENCES = {
    "forward_kl": lambda teacher, student, beta: _kl(teacher, student),
    "reverse_kl": lambda teacher, student, beta: _kl(student, teacher),
    "jsd": _jsd,
}


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits)[target]: [..., V], [...] -> [...]."""
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


class _Settings(NamedTuple):
    """What a chunk's loss needs besides arrays; static under jit."""

    ce_weight: float
    kd_weight: float
    divergence: str
    temperature: float
    beta: float
    vocab_size: int


def vocabulary_loss(
    hidden: jax.Array,
    head: jax.Array,
    labels: Labels,
    *,
    ce_weight: float,
    kd_weight: float,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    chunk: int = 64,
    vocab_size: int | None = None,
    teacher: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of one microbatch, ``ce_weight * CE + kd_weight * D(teacher, student)``.

    Args:
      hidden: [B, S, D] final hidden states.
      head: [D, V] output projection.
      labels: ``single_*`` [B, K] and ``pair_*`` [B, P] of ``packing.assemble``; weights are normalised already.
      ce_weight, kd_weight: the objective's.
      divergence, temperature, beta: D, see ``rcjax.losses.divergence``.
      chunk: label columns projected at a time (B * chunk rows of logits, twice that for pairs).
      vocab_size: columns of ``head`` that stand for tokens; those behind them are padding. None: all.
      teacher: final hidden states [B, T, D'] and output projection [D', V] of a teacher that is another network;
        ``pair_teacher_slots`` count in its rows then, and it gets no gradient and no cross-entropy. None: the
        teacher's view lies in ``hidden``.

    Returns:
      The loss (a scalar) and its parts ``ce`` and ``kl``, the divergence, whichever it is (for metrics; no gradient
      flows through the parts).
    """
    with jax.named_scope("gather_labels"):
        single = _gather(hidden, labels["single_slots"])  # [B, K, D]
        student = _gather(hidden, labels["pair_student_slots"])  # [B, P, D]
        own = _gather(hidden if teacher is None else teacher[0], labels["pair_teacher_slots"])  # [B, P, D or D']
    single_labels = {name: labels[name] for name in SINGLE}
    pair_labels = {name: labels[name] for name in PAIR}
    size = head.shape[1] if vocab_size is None else vocab_size
    settings = _Settings(float(ce_weight), float(kd_weight), divergence, float(temperature), float(beta), size)
    with jax.named_scope("vocabulary_loss"):
        loss_s, ce_s, kl_s = _chunked(_single_loss, settings, chunk, (single,), (), head, None, single_labels)
        if teacher is None:
            parts = _chunked(_pair_loss, settings, chunk, (student, own), (), head, None, pair_labels)
        else:
            fixed = jax.lax.stop_gradient((own, teacher[1]))
            parts = _chunked(_taught_loss, settings, chunk, (student,), fixed[:1], head, fixed[1], pair_labels)
    loss_p, ce_p, kl_p = parts
    return loss_s + loss_p, {"ce": ce_s + ce_p, "kl": kl_s + kl_p}


def _gather(hidden: jax.Array, slots: jax.Array) -> jax.Array:
    return jnp.take_along_axis(hidden, slots[..., None], axis=1)


def _project(states: jax.Array, head: jax.Array, vocab_size: int) -> jax.Array:
    precise = jnp.promote_types(jnp.float32, states.dtype)
    logits = jnp.einsum("bcd,dv->bcv", states, head, preferred_element_type=precise)
    if vocab_size == head.shape[1]:
        return logits
    # Low enough for a probability of exactly 0 at any temperature, yet finite: 0 * (a - b) stays 0 in a divergence.
    return jnp.where(jnp.arange(head.shape[1]) < vocab_size, logits, -1e30)


def _single_loss(settings: _Settings, states, fixed, head, teacher_head, labels):
    nll = cross_entropy(_project(states[0], head, settings.vocab_size), labels["single_targets"])  # [B, C]
    ce = jnp.sum(nll * labels["single_ce"])
    return settings.ce_weight * ce, (ce, jnp.zeros_like(ce))


def _pair_loss(settings: _Settings, states, fixed, head, teacher_head, labels):
    """Teacher and student are one network: both carry cross-entropy."""
    student, teacher = (_project(state, head, settings.vocab_size) for state in states)  # [B, C, V]
    ce = jnp.sum(cross_entropy(teacher, labels["pair_targets"]) * labels["pair_teacher_ce"])
    return _distilled(settings, teacher, student, ce, labels)


def _taught_loss(settings: _Settings, states, fixed, head, teacher_head, labels):
    """The teacher is another network: the student's side alone."""
    student = _project(states[0], head, settings.vocab_size)
    teacher = _project(fixed[0], teacher_head, settings.vocab_size).astype(student.dtype)
    return _distilled(settings, teacher, student, 0.0, labels)


def _distilled(settings: _Settings, teacher, student, ce, labels):
    ce += jnp.sum(cross_entropy(student, labels["pair_targets"]) * labels["pair_student_ce"])
    apart = divergence(teacher, student, settings.divergence, settings.temperature, settings.beta)  # [B, C]
    kl = jnp.sum(apart * labels["pair_kd"])
    return settings.ce_weight * ce + settings.kd_weight * kl, (ce, kl)


def _chunks_in_use(labels: Labels, chunk: int) -> jax.Array:
    used = functools.reduce(jnp.logical_or, (value != 0 for name, value in labels.items() if "targets" not in name))
    columns = jnp.where(used, jnp.arange(1, used.shape[1] + 1), 0)
    return (jnp.max(columns, initial=0) + chunk - 1) // chunk


def _padded(array: jax.Array, chunk: int) -> jax.Array:
    short = -array.shape[1] % chunk
    return jnp.pad(array, ((0, 0), (0, short), *((0, 0),) * (array.ndim - 2)))


def _slices(arrays, index: jax.Array, chunk: int):
    return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, index * chunk, chunk, axis=1), arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(loss_fn, settings, chunk, states, fixed, head, teacher_head, labels):
    """Sum of ``loss_fn`` over chunks of label columns: (loss, ce, kl). Only ``loss`` is differentiable.

    ``states`` and ``head`` get gradients, ``fixed`` (states of another network) and ``teacher_head`` none.
    """
    states, fixed, labels = jax.tree.map(lambda array: _padded(array, chunk), (states, fixed, labels))

    def body(index, totals):
        part, fixed_part, part_labels = _slices((states, fixed, labels), index, chunk)
        loss, (ce, kl) = loss_fn(settings, part, fixed_part, head, teacher_head, part_labels)
        return totals[0] + loss, totals[1] + ce, totals[2] + kl

    zero = jnp.zeros((), jnp.promote_types(jnp.float32, states[0].dtype))
    return jax.lax.fori_loop(0, _chunks_in_use(labels, chunk), body, (zero, zero, zero))


def _chunked_forward(loss_fn, settings, chunk, states, fixed, head, teacher_head, labels):
    lengths = [state.shape[1] for state in states]
    states, fixed, labels = jax.tree.map(lambda array: _padded(array, chunk), (states, fixed, labels))
    precise = jnp.promote_types(jnp.float32, states[0].dtype)

    def body(index, carry):
        (loss, ce, kl), d_states, d_head = carry
        part, fixed_part, part_labels = _slices((states, fixed, labels), index, chunk)
        (new_loss, (new_ce, new_kl)), (d_part, d_head_part) = jax.value_and_grad(
            lambda part, head: loss_fn(settings, part, fixed_part, head, teacher_head, part_labels),
            argnums=(0, 1),
            has_aux=True,
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


def _chunked_backward(loss_fn, settings, chunk, kept, cotangents):
    d_states, d_head = kept
    scale = cotangents[0]  # ce and kl are metrics: their cotangents are dropped on purpose
    return (
        tuple((grad * scale).astype(grad.dtype) for grad in d_states),
        None,
        (d_head * scale).astype(d_head.dtype),
        None,
        None,
    )


_chunked.defvjp(_chunked_forward, _chunked_backward)
