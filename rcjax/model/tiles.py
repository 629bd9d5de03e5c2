"""Attention over the tiles that segments need, and no other: the path for CPU.

A row's score matrix is cut into tiles of ``TILE`` queries by ``TILE`` keys. Packed rows need few of them: the causal
half, and of that only tiles where a segment of the queries meets itself among the keys, no further back than a sliding
window reaches. The needed tiles of all rows make a list, and a loop works it off with the running softmax of
FlashAttention (Dao et al. 2022, arXiv 2205.14135), so no more than a tile of scores exists and everything stays in
cache. The backward pass computes scores again.

On a mesh each device works its own rows and heads (``shard_map``).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from rcjax.sharding import on_each_device

TILE = 128

Arrays = tuple[jax.Array, ...]


def attend_tiles(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array | None = None,
    window: int | jax.Array | None = None,
) -> jax.Array:
    """As ``rcjax.model.attention.attend_blocks``, without its condition on positions.

    What padding gets means nothing, but is finite.
    """
    reach = () if window is None else (positions, jnp.asarray(window, jnp.int32))
    heads, kv_heads = (("batch", None, name, None) for name in ("heads", "kv_heads"))
    rows = ("batch", None)
    attend = on_each_device(_attend_local, (heads, kv_heads, kv_heads, rows, *((rows, ()) if reach else ())), heads)
    return attend(query, key, value, segment_ids, *reach)


def _attend_local(query, key, value, segment_ids, *reach) -> jax.Array:
    """``attend_tiles`` on the rows and heads of one device; ``reach``: positions and window, or nothing."""
    batch, length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    group = heads // kv_heads
    tile = min(TILE, 1 << (length - 1).bit_length())
    blocks = -(-length // tile)
    short = blocks * tile - length

    def cut(x):  # [B, S, K, G, H] -> [B, S/T, K, G * T, H]
        x = jnp.pad(x, ((0, 0), (0, short), (0, 0), (0, 0), (0, 0)))
        x = x.reshape(batch, blocks, tile, kv_heads, -1, head_dim).transpose(0, 1, 3, 4, 2, 5)
        return x.reshape(batch, blocks, kv_heads, -1, head_dim)

    query = cut((query * (1 / math.sqrt(head_dim))).reshape(batch, length, kv_heads, group, head_dim))
    key, value = cut(key[:, :, :, None]), cut(value[:, :, :, None])
    segments, *positions = (
        jnp.pad(row, ((0, 0), (0, short))).reshape(batch, blocks, tile) for row in (segment_ids, *reach[:1])
    )
    mixed = _attend(query, key, value, segments, (*positions, *reach[1:]))  # [B, S/T, K, G * T, H]
    mixed = mixed.reshape(batch, blocks, kv_heads, group, tile, head_dim).transpose(0, 1, 4, 2, 3, 5)
    return mixed.reshape(batch, blocks * tile, heads, head_dim)[:, :length]


def _needed_tiles(segments: jax.Array, reach: Arrays = ()) -> tuple[Arrays, jax.Array]:
    """Lists (row, query block, key block) of needed tiles, int32 [B * n * n] each, and how many there are.

    A tile is needed when the ranges of segment numbers in its queries and keys overlap: exact where numbers rise
    along a row, more than enough in any other order. Not needed is, with a window, a tile whose last key lies outside
    of the window of its first query, by position. Tiles of one query block follow each other.
    """
    batch, blocks, _ = segments.shape
    largest = jnp.max(segments, axis=-1)  # [B, n]; 0 where there is padding alone
    smallest = jnp.min(jnp.where(segments == 0, jnp.iinfo(segments.dtype).max, segments), axis=-1)  # [B, n]
    overlap = (smallest[:, :, None] <= largest[:, None, :]) & (smallest[:, None, :] <= largest[:, :, None])
    needed = overlap & jnp.tri(blocks, dtype=bool)
    if reach:
        positions, window = reach
        first = jnp.min(jnp.where(segments == 0, jnp.iinfo(positions.dtype).max, positions), axis=-1)  # [B, n]
        last = jnp.max(jnp.where(segments == 0, 0, positions), axis=-1)  # [B, n]
        needed &= first[:, :, None] - last[:, None, :] < window
    (index,) = jnp.nonzero(needed.reshape(-1), size=batch * blocks * blocks, fill_value=0)
    index = index.astype(jnp.int32)
    row, rest = index // (blocks * blocks), index % (blocks * blocks)
    return (row, rest // blocks, rest % blocks), jnp.sum(needed, dtype=jnp.int32)


def _pick(array: jax.Array, row: jax.Array, block: jax.Array) -> jax.Array:
    """array[row, block]"""
    start = (row, block, *(jnp.int32(0),) * (array.ndim - 2))
    return jax.lax.dynamic_slice(array, start, (1, 1, *array.shape[2:]))[0, 0]


def _put(array: jax.Array, update: jax.Array, row: jax.Array, block: jax.Array) -> jax.Array:
    """array with array[row, block] = update; in place inside a loop."""
    start = (row, block, *(jnp.int32(0),) * (array.ndim - 2))
    return jax.lax.dynamic_update_slice(array, update[None, None].astype(array.dtype), start)


def _scores(query, key, segments, reach, row, block, key_block) -> jax.Array:
    """Masked scores of one tile, [K, G * T, T]; what may not be seen is the lowest finite number."""
    tile = segments.shape[2]
    precise = jnp.promote_types(jnp.float32, query.dtype)
    scores = jnp.einsum(
        "kqh,kth->kqt", _pick(query, row, block), _pick(key, row, key_block), preferred_element_type=precise
    )
    own, theirs = _pick(segments, row, block), _pick(segments, row, key_block)
    place = jnp.arange(tile)
    mask = (own[:, None] == theirs) & (block * tile + place[:, None] >= key_block * tile + place)  # [T, T]
    if reach:
        positions, window = reach
        mask &= _pick(positions, row, block)[:, None] - _pick(positions, row, key_block) < window
    mask = jnp.tile(mask, (query.shape[3] // tile, 1))  # [G * T, T]
    return jnp.where(mask, scores, jnp.finfo(precise).min)


@jax.custom_vjp
def _attend(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, reach: Arrays) -> jax.Array:
    """[B, n, K, G * T, H], [B, n, K, T, H] twice, int32 [B, n, T], reach -> [B, n, K, G * T, H].

    Queries come scaled. ``reach`` is empty, or positions int32 [B, n, T] and a window int32 [].
    """
    return _forward(query, key, value, segments, reach)[0]


def _forward(query, key, value, segments, reach):
    precise = jnp.promote_types(jnp.float32, query.dtype)
    lowest = jnp.finfo(precise).min
    (rows, query_blocks, key_blocks), count = _needed_tiles(segments, reach)

    def work(index, carry):
        mixed, total, largest = carry
        row, block, key_block = rows[index], query_blocks[index], key_blocks[index]
        scores = _scores(query, key, segments, reach, row, block, key_block)  # [K, G*T, T]
        before = _pick(largest, row, block)  # [K, G*T]
        now = jnp.maximum(before, jnp.max(scores, axis=-1))
        # A query that has seen nothing yet weighs masked keys by exp(0); the factor below wipes that out again
        # at its first visible key, and every query sees itself in the last of its tiles.
        weights = jnp.exp(scores - now[..., None])
        factor = jnp.exp(before - now)
        part = jnp.einsum(
            "kqt,kth->kqh", weights.astype(value.dtype), _pick(value, row, key_block), preferred_element_type=precise
        )
        mixed = _put(mixed, _pick(mixed, row, block) * factor[..., None] + part, row, block)
        total = _put(total, _pick(total, row, block) * factor + jnp.sum(weights, axis=-1), row, block)
        return mixed, total, _put(largest, now, row, block)

    start = (
        jnp.zeros(query.shape, precise),
        jnp.zeros(query.shape[:-1], precise),
        jnp.full(query.shape[:-1], lowest, precise),
    )
    mixed, total, largest = jax.lax.fori_loop(0, count, work, start)
    total = jnp.where(total == 0, 1, total)  # blocks of padding alone, which no tile touched
    mixed = (mixed / total[..., None]).astype(query.dtype)
    return mixed, (query, key, value, segments, reach, mixed, largest + jnp.log(total))


def _backward(kept, d_mixed):
    query, key, value, segments, reach, mixed, normaliser = kept
    precise = normaliser.dtype
    (rows, query_blocks, key_blocks), count = _needed_tiles(segments, reach)
    # Gradients of a softmax: d_scores = weights * (d_weights - sum(weights * d_weights)), and the sum is this.
    mean = jnp.sum(d_mixed.astype(precise) * mixed.astype(precise), axis=-1)  # [B, n, K, G*T]

    def work(index, carry):
        d_query, d_key, d_value = carry
        row, block, key_block = rows[index], query_blocks[index], key_blocks[index]
        scores = _scores(query, key, segments, reach, row, block, key_block)  # [K, G*T, T]
        weights = jnp.exp(scores - _pick(normaliser, row, block)[..., None])
        d_out = _pick(d_mixed, row, block)
        d_weights = jnp.einsum("kqh,kth->kqt", d_out, _pick(value, row, key_block), preferred_element_type=precise)
        d_scores = (weights * (d_weights - _pick(mean, row, block)[..., None])).astype(query.dtype)
        weights = weights.astype(query.dtype)
        # Keys' gradients are kept turned over, [H, T]: the large factor stands on the right untransposed, which
        # CPU matmuls do three times faster than the other way round.
        new_value = jnp.einsum("kqh,kqt->kht", d_out, weights, preferred_element_type=precise)
        new_key = jnp.einsum("kqh,kqt->kht", _pick(query, row, block), d_scores, preferred_element_type=precise)
        new_query = jnp.einsum("kqt,kth->kqh", d_scores, _pick(key, row, key_block), preferred_element_type=precise)
        d_query = _put(d_query, _pick(d_query, row, block) + new_query, row, block)
        d_key = _put(d_key, _pick(d_key, row, key_block) + new_key, row, key_block)
        d_value = _put(d_value, _pick(d_value, row, key_block) + new_value, row, key_block)
        return d_query, d_key, d_value

    turned = jnp.zeros((*key.shape[:3], key.shape[4], key.shape[3]), precise)  # [B, n, K, H, T]
    d_query, d_key, d_value = jax.lax.fori_loop(0, count, work, (jnp.zeros(query.shape, precise), turned, turned))
    return (
        d_query.astype(query.dtype),
        d_key.swapaxes(3, 4).astype(key.dtype),
        d_value.swapaxes(3, 4).astype(value.dtype),
        None,
        None,
    )


_attend.defvjp(_forward, _backward)
