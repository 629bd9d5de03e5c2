"""Greedy generation with a key/value cache.

Training wants one scanned layer over long rows; a decoding step is one token a row and mostly waits on small matrix
products. So it has its own code: layers in a row, query-key-value and gate-up each fused into one product, activations
[B, D], and a whole batch generated in one compiled loop that stops when every row has stopped.

Prompts are laid down flush left and padded on the right to a multiple of ``BUCKET``; what is generated goes behind the
padding, the same slot for every row, with the position that follows the row's prompt. Slots between are masked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcjax.model import LlamaConfig, head_kernel
from rcjax.model.attention import attend_blocks
from rcjax.model.layers import rms_norm
from rcjax.model.rope import rotate, rotation

BUCKET = 32  # prompt lengths are rounded up to a multiple of it: few compiled shapes, little padding

Weights = dict[str, Any]


def generate(
    config: LlamaConfig,
    params: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    batch_size: int = 64,
    dtype: Any = jnp.float32,
    cache_dtype: Any = jnp.float32,
    forbidden_ids: Sequence[int] = (),
    on_advance: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Most likely continuation of each prompt, token by token.

    Args:
      params: the plain parameter dict, on whatever devices it lies.
      prompts: token ids, each prompt at least one.
      max_new_tokens: most tokens a prompt is continued by.
      stop_ids: tokens that end a continuation.
      batch_size: rows generated together; prompts of like length share a batch.
      dtype: of the computation; logits are compared in float32 or wider.
      cache_dtype: of the kept keys and values.
      forbidden_ids: never generated; the config's padding id is among them unless it is a stop id.
      on_advance: called with the number of prompts that a batch finished.

    Returns:
      The continuations in the order of the prompts, without prompt and stop token.

    Raises:
      ValueError: an empty prompt, an id outside of the vocabulary, or a length that the rope type does not allow.
    """
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {index} is empty; it needs one token at least, BOS for example")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise ValueError(
                f"prompt {index} holds id {max(prompt) if min(prompt) >= 0 else min(prompt)}, but the model knows "
                f"ids 0 to {config.vocab_size - 1}; use the tokenizer that belongs to it"
            )
    if not prompts or max_new_tokens < 1:
        return [[] for _ in prompts]
    config.check_length(max(map(len, prompts)) + max_new_tokens, "the longest prompt with max_new_tokens behind it")
    banned = set(forbidden_ids) | ({config.pad_token_id} - {None})
    allowed = np.arange(config.table_size) < config.vocab_size  # the tables' padding is no token
    allowed[sorted(banned - set(stop_ids))] = False
    stops = np.isin(np.arange(config.table_size), list(stop_ids))
    weights = _fuse(config, params, jnp.dtype(dtype))
    rows = min(batch_size, 1 << (len(prompts) - 1).bit_length())
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    results: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), rows):
        members = order[start : start + rows]
        width = -(-max(len(prompts[index]) for index in members) // BUCKET) * BUCKET
        tokens, lengths = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32)
        for row, index in enumerate(members):
            lengths[row] = len(prompts[index])
            tokens[row, : lengths[row]] = prompts[index]
        new, counts = _generate(
            config, weights, tokens, lengths, allowed, stops, max_new_tokens, jnp.dtype(cache_dtype)
        )
        new, counts = np.asarray(new), np.asarray(counts)
        for row, index in enumerate(members):
            results[index] = new[row, : counts[row]].tolist()
        if on_advance is not None:
            on_advance(len(members))
    return results


@functools.partial(jax.jit, static_argnums=(0, 2))
def _fuse(config: LlamaConfig, params: dict[str, Any], dtype) -> Weights:
    """The weights as decoding wants them: a list of layers, products that share an input in one matrix.

    Values do not change, so the sums are those of the separate products.
    """
    embed = config.hidden_size

    def flat(tree: dict[str, Any], layer: int, name: str) -> jax.Array:
        return tree[name][layer].reshape(-1)

    def layer(index: int) -> Weights:
        part = params["layers"]
        attention, mlp = part["attention"], part["mlp"]
        names = ("query", "key", "value")
        weights = {
            "attention_norm": part["attention_norm"]["scale"][index],
            "mlp_norm": part["mlp_norm"]["scale"][index],
            "qkv": jnp.concatenate([attention[name]["kernel"][index].reshape(embed, -1) for name in names], axis=1),
            "output": attention["output"]["kernel"][index].reshape(-1, embed),
            "gate_up": jnp.concatenate([mlp[name]["kernel"][index] for name in ("gate", "up")], axis=1),
            "down": mlp["down"]["kernel"][index],
        }
        if config.qkv_bias:
            weights["qkv_bias"] = jnp.concatenate([flat(attention[name], index, "bias") for name in names])
        if config.output_bias:
            weights["output_bias"] = flat(attention["output"], index, "bias")
        if config.qk_norm:
            weights |= {name: attention[name]["scale"][index] for name in ("query_norm", "key_norm")}
        return weights

    weights = {
        "embedding": params["embed"]["embedding"],
        "layers": [layer(index) for index in range(config.num_layers)],
        "norm": params["norm"]["scale"],
        "head": head_kernel(config, params),
    }
    return jax.tree.map(lambda leaf: leaf.astype(dtype), weights)


def _queries_keys_values(config: LlamaConfig, layer: Weights, x: jax.Array, table) -> tuple[jax.Array, ...]:
    """[..., D] -> [..., N, H], [..., K, H] twice, the first two rotated."""
    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    fused = rms_norm(x, layer["attention_norm"], config.rms_norm_eps) @ layer["qkv"]
    if config.qkv_bias:
        fused = fused + layer["qkv_bias"]
    fused = fused.reshape(*x.shape[:-1], heads + 2 * kv_heads, head_dim)
    query, key, value = jnp.split(fused, (heads, heads + kv_heads), axis=-2)
    if config.qk_norm:
        query = rms_norm(query, layer["query_norm"], config.rms_norm_eps)
        key = rms_norm(key, layer["key_norm"], config.rms_norm_eps)
    return rotate(query, table), rotate(key, table), value


def _rest_of_layer(config: LlamaConfig, layer: Weights, x: jax.Array, mixed: jax.Array) -> jax.Array:
    """Output projection and MLP behind attention: [..., D], [..., N * H] -> [..., D]."""
    mixed = mixed @ layer["output"]
    x = x + (mixed + layer["output_bias"] if config.output_bias else mixed)
    gate, up = jnp.split(rms_norm(x, layer["mlp_norm"], config.rms_norm_eps) @ layer["gate_up"], 2, axis=-1)
    return x + (jax.nn.silu(gate) * up) @ layer["down"]


def _prefill(config: LlamaConfig, weights: Weights, tokens: jax.Array, lengths: jax.Array, space: int, cache_dtype):
    """Runs the prompts: last hidden states [B, D], and per layer keys and values [B, K, P + space, H]."""
    batch, width = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(width), (batch, width))
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    x = weights["embedding"][tokens]  # [B, P, D]
    table = tuple(part[:, :, None] for part in rotation(config, positions, x.dtype))
    caches = []
    for layer, window in zip(weights["layers"], config.windows, strict=True):
        query, key, value = _queries_keys_values(config, layer, x, table)
        caches.append(
            tuple(
                jnp.pad(kept.transpose(0, 2, 1, 3).astype(cache_dtype), ((0, 0), (0, 0), (0, space), (0, 0)))
                for kept in (key, value)
            )
        )
        mixed = attend_blocks(query, key, value, segments, positions, window)
        x = _rest_of_layer(config, layer, x, mixed.reshape(batch, width, -1))
    last = jnp.maximum(lengths - 1, 0)
    return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0], caches


def _step(config: LlamaConfig, weights: Weights, caches, token, slot, positions, visible):
    """One token a row: int32 [B] at one cache slot -> hidden states [B, D] and the caches with it.

    ``positions`` [B]: of the token. ``visible``: for each window among the layers, bool [B, T], the slots that a row
    sees now, the new one included.
    """
    batch = token.shape[0]
    kv_heads, group, head_dim = config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim
    x = weights["embedding"][token]  # [B, D]
    precise = jnp.promote_types(jnp.float32, x.dtype)
    table = tuple(part[:, None] for part in rotation(config, positions, x.dtype))
    lowest = jnp.finfo(precise).min
    biases = {window: jnp.where(mask, 0, lowest)[:, None, None] for window, mask in visible.items()}  # [B, 1, 1, T]
    kept = []
    for layer, window, (keys, values) in zip(weights["layers"], config.windows, caches, strict=True):
        query, key, value = _queries_keys_values(config, layer, x, table)  # [B, N, H], [B, K, H] twice
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(cache, new[:, :, None].astype(cache.dtype), slot, axis=2)
            for cache, new in ((keys, key), (values, value))
        )
        kept.append((keys, values))
        query = (query * (1 / math.sqrt(head_dim))).reshape(batch, kv_heads, group, head_dim)
        scores = jnp.einsum("bkgh,bkth->bkgt", query, keys.astype(query.dtype), preferred_element_type=precise)
        shares = jax.nn.softmax(scores + biases[window], axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bkgt,bkth->bkgh", shares, values.astype(x.dtype)).reshape(batch, -1)
        x = _rest_of_layer(config, layer, x, mixed)
    return x, kept


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def _generate(
    config: LlamaConfig,
    weights: Weights,
    tokens: jax.Array,
    lengths: jax.Array,
    allowed: jax.Array,
    stops: jax.Array,
    max_new_tokens: int,
    cache_dtype,
) -> tuple[jax.Array, jax.Array]:
    """[B, P], [B], bool [V] twice -> new tokens int32 [B, max_new_tokens], and how many of them count [B].

    Rows of length 0 fill the batch up: they are finished from the start.
    """
    batch, width = tokens.shape

    def choose(x: jax.Array) -> jax.Array:
        x = rms_norm(x, weights["norm"], config.rms_norm_eps)
        precise = jnp.promote_types(jnp.float32, x.dtype)
        logits = jnp.dot(x, weights["head"], preferred_element_type=precise)  # [B, V]
        return jnp.argmax(jnp.where(allowed, logits, -jnp.inf), axis=-1).astype(jnp.int32)

    def unfinished(state):
        step, _, finished, *_ = state
        return (step < max_new_tokens) & ~jnp.all(finished)

    def advance(state):
        step, token, finished, out, counts, caches = state
        out = jax.lax.dynamic_update_slice_in_dim(out, token[:, None], step, axis=1)
        counts = counts + ~finished
        slot = width + step
        slots = jnp.arange(width + max_new_tokens)
        visible = (slots < lengths[:, None]) | ((slots >= width) & (slots <= slot))
        position = lengths + step  # [B]
        # Behind the padding positions go on from the row's own length.
        distance = position[:, None] - jnp.where(slots < width, slots, lengths[:, None] + slots - width)  # [B, T]
        masks = {w: visible if w is None else visible & (distance < w) for w in config.windows}
        hidden, caches = _step(config, weights, caches, token, slot, position, masks)
        token = choose(hidden)
        return step + 1, token, finished | stops[token], out, counts, caches

    hidden, caches = _prefill(config, weights, tokens, lengths, max_new_tokens, cache_dtype)
    token = choose(hidden)
    finished = (lengths == 0) | stops[token]
    out = jnp.zeros((batch, max_new_tokens), jnp.int32)
    state = (jnp.int32(0), token, finished, out, jnp.zeros(batch, jnp.int32), caches)
    _, _, _, out, counts, _ = jax.lax.while_loop(unfinished, advance, state)
    return out, counts
