"""The same step in JAX done the reference's way: both views at full length, dense masks, dense logits.

Written as a JAX user would write it from the formulas, with nothing of ``rcjax.model``: layers in a row (quicker
than a scan on CPU), one attention mask, one projection of every position.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from rcjax.model import LlamaConfig


def logits(config: LlamaConfig, params, tokens: jax.Array, visible: jax.Array) -> jax.Array:
    """[B, L, V] from int32 [B, L] and bool [B, L], the keys that may be seen."""
    length, half = tokens.shape[1], config.head_dim // 2
    angles = jnp.arange(length)[:, None] * config.rope_theta ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]  # [L, 1, H / 2]
    mask = jnp.tri(length, dtype=bool) & visible[:, None]  # [B, L, L]

    def norm(x, scale):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + config.rms_norm_eps) * scale

    def rope(x):
        first, second = jnp.split(x, 2, -1)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    x = params["embed"]["embedding"][tokens]
    groups = config.num_heads // config.num_kv_heads
    for index in range(config.num_layers):
        layer = jax.tree.map(lambda leaf, index=index: leaf[index], params["layers"])
        weights = layer["attention"]
        y = norm(x, layer["attention_norm"]["scale"])
        query = rope(jnp.einsum("bld,dnh->blnh", y, weights["query"]["kernel"]))
        key = rope(jnp.einsum("bld,dnh->blnh", y, weights["key"]["kernel"]))
        value = jnp.einsum("bld,dnh->blnh", y, weights["value"]["kernel"])
        key, value = jnp.repeat(key, groups, 2), jnp.repeat(value, groups, 2)
        scores = jnp.einsum("bqnh,bknh->bnqk", query, key) * config.head_dim**-0.5
        scores = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), -1)
        mixed = jnp.einsum("bnqk,bknh->bqnh", scores, value)
        x = x + jnp.einsum("bqnh,nhd->bqd", mixed, weights["output"]["kernel"])
        y = norm(x, layer["mlp_norm"]["scale"])
        mlp = layer["mlp"]
        x = x + (jax.nn.silu(y @ mlp["gate"]["kernel"]) * (y @ mlp["up"]["kernel"])) @ mlp["down"]["kernel"]
    head = params["embed"]["embedding"].T if config.tie_embeddings else params["head"]["kernel"]
    return norm(x, params["norm"]["scale"]) @ head


def loss(params, batch: Mapping[str, jax.Array], config: LlamaConfig) -> jax.Array:
    """The reference's loss of a ``benchmarks.batches.Dense`` microbatch."""
    tokens = jnp.concatenate([batch["tokens"], batch["tokens"]])
    visible = jnp.concatenate([batch["real"], batch["seen"] & batch["real"]])
    log_probs = jax.nn.log_softmax(logits(config, params, tokens, visible))
    weights = jnp.concatenate([batch["teacher_ce"], batch["student_ce"]])[:, 1:]
    picked = jnp.take_along_axis(log_probs[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    teacher, student = jnp.split(log_probs, 2)
    teacher = jax.lax.stop_gradient(teacher)
    kl = jnp.sum(jnp.exp(teacher) * (teacher - student), -1)
    return -jnp.sum(picked * weights) + jnp.sum(kl * batch["kd"])


class Step:
    """An optimizer step: gradients of microbatches added up, clipped, AdamW."""

    def __init__(self, config: LlamaConfig, params, learning_rate: float = 1e-4):
        self.params = jax.tree.map(jnp.array, params)
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, weight_decay=0.0))
        self.state = tx.init(self.params)
        gradient = jax.value_and_grad(functools.partial(loss, config=config))

        @functools.partial(jax.jit, donate_argnums=1)
        def accumulate(params, sums, batch):
            return jax.tree.map(jnp.add, sums, gradient(params, batch))

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def update(params, state, sums):
            updates, state = tx.update(sums[1], state, params)
            return optax.apply_updates(params, updates), state

        self._accumulate, self._update = accumulate, update

    def __call__(self, batches) -> float:
        sums = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, self.params))
        for batch in batches:
            sums = self._accumulate(self.params, sums, batch)
        total = float(sums[0])
        self.params, self.state = self._update(self.params, self.state, sums)
        jax.block_until_ready(self.params)
        return total
