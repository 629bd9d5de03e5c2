"""The model on a few tokens of each row with a cache of keys and values behind it.

Activations are [D, M], M tokens last (see ``weights``). A layer's cache is a pair: keys [R, K, H, T], values
[R, K, T, H], T slots for each of R rows.

In decoding the slots are a ring: all rows write at one slot and move on to the next together, so a step's update is
one slice of the cache, whatever the rows' lengths are. What a row has written so far lies behind that slot, its newest
token first; a row of length n sees the n slots before it. Prompts are run left to right in a scratch cache of the same
form, in which slot and position are one, and come into the ring turned round.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from rcjax.decode.weights import Weights, tensor_shards
from rcjax.model import LlamaConfig
from rcjax.model.rope import rotation
from rcjax.sharding import constrain

Cache = tuple[jax.Array, jax.Array]
KEYS = ("batch", "kv_heads", None, None)  # logical axes of both halves of a cache


def empty_caches(config: LlamaConfig, rows: int, slots: int, dtype) -> list[Cache]:
    """A cache of zeros for each layer."""
    heads, head_dim = config.num_kv_heads, config.head_dim
    return [
        (
            constrain(jnp.zeros((rows, heads, head_dim, slots), dtype), *KEYS),
            constrain(jnp.zeros((rows, heads, slots, head_dim), dtype), *KEYS),
        )
        for _ in range(config.num_layers)
    ]


def step(
    config: LlamaConfig, weights: Weights, caches: list[Cache], token: jax.Array, slot: jax.Array, length: jax.Array
) -> tuple[jax.Array, list[Cache]]:
    """One token a row.

    Args:
      token: int32 [R].
      slot: int32, where the ring is written.
      length: int32 [R], tokens that a row has in the ring already, fewer than T; the position of ``token``.

    Returns:
      Hidden states [D, R] before the last norm, and the caches with the token in them.
    """
    rows, slots = token.shape[0], caches[0][1].shape[2]
    heads, group = config.num_kv_heads, config.num_heads // config.num_kv_heads
    x = _embed(weights, token)  # [D, R]
    precise = jnp.promote_types(jnp.float32, x.dtype)
    table = _table(config, length, x.dtype)
    age = (slot - jnp.arange(slots)) % slots  # [T], steps since a slot was written
    biases = {
        window: jnp.where(age < _reach(length + 1, window)[:, None], 0, jnp.finfo(precise).min)[:, None, None]
        for window in set(config.windows)
    }  # [R, 1, 1, T]
    new = []
    for layer, window, (keys, values) in zip(weights["layers"], config.windows, caches, strict=True):
        query, key, value = _queries_keys_values(config, layer, x, table)  # [N, H, R], [K, H, R] twice
        key, value = (part.transpose(2, 0, 1).astype(keys.dtype) for part in (key, value))  # [R, K, H]
        keys = jax.lax.dynamic_update_slice_in_dim(keys, key[..., None], slot, axis=3)
        values = jax.lax.dynamic_update_slice_in_dim(values, value[:, :, None], slot, axis=2)
        new.append((keys, values))
        query = query.reshape(heads, group, -1, rows).transpose(3, 0, 1, 2) * (1 / math.sqrt(config.head_dim))
        scores = jnp.einsum("rkgh,rkht->rkgt", query, keys.astype(query.dtype), preferred_element_type=precise)
        shares = jax.nn.softmax(scores + biases[window], axis=-1).astype(x.dtype)
        mixed = jnp.einsum("rkgt,rkth->rkgh", shares, values.astype(x.dtype))
        x = _rest_of_layer(config, layer, x, mixed.transpose(1, 2, 3, 0).reshape(-1, rows))
    return x, new


def run_piece(
    config: LlamaConfig, weights: Weights, caches: list[Cache], tokens: jax.Array, start: jax.Array, span: int
) -> tuple[jax.Array, list[Cache]]:
    """The next tokens of some prompts, slots being positions.

    Args:
      tokens: int32 [P, C], at positions ``start`` and on, for the P rows of the caches.
      start: int32; before it the caches hold the prompts.
      span: slots that are looked at, at least ``start + C``.

    Returns:
      Hidden states [D, P, C] before the last norm, and the caches with the tokens in them.
    """
    prompts, count = tokens.shape
    heads, group, head_dim = config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim
    x = _embed(weights, tokens.reshape(-1))  # [D, P * C]
    precise = jnp.promote_types(jnp.float32, x.dtype)
    positions = start + jnp.arange(count)  # [C]
    table = _table(config, jnp.tile(positions, prompts), x.dtype)
    slots = jnp.arange(span)
    masks = {
        window: (slots <= positions[:, None]) & (positions[:, None] - slots < _reach(positions + 1, window)[:, None])
        for window in set(config.windows)
    }  # [C, span]
    new = []
    for layer, window, (keys, values) in zip(weights["layers"], config.windows, caches, strict=True):
        query, key, value = (
            part.reshape(*part.shape[:2], prompts, count)
            for part in _queries_keys_values(config, layer, x, table)  # [N, H, P * C], [K, H, P * C] twice
        )
        key, value = key.transpose(2, 0, 1, 3).astype(keys.dtype), value.transpose(2, 0, 3, 1).astype(values.dtype)
        keys = jax.lax.dynamic_update_slice_in_dim(keys, key, start, axis=3)
        values = jax.lax.dynamic_update_slice_in_dim(values, value, start, axis=2)
        new.append((keys, values))
        query = query.reshape(heads, group, head_dim, prompts, count).transpose(3, 0, 1, 4, 2)
        query = query * (1 / math.sqrt(head_dim))  # [P, K, G, C, H]
        seen_keys, seen_values = keys[..., :span].astype(x.dtype), values[:, :, :span].astype(x.dtype)
        scores = jnp.einsum("pkgch,pkht->pkgct", query, seen_keys, preferred_element_type=precise)
        scores = jnp.where(masks[window], scores, jnp.finfo(precise).min)
        shares = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("pkgct,pkth->pkgch", shares, seen_values)
        x = _rest_of_layer(config, layer, x, mixed.transpose(1, 2, 4, 0, 3).reshape(-1, prompts * count))
    return x.reshape(-1, prompts, count), new


def logits(config: LlamaConfig, weights: Weights, x: jax.Array) -> jax.Array:
    """Hidden states [D, M] -> [V, M] in float32 or wider."""
    x = _norm(x, weights["norm"], config.rms_norm_eps)
    head = weights.get("head", weights["embedding"])
    return jnp.matmul(head, x, preferred_element_type=jnp.promote_types(jnp.float32, x.dtype))


def _embed(weights: Weights, tokens: jax.Array) -> jax.Array:
    """int32 [M] -> [D, M]."""
    return constrain(weights["embedding"][tokens].T, None, "batch")


def _table(config: LlamaConfig, positions: jax.Array, dtype) -> tuple[jax.Array, jax.Array]:
    """Rotary tables [H / 2, M] of int32 [M]."""
    return tuple(part.T for part in rotation(config, positions, dtype))


def _reach(seen: jax.Array, window: int | None) -> jax.Array:
    """Of that many tokens up to and with its own, how many a token attends to."""
    return seen if window is None else jnp.minimum(seen, window)


def _queries_keys_values(config: LlamaConfig, layer: Weights, x: jax.Array, table) -> tuple[jax.Array, ...]:
    """[D, M] -> [N, H, M], [K, H, M] twice, the first two rotated."""
    shards, head_dim, tokens = tensor_shards(), config.head_dim, x.shape[1]
    heads, kv_heads = config.num_heads // shards, config.num_kv_heads // shards
    fused = layer["qkv"] @ _norm(x, layer["attention_norm"], config.rms_norm_eps)
    if config.qkv_bias:
        fused = fused + layer["qkv_bias"][:, None]
    fused = fused.reshape(shards, heads + 2 * kv_heads, head_dim, tokens)
    query, key, value = (
        constrain(part.reshape(-1, head_dim, tokens), name, None, "batch")
        for part, name in zip(
            jnp.split(fused, (heads, heads + kv_heads), axis=1), ("heads", "kv_heads", "kv_heads"), strict=True
        )
    )
    if config.qk_norm:
        query = _norm(query, layer["query_norm"], config.rms_norm_eps)
        key = _norm(key, layer["key_norm"], config.rms_norm_eps)
    return _rotate(query, table), _rotate(key, table), value


def _rest_of_layer(config: LlamaConfig, layer: Weights, x: jax.Array, mixed: jax.Array) -> jax.Array:
    """Output projection and MLP behind attention: [D, M], [N * H, M] -> [D, M]."""
    mixed = layer["output"] @ mixed
    x = constrain(x + (mixed + layer["output_bias"][:, None] if config.output_bias else mixed), None, "batch")
    shards, tokens = tensor_shards(), x.shape[1]
    fused = layer["gate_up"] @ _norm(x, layer["mlp_norm"], config.rms_norm_eps)
    gate, up = jnp.split(fused.reshape(shards, -1, tokens), 2, axis=1)
    inner = constrain((jax.nn.silu(gate) * up).reshape(-1, tokens), "mlp", "batch")
    return constrain(x + layer["down"] @ inner, None, "batch")


def _norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """``rcjax.model.layers.rms_norm`` over the last dimension but one."""
    precise = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    inverse = jax.lax.rsqrt(jnp.mean(precise * precise, axis=-2, keepdims=True) + eps)
    return (precise * inverse).astype(x.dtype) * scale[:, None]


def _rotate(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """``rcjax.model.rope.rotate`` over the last dimension but one."""
    cosine, sine = table
    first, second = jnp.split(x, 2, axis=-2)
    turned = jnp.concatenate((first * cosine - second * sine, second * cosine + first * sine), axis=-2)
    return turned.astype(x.dtype)
