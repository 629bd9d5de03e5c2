"""Dense float64 oracles: slow, whole, and written without the code under test."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def dense_vocabulary_loss(hidden, head, labels, ce_weight, kd_weight, temperature=1.0):
    """The loss of ``losses.vocabulary_loss`` from full logits of every slot: [B, S, V]."""
    log_probs = jax.nn.log_softmax(hidden @ head, axis=-1)
    rows = np.arange(hidden.shape[0])[:, None]

    def nll(slots, targets):
        return -log_probs[rows, slots, targets]

    ce = jnp.sum(nll(labels["single_slots"], labels["single_targets"]) * labels["single_ce"])
    ce += jnp.sum(nll(labels["pair_teacher_slots"], labels["pair_targets"]) * labels["pair_teacher_ce"])
    ce += jnp.sum(nll(labels["pair_student_slots"], labels["pair_targets"]) * labels["pair_student_ce"])
    logits = hidden @ head / temperature
    teacher = jax.lax.stop_gradient(jax.nn.log_softmax(logits[rows, labels["pair_teacher_slots"]], axis=-1))
    student = jax.nn.log_softmax(logits[rows, labels["pair_student_slots"]], axis=-1)
    kl = jnp.sum(jnp.sum(jnp.exp(teacher) * (teacher - student), -1) * labels["pair_kd"]) * temperature**2
    return ce_weight * ce + kd_weight * kl, (ce, kl)


def dense_llama(config, params, tokens, positions, mask):
    """Final hidden states [B, L, D] with an explicit attention mask bool [B, L, L]; no cache, no blocks, no scan.

    Rows of the mask with nothing to see attend evenly, as plain softmax attention does; their output means nothing.
    """
    x = params["embed"]["embedding"][tokens]
    half = config.head_dim // 2
    frequencies = 1.0 / config.rope_theta ** (np.arange(half) / half)
    angles = positions[..., None] * frequencies  # [B, L, H / 2]
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]

    def norm(x, scale):
        return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + config.rms_norm_eps) * scale

    def rope(x):
        first, second = x[..., :half], x[..., half:]
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    groups = config.num_heads // config.num_kv_heads
    for layer in range(config.num_layers):
        weights = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        attention, mlp = weights["attention"], weights["mlp"]
        y = norm(x, weights["attention_norm"]["scale"])
        query = rope(jnp.einsum("bld,dnh->blnh", y, attention["query"]["kernel"]))
        key = rope(jnp.einsum("bld,dnh->blnh", y, attention["key"]["kernel"]))
        value = jnp.einsum("bld,dnh->blnh", y, attention["value"]["kernel"])
        key, value = jnp.repeat(key, groups, axis=2), jnp.repeat(value, groups, axis=2)
        scores = jnp.einsum("bqnh,bknh->bnqk", query, key) / np.sqrt(config.head_dim)
        probabilities = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1)
        mixed = jnp.einsum("bnqk,bknh->bqnh", probabilities, value)
        x = x + jnp.einsum("bqnh,nhd->bqd", mixed, attention["output"]["kernel"])
        y = norm(x, weights["mlp_norm"]["scale"])
        x = x + (jax.nn.silu(y @ mlp["gate"]["kernel"]) * (y @ mlp["up"]["kernel"])) @ mlp["down"]["kernel"]
    return norm(x, params["norm"]["scale"])


def dense_divergence(kind, teacher_logits, student_logits, temperature, beta):
    """From plain probabilities: [..., V] twice -> [...]."""
    p = jax.nn.softmax(jax.lax.stop_gradient(teacher_logits) / temperature)
    q = jax.nn.softmax(student_logits / temperature)
    m = beta * p + (1 - beta) * q

    def kl(a, b):
        return jnp.sum(a * jnp.log(a / b), -1)

    parts = {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": beta * kl(p, m) + (1 - beta) * kl(q, m)}
    return parts[kind] * temperature**2


def dense_loss(
    config, params, batch, ce_weight, kd_weight, *, divergence="forward_kl", temperature=1.0, beta=0.5, teacher=None
):
    """Loss of a batch of padded examples the reference's way: two passes at full length, the student's with a key mask.

    Args:
      batch: arrays [B, L]: ``tokens``; ``student`` bool, what the student sees (all True: no student view);
        ``teacher_ce``, ``student_ce``, ``kd``: weights by the label's (CE) or the position's (kd) own place,
        0 on padding.
      teacher: (config, params) of another network that teaches; None: the student itself.

    Returns:
      Mean over examples of ``ce_weight * CE + kd_weight * D``, each a weighted mean over the example's own labels.
    """
    tokens = batch["tokens"]
    size, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    causal = np.tril(np.ones((length, length), bool))[None]

    def logits(config, params, mask):
        head = params["embed"]["embedding"].T if config.tie_embeddings else params["head"]["kernel"]
        return dense_llama(config, params, tokens, positions, mask) @ head

    def nll(z):  # of the label at each place but the first
        return -jnp.take_along_axis(jax.nn.log_softmax(z)[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]

    seen = batch["student"][:, 1:] & batch["student"][:, :-1]
    own, student = logits(config, params, causal), logits(config, params, causal & batch["student"][:, None, :])
    teacher_ce, student_ce = batch["teacher_ce"][:, 1:], batch["student_ce"][:, 1:] * seen
    count = teacher_ce.sum(1) + student_ce.sum(1)
    ce = jnp.sum(nll(own) * teacher_ce, 1) + jnp.sum(jnp.where(seen, nll(student), 0) * student_ce, 1)
    taught = own if teacher is None else logits(*teacher, causal)
    per_position = dense_divergence(divergence, taught, student, temperature, beta)
    kd = batch["kd"] * batch["student"]
    kl = jnp.sum(jnp.where(kd > 0, per_position, 0) * kd, 1) / jnp.maximum(kd.sum(1), 1e-9)
    return jnp.sum(ce_weight * ce / jnp.maximum(count, 1e-9) + kd_weight * kl) / size
