"""Cross-entropy and distillation over a large vocabulary, in chunks.

Only labelled slots reach the output projection: gather first, project second. A chunk of labels is projected,
its loss taken and its gradient with respect to hidden states and projection computed at once, so no
[tokens, vocabulary] tensor outlives a chunk; the backward pass only scales what the forward pass kept.
Logits, softmax and loss are float32 (float64 in float64 runs) whatever the compute dtype.

On a mesh each device works its own rows against its own part of the vocabulary (``shard_map``). Of a chunk nothing but
sums of one number a label crosses devices, where the vocabulary is split; gradients are added up once, behind the last
chunk. Left to itself the compiler adds up the projection's whole gradient over devices after every chunk, and gathers
logits over rows (tests/test_losses_on_meshes.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rcjax.sharding import RULES, devices_here, on_each_device, parts_of, rules_here

Labels = Mapping[str, jax.Array]

VOCAB = RULES["vocab"]


def divergence(
    teacher_logits: jax.Array,
    student_logits: jax.Array,
    kind: str = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    split: bool = False,
) -> jax.Array:
    """D(teacher, student) of softmax(logits / T), times T**2: [..., V], [..., V] -> [...].

    The factor keeps the scale of gradients whatever T is (Hinton et al. 2015, arXiv 1503.02531, section 2). The
    teacher's logits are a constant.

    Args:
      kind: a name of ``DIVERGENCES``.
      temperature: T.
      beta: weight of the teacher in the mixture of ``jsd``.
      split: inside of ``shard_map``, logits are this device's part of the vocabulary.
    """
    teacher = _log_softmax(jax.lax.stop_gradient(teacher_logits) / temperature, split)
    student = _log_softmax(student_logits / temperature, split)
    return DIVERGENCES[kind](teacher, student, beta, split) * temperature**2


def _kl(p: jax.Array, q: jax.Array, split: bool) -> jax.Array:
    """sum_v exp(p) (p - q) of log-probabilities."""
    return _total(jnp.exp(p) * (p - q), split)


def _jsd(teacher: jax.Array, student: jax.Array, beta: float, split: bool) -> jax.Array:
    """beta KL(teacher || M) + (1 - beta) KL(student || M) with M = beta teacher + (1 - beta) student.

    Generalized Jensen-Shannon divergence: Agarwal et al. 2023, arXiv 2306.13649, section 2.
    """
    mixture = jnp.logaddexp(teacher + jnp.log(beta), student + jnp.log1p(-beta))
    return beta * _kl(teacher, mixture, split) + (1 - beta) * _kl(student, mixture, split)


DIVERGENCES = {
    "forward_kl": lambda teacher, student, beta, split: _kl(teacher, student, split),
    "reverse_kl": lambda teacher, student, beta, split: _kl(student, teacher, split),
    "jsd": _jsd,
}


def cross_entropy(logits: jax.Array, targets: jax.Array, split: bool = False) -> jax.Array:
    """-log softmax(logits)[target]: [..., V], [...] -> [...]; ``split`` as in ``divergence``."""
    if not split:
        # Not a gather, whose gradient is a scatter: on a GPU that is one more pass over all logits.
        hit = jnp.arange(logits.shape[-1]) == targets[..., None]
        return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(hit, logits, 0), axis=-1)
    shifted, log_total = _shifted(logits)
    index = targets - _first_column(logits.shape[-1])
    mine = (index >= 0) & (index < logits.shape[-1])
    picked = jnp.take_along_axis(shifted, jnp.where(mine, index, 0)[..., None], axis=-1)[..., 0]
    return log_total - _add_parts(jnp.where(mine, picked, 0))


# ---- a vocabulary that is split over devices


def _log_softmax(logits: jax.Array, split: bool) -> jax.Array:
    if not split:
        return jax.nn.log_softmax(logits)
    shifted, log_total = _shifted(logits)
    return shifted - _use_in_parts(log_total)[..., None]


def _shifted(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(logits - the largest of all parts, log of the sum of exp of those of all parts)."""
    largest = jax.lax.pmax(jnp.max(jax.lax.stop_gradient(logits), axis=-1), VOCAB)
    shifted = logits - largest[..., None]
    return shifted, jnp.log(_total(jnp.exp(shifted), True))


def _total(x: jax.Array, split: bool) -> jax.Array:
    """Sum over the vocabulary."""
    total = jnp.sum(x, axis=-1)
    return _add_parts(total) if split else total


def _first_column(size: int) -> jax.Array:
    return jax.lax.axis_index(VOCAB) * size


# Every device computes the same loss of what it has added up, and differentiates that. So the gradient of a sum over
# devices is, for a device's own part, the gradient that it has; and that of a number which all devices use for their
# parts is the sum of theirs.
@jax.custom_vjp
def _add_parts(x: jax.Array) -> jax.Array:
    return jax.lax.psum(x, VOCAB)


_add_parts.defvjp(lambda x: (_add_parts(x), None), lambda _, gradient: (gradient,))


@jax.custom_vjp
def _use_in_parts(x: jax.Array) -> jax.Array:
    return x


_use_in_parts.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.psum(gradient, VOCAB),))


# ---- the loss


class _Settings(NamedTuple):
    """What the loss needs besides arrays; static under jit."""

    ce_weight: float
    kd_weight: float
    divergence: str
    temperature: float
    beta: float
    vocab_size: int
    chunk: int
    rows: tuple[str, ...]  # mesh axes that split rows; none where one device works alone
    split: bool  # the vocabulary too is split
    scattered: str | None  # logical axis over which the projection's gradient, [D, V], is scattered along D
    scattered_over: tuple[str, ...]  # its mesh axes


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
    rules = rules_here() if devices_here() > 1 else {}
    scattered = next((axis for axis in ("scattered", "embed") if rules and head.shape[0] % parts_of(axis) == 0), None)
    settings = _Settings(
        float(ce_weight),
        float(kd_weight),
        divergence,
        float(temperature),
        float(beta),
        head.shape[1] if vocab_size is None else vocab_size,
        chunk,
        rules.get("batch", ()),
        parts_of("vocab") > 1 and head.shape[1] % parts_of("vocab") == 0,
        scattered,
        rules.get(scattered, ()),
    )
    labels = {name: labels[name] for names in (SINGLE, PAIR) for name in names}
    with jax.named_scope("vocabulary_loss"):
        loss, ce, kl = _loss(settings, hidden, head, *jax.lax.stop_gradient(teacher or (None, None)), labels)
    return loss, {"ce": ce, "kl": kl}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(settings: _Settings, hidden, head, teacher, teacher_head, labels):
    """(loss, ce, kl). Only ``loss`` is differentiable, by ``hidden`` and ``head``."""
    return _everywhere(_totals, settings, ((), (), ()))(hidden, head, teacher, teacher_head, labels)


def _forward(settings: _Settings, hidden, head, teacher, teacher_head, labels):
    gradients = ("batch", None, None), (settings.scattered, "vocab" if settings.split else None)
    run = _everywhere(_totals_and_gradients, settings, ((), (), (), *gradients))
    loss, ce, kl, d_hidden, d_head = run(hidden, head, teacher, teacher_head, labels)
    return (loss, ce, kl), (d_hidden, d_head)


def _backward(settings: _Settings, kept, cotangents):
    scale = cotangents[0]  # ce and kl are metrics: their cotangents are dropped on purpose
    d_hidden, d_head = ((gradient * scale).astype(gradient.dtype) for gradient in kept)
    return d_hidden, d_head, None, None, None


_loss.defvjp(_forward, _backward)


def _everywhere(function, settings: _Settings, out_axes):
    """``function`` on the rows, and the part of the vocabulary, of each device."""
    rows, columns = ("batch", None, None), (None, "vocab" if settings.split else None)
    return on_each_device(
        functools.partial(function, settings), (rows, columns, rows, columns, ("batch", None)), out_axes
    )


def _totals(settings: _Settings, hidden, head, teacher, teacher_head, labels):
    totals = _zeros(hidden, 3)
    for part in PARTS if teacher is None else TAUGHT_PARTS:
        part_labels = part.labels(labels, settings.chunk)

        def body(index, totals, part=part, part_labels=part_labels):
            chunk = _slices(part_labels, index, settings.chunk)
            states, fixed = part.states(hidden, teacher, chunk)
            fixed = None if fixed is None else _project(fixed, teacher_head)
            loss, (ce, kl) = part.of_logits(settings, fixed, chunk)(_project(states, head))
            return totals[0] + loss, totals[1] + ce, totals[2] + kl

        totals = jax.lax.fori_loop(0, _chunks_in_use(settings, part_labels), body, totals)
    return jax.lax.psum(totals, settings.rows) if settings.rows else totals


def _totals_and_gradients(settings: _Settings, hidden, head, teacher, teacher_head, labels):
    precise = jnp.promote_types(jnp.float32, hidden.dtype)
    carry = _zeros(hidden, 3), jnp.zeros(hidden.shape, precise), jnp.zeros(head.shape, precise)
    rows = jnp.arange(hidden.shape[0])[:, None]
    for part in PARTS if teacher is None else TAUGHT_PARTS:
        part_labels = part.labels(labels, settings.chunk)

        def body(index, carry, part=part, part_labels=part_labels):
            (loss, ce, kl), d_hidden, d_head = carry
            chunk = _slices(part_labels, index, settings.chunk)
            states, fixed = part.states(hidden, teacher, chunk)
            fixed = None if fixed is None else _project(fixed, teacher_head)
            of_logits = jax.value_and_grad(part.of_logits(settings, fixed, chunk), has_aux=True)
            (new_loss, (new_ce, new_kl)), d_logits = of_logits(_project(states, head))
            # Products of bfloat16 with float32 would be done in float32, the projection widened again in every chunk.
            d_logits = d_logits.astype(hidden.dtype)
            d_states = jnp.einsum("bcv,dv->bcd", d_logits, head, preferred_element_type=precise)
            d_head = d_head + jnp.einsum("bcd,bcv->dv", states, d_logits, preferred_element_type=precise)
            with jax.named_scope("gather_labels"):
                d_hidden = d_hidden.at[rows, part.slots(chunk)].add(d_states)
            return (loss + new_loss, ce + new_ce, kl + new_kl), d_hidden, d_head

        carry = jax.lax.fori_loop(0, _chunks_in_use(settings, part_labels), body, carry)
    totals, d_hidden, d_head = carry
    if settings.rows:
        totals = jax.lax.psum(totals, settings.rows)
        axes = settings.scattered_over
        d_head = jax.lax.psum(d_head, tuple(axis for axis in settings.rows if axis not in axes))
        d_head = jax.lax.psum_scatter(d_head, axes, scatter_dimension=0, tiled=True) if axes else d_head
        if settings.split:
            d_hidden = jax.lax.psum(d_hidden, VOCAB)
    return *totals, d_hidden.astype(hidden.dtype), d_head.astype(head.dtype)


def _zeros(hidden: jax.Array, count: int) -> tuple[jax.Array, ...]:
    return (jnp.zeros((), jnp.promote_types(jnp.float32, hidden.dtype)),) * count


def _chunks_in_use(settings: _Settings, labels: Labels) -> jax.Array:
    weights = (value != 0 for name, value in labels.items() if not name.endswith(("targets", "slots")))
    used = functools.reduce(jnp.logical_or, weights)
    columns = jnp.where(used, jnp.arange(1, used.shape[1] + 1), 0)
    count = (jnp.max(columns, initial=0) + settings.chunk - 1) // settings.chunk
    # Devices that share rows talk in every chunk. All run as many, so that no device ever waits for one that is done.
    return jax.lax.pmax(count, settings.rows) if settings.split else count


def _slices(arrays: Labels, index: jax.Array, chunk: int) -> Labels:
    return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, index * chunk, chunk, axis=1), arrays)


def _gather(hidden: jax.Array, slots: jax.Array) -> jax.Array:
    return jnp.take_along_axis(hidden, slots[..., None], axis=1)


# ---- what a chunk of labels costs


class _Part(NamedTuple):
    """Labels of one kind.

    Attributes:
      names: of the arrays that describe them.
      slot_names: of those, which slots of ``hidden`` are projected; behind one another where there are several.
      loss: (settings, logits, fixed logits or None, labels) -> (loss, (ce, kl)).
      fixed_slots: which slots of another network's states are.
    """

    names: tuple[str, ...]
    slot_names: tuple[str, ...]
    loss: Callable
    fixed_slots: str = ""

    def labels(self, labels: Labels, chunk: int) -> Labels:
        """Its labels, padded to whole chunks."""
        short = -labels[self.names[0]].shape[1] % chunk
        return {name: jnp.pad(labels[name], ((0, 0), (0, short))) for name in self.names}

    def slots(self, labels: Labels) -> jax.Array:
        return jnp.concatenate([labels[name] for name in self.slot_names], axis=1)

    def states(self, hidden, teacher, labels: Labels) -> tuple[jax.Array, jax.Array | None]:
        with jax.named_scope("gather_labels"):
            fixed = _gather(teacher, labels[self.fixed_slots]) if self.fixed_slots else None
            return _gather(hidden, self.slots(labels)), fixed

    def of_logits(self, settings: _Settings, fixed: jax.Array | None, labels: Labels) -> Callable:
        """logits [B, C, V] -> (loss, (ce, kl))."""
        fixed = None if fixed is None else _without_padding(settings, fixed)
        return lambda logits: self.loss(settings, _without_padding(settings, logits), fixed, labels)


def _project(states: jax.Array, head: jax.Array) -> jax.Array:
    precise = jnp.promote_types(jnp.float32, states.dtype)
    return jnp.einsum("bcd,dv->bcv", states, head, preferred_element_type=precise)


def _without_padding(settings: _Settings, logits: jax.Array) -> jax.Array:
    """Columns that stand for no token as good as gone."""
    size = logits.shape[-1]
    if not settings.split and settings.vocab_size == size:
        return logits
    columns = jnp.arange(size) + (_first_column(size) if settings.split else 0)
    # Low enough for a probability of exactly 0 at any temperature, yet finite: 0 * (a - b) stays 0 in a divergence.
    return jnp.where(columns < settings.vocab_size, logits, -1e30)


def _single_loss(settings: _Settings, logits, fixed, labels):
    ce = jnp.sum(cross_entropy(logits, labels["single_targets"], settings.split) * labels["single_ce"])
    return settings.ce_weight * ce, (ce, jnp.zeros_like(ce))


def _pair_loss(settings: _Settings, logits, fixed, labels):
    """Teacher and student are one network: both carry cross-entropy."""
    student, teacher = jnp.split(logits, 2, axis=1)  # [B, C, V] of one product
    ce = jnp.sum(cross_entropy(teacher, labels["pair_targets"], settings.split) * labels["pair_teacher_ce"])
    return _distilled(settings, teacher, student, ce, labels)


def _taught_loss(settings: _Settings, logits, fixed, labels):
    """The teacher is another network: the student's side alone."""
    return _distilled(settings, fixed.astype(logits.dtype), logits, 0.0, labels)


def _distilled(settings: _Settings, teacher, student, ce, labels):
    ce += jnp.sum(cross_entropy(student, labels["pair_targets"], settings.split) * labels["pair_student_ce"])
    apart = divergence(
        teacher, student, settings.divergence, settings.temperature, settings.beta, settings.split
    )  # [B, C]
    kl = jnp.sum(apart * labels["pair_kd"])
    return settings.ce_weight * ce + settings.kd_weight * kl, (ce, kl)


SINGLE = ("single_slots", "single_targets", "single_ce")
PAIR = ("pair_teacher_slots", "pair_student_slots", "pair_targets", "pair_teacher_ce", "pair_student_ce", "pair_kd")
PARTS = (
    _Part(SINGLE, ("single_slots",), _single_loss),
    _Part(PAIR, ("pair_student_slots", "pair_teacher_slots"), _pair_loss),
)
TAUGHT_PARTS = (PARTS[0], _Part(PAIR, ("pair_student_slots",), _taught_loss, "pair_teacher_slots"))
