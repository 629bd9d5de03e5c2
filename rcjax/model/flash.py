"""Attention over the tiles that segments need, as a kernel in Triton: the path for GPU.

FlashAttention-2 (Dao 2023, arXiv 2307.08691) for packed rows. Segments are runs of slots, and positions rise inside of
them, so what a slot attends to is a run of slots too: from ``first_seen`` up to itself, window or not. Tiles outside of
those runs are not computed, as a causal kernel does not compute those above the diagonal: of a row with k segments of
one length a k-th is left. Key heads are shared by their query heads without being copied.

On a mesh each device works its own rows and heads (``shard_map``).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from rcjax.sharding import on_each_device

OLDEST = 8.0  # compute capability: products of bfloat16
HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite, so that a tile in which a row sees nothing gives no nan


@dataclasses.dataclass(frozen=True)
class Tile:
    """What a program of a kernel works at a time; ``queries`` and ``keys`` powers of two."""

    queries: int
    keys: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """Of the forward pass, and of the two passes of the gradient."""

    forward: Tile
    queries: Tile
    keys: Tile


def tiles_for(head_dim: int) -> Tiles:
    """The quickest found on an H100, ``python -m benchmarks.accelerator --parts=tiles``; less where heads are wide."""
    if head_dim > 128:
        return Tiles(Tile(64, 32, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2))
    return Tiles(Tile(64, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2))


def attend_causal(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array | None = None,
    window: int | jax.Array | None = None,
    *,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> jax.Array:
    """softmax(Q K^T / sqrt(H)) V under the causal segment mask; softmax in float32.

    Any row length, and head dimensions up to 256: what the tiles want more is padded and cut again.

    Args:
      query: [B, S, N, H]; key, value: [B, S, K, H] with K dividing N; of one dtype. On a GPU the products of float32
        are of TF32, which keeps 10 bits: ``rcjax.model.attention`` sends bfloat16 alone here.
      segment_ids: int32 [B, S], each segment a run of slots; 0 is padding.
      positions, window: as in ``rcjax.model.attention.attend_blocks``.
      tiles: None: ``tiles_for`` the head dimension.
      interpret: run the kernel step by step on any backend, for tests.

    Returns:
      [B, S, N, H] of the query's dtype. What padding gets means nothing, but is finite.
    """
    first = first_seen(segment_ids, positions, window)
    heads, kv_heads = ("batch", None, "heads", None), ("batch", None, "kv_heads", None)
    attend = functools.partial(_attend_local, tiles=tiles or tiles_for(query.shape[-1]), interpret=interpret)
    return on_each_device(attend, (heads, kv_heads, kv_heads, ("batch", None)), heads)(query, key, value, first)


def usable(device: jax.Device) -> bool:
    """Whether a GPU is new enough for the kernel."""
    return float(getattr(device, "compute_capability", None) or 0) >= OLDEST


def first_seen(
    segment_ids: jax.Array, positions: jax.Array | None = None, window: int | jax.Array | None = None
) -> jax.Array:
    """The first slot that each slot attends to, of which it attends to all up to itself: int32 [B, S], never falling.

    Padding attends to itself alone. Arguments as ``attend_causal``.
    """
    length = segment_ids.shape[1]
    slots = jnp.arange(length, dtype=jnp.int32)
    before = jnp.pad(segment_ids, ((0, 0), (1, 0)))[:, :-1]
    starts = jnp.where((segment_ids != before) | (segment_ids == 0), slots, 0)
    low = jax.lax.cummax(starts, axis=1)  # where the slot's segment begins
    if window is None:
        return low
    high = jnp.broadcast_to(slots, low.shape)
    for _ in range(length.bit_length()):  # halves the range until nothing is between
        middle = (low + high) // 2
        inside = positions - jnp.take_along_axis(positions, middle, axis=1) < window
        low, high = jnp.where(inside, low, jnp.minimum(middle + 1, high)), jnp.where(inside, middle, high)
    return high


def _attend_local(query, key, value, first, *, tiles: Tiles, interpret: bool) -> jax.Array:
    """``attend_causal`` on the rows and heads of one device."""
    length, head_dim = query.shape[1], query.shape[3]
    short = -length % max(max(tile.queries, tile.keys) for tile in tiles)
    narrow = max(16, pl.next_power_of_2(head_dim)) - head_dim

    def lay(x):
        return jnp.pad(x, ((0, 0), (0, short), (0, 0), (0, narrow)))

    # Slots that are added see themselves.
    behind = jnp.broadcast_to(jnp.arange(length, length + short, dtype=jnp.int32), (len(first), short))
    first = jnp.concatenate([first, behind], axis=1)
    # How many slots have a first one that is no later, is where the last one lies that attends to a slot. Both arrays
    # are made without a loop: layers in a scan then share them, since the compiler takes them out of it.
    count = jax.vmap(functools.partial(jnp.bincount, length=length + short))(first)
    last = jnp.cumsum(count, axis=1, dtype=jnp.int32) - 1
    settings = _Settings(tiles, 1 / math.sqrt(head_dim), interpret)
    return _attend(settings, lay(query), lay(key), lay(value), first, last)[:, :length, :, :head_dim]


class _Settings(NamedTuple):
    """Static under jit."""

    tiles: Tiles
    scale: float
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings: _Settings, query, key, value, first, last):
    """``first``, ``last``: int32 [B, S], the first slot that each attends to, the last one that attends to it."""
    return _attend_forward(settings, query, key, value, first, last)[0]


def _attend_forward(settings: _Settings, query, key, value, first, last):
    batch, length, heads, head_dim = query.shape
    tile, group = settings.tiles.forward, heads // key.shape[2]
    own = pl.BlockSpec((None, tile.queries, None, head_dim), lambda i, b, n: (b, i, n, 0))
    row = pl.BlockSpec((None, length, None, head_dim), lambda i, b, n: (b, 0, n // group, 0))
    out, lse = _call(
        functools.partial(_forward_kernel, tile=tile, scale=settings.scale),
        (length // tile.queries, batch, heads),
        tile,
        settings.interpret,
        [pl.BlockSpec((None, length), lambda i, b, n: (b, 0)), own, row, row],
        [own, pl.BlockSpec((None, None, tile.queries), lambda i, b, n: (b, n, i))],
        [
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ],
    )(first, query, key, value)
    return out, (query, key, value, first, last, out, lse)


def _attend_backward(settings: _Settings, kept, d_out):
    query, key, value, first, last, out, lse = kept
    batch, length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    group = heads // kv_heads
    # sum_j P_ij dP_ij = dO_i . O_i (the paper's D, section 3.1)
    delta = jnp.einsum("bsnh,bsnh->bns", d_out.astype(jnp.float32), out.astype(jnp.float32))
    first_row = pl.BlockSpec((None, length), lambda i, b, n: (b, 0))

    tile = settings.tiles.queries
    own = pl.BlockSpec((None, tile.queries, None, head_dim), lambda i, b, n: (b, i, n, 0))
    row = pl.BlockSpec((None, length, None, head_dim), lambda i, b, n: (b, 0, n // group, 0))
    number = pl.BlockSpec((None, None, tile.queries), lambda i, b, n: (b, n, i))
    (d_query,) = _call(
        functools.partial(_queries_kernel, tile=tile, scale=settings.scale),
        (length // tile.queries, batch, heads),
        tile,
        settings.interpret,
        [first_row, own, row, row, own, number, number],
        [own],
        [jax.ShapeDtypeStruct(query.shape, query.dtype)],
    )(first, query, key, value, d_out, lse, delta)

    tile = settings.tiles.keys
    own = pl.BlockSpec((None, tile.keys, None, head_dim), lambda i, b, k: (b, i, k, 0))
    row = pl.BlockSpec((None, length, group, head_dim), lambda i, b, k: (b, 0, k, 0))
    number = pl.BlockSpec((None, group, length), lambda i, b, k: (b, k, 0))
    d_key, d_value = _call(
        functools.partial(_keys_kernel, tile=tile, scale=settings.scale, group=group),
        (length // tile.keys, batch, kv_heads),
        tile,
        settings.interpret,
        [first_row, first_row, row, own, own, row, number, number],
        [own, own],
        [jax.ShapeDtypeStruct(key.shape, key.dtype), jax.ShapeDtypeStruct(value.shape, value.dtype)],
    )(first, last, query, key, value, d_out, lse, delta)
    return d_query, d_key, d_value, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _call(kernel, grid, tile: Tile, interpret: bool, in_specs, out_specs, out_shape):
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
    )


# ---- the kernels. Scores are kept in units of log 2, since exp2 is what the hardware has.


def _scores(query, key, rows, columns, first, scale: float):
    """[Q, H], [T, H], int32 [Q], [T], [Q] -> [Q, T] in float32."""
    scores = triton.dot(query, key.T) * (scale * math.log2(math.e))
    seen = (columns[None, :] >= first[:, None]) & (columns[None, :] <= rows[:, None])
    return jnp.where(seen, scores, HIDDEN)


def _forward_kernel(first_ref, query_ref, key_ref, value_ref, out_ref, lse_ref, *, tile: Tile, scale: float):
    """A tile of queries against the tiles of keys that it sees."""
    start = pl.program_id(0) * tile.queries
    rows, first = start + _count(tile.queries), first_ref[pl.ds(start, tile.queries)]
    query = query_ref[...]

    def body(number, carry):
        mixed, largest, total = carry
        cut = pl.ds(number * tile.keys, tile.keys)
        columns = number * tile.keys + _count(tile.keys)
        scores = _scores(query, key_ref[cut, :], rows, columns, first, scale)
        # Where a row sees nothing of this tile, what is added counts for nothing as soon as it sees something: at the
        # latest itself, in the last tile.
        now = jnp.maximum(largest, jnp.max(scores, axis=-1))
        shrink, shares = jnp.exp2(largest - now), jnp.exp2(scores - now[:, None])
        mixed = mixed * shrink[:, None] + triton.dot(shares.astype(value_ref.dtype), value_ref[cut, :])
        return mixed, now, total * shrink + jnp.sum(shares, axis=-1)

    mixed = jnp.zeros(query.shape, jnp.float32)
    nothing = jnp.full(tile.queries, HIDDEN, jnp.float32)
    mixed, largest, total = jax.lax.fori_loop(
        *_tiles_of_keys(first_ref, start, tile), body, (mixed, nothing, jnp.zeros_like(nothing))
    )
    out_ref[...] = (mixed / total[:, None]).astype(out_ref.dtype)
    lse_ref[...] = largest + jnp.log2(total)


def _queries_kernel(
    first_ref, query_ref, key_ref, value_ref, d_out_ref, lse_ref, delta_ref, d_query_ref, *, tile: Tile, scale: float
):
    """The gradient of a tile of queries, from the tiles of keys that it sees."""
    start = pl.program_id(0) * tile.queries
    rows, first = start + _count(tile.queries), first_ref[pl.ds(start, tile.queries)]
    query, d_out, lse, delta = query_ref[...], d_out_ref[...], lse_ref[...], delta_ref[...]

    def body(number, d_query):
        cut = pl.ds(number * tile.keys, tile.keys)
        columns = number * tile.keys + _count(tile.keys)
        key = key_ref[cut, :]
        shares = jnp.exp2(_scores(query, key, rows, columns, first, scale) - lse[:, None])
        d_scores = shares * (triton.dot(d_out, value_ref[cut, :].T) - delta[:, None])
        return d_query + triton.dot(d_scores.astype(key.dtype), key)

    d_query = jnp.zeros(query.shape, jnp.float32)
    d_query = jax.lax.fori_loop(*_tiles_of_keys(first_ref, start, tile), body, d_query)
    d_query_ref[...] = (d_query * scale).astype(d_query_ref.dtype)


def _keys_kernel(
    first_ref,
    last_ref,
    query_ref,
    key_ref,
    value_ref,
    d_out_ref,
    lse_ref,
    delta_ref,
    d_key_ref,
    d_value_ref,
    *,
    tile: Tile,
    scale: float,
    group: int,
):
    """The gradients of a tile of keys and values, from the tiles of queries that see it, of all heads of its group."""
    start = pl.program_id(0) * tile.keys
    columns = start + _count(tile.keys)
    key, value = key_ref[...], value_ref[...]
    lower = jax.lax.div(start, jnp.int32(tile.queries))
    upper = jax.lax.div(last_ref[start + tile.keys - 1], jnp.int32(tile.queries)) + 1

    def body(number, carry, head):
        d_key, d_value = carry
        cut = pl.ds(number * tile.queries, tile.queries)
        rows = number * tile.queries + _count(tile.queries)
        query, d_out = query_ref[cut, head, :], d_out_ref[cut, head, :]
        scores = _scores(query, key, rows, columns, first_ref[cut], scale)
        shares = jnp.exp2(scores - lse_ref[head, cut][:, None])  # [Q, T]
        d_scores = shares * (triton.dot(d_out, value.T) - delta_ref[head, cut][:, None])
        d_value += triton.dot(shares.astype(d_out.dtype).T, d_out)
        return d_key + triton.dot(d_scores.astype(query.dtype).T, query), d_value

    carry = jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    for head in range(group):
        carry = jax.lax.fori_loop(lower, upper, functools.partial(body, head=head), carry)
    d_key, d_value = carry
    d_key_ref[...] = (d_key * scale).astype(d_key_ref.dtype)
    d_value_ref[...] = d_value.astype(d_value_ref.dtype)


def _tiles_of_keys(first_ref, start, tile: Tile):
    """The first tile of keys that a tile of queries sees, and the one behind the last."""
    keys = jnp.int32(tile.keys)
    return jax.lax.div(first_ref[start], keys), jax.lax.div(start + tile.queries - 1, keys) + 1


def _count(number: int) -> jax.Array:
    return jnp.arange(number, dtype=jnp.int32)
