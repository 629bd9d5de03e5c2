"""Attention by splash attention, the flash kernel for TPU that comes with JAX: the path for TPU.

The kernel (``jax.experimental.pallas.ops.tpu.splash_attention``) works a row off in tiles of scores that never leave
the chip, with the running softmax of FlashAttention in float32, and leaves out tiles that lie in the future of their
queries. Segments are a mask inside of the tiles. Groups of query heads share the tiles of their key and value head,
which is repeated nowhere. The backward pass, the kernel's own, computes scores again.

On a mesh each device works its own rows and heads (``shard_map``): the compiler can not split a kernel by itself.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as kernels

from rcjax.sharding import on_each_device

LANES = 128  # the kernel's tiles are multiples of it
LARGEST_TILE = 512  # queries, and keys, of a tile
TILE_BYTES = 2**19  # most of a head's queries in a tile; a dozen such pieces lie in fast memory at a time


def attend_causal(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """softmax(Q K^T / sqrt(H)) V under the causal segment mask, through the kernel; softmax in float32.

    Any row length: the row is padded to a multiple of ``LANES`` and cut again. Any H: tiles span it whole.

    Args:
      query: [B, S, N, H]; key, value: [B, S, K, H] with K dividing N; all bfloat16 or all float32.
      segment_ids: int32 [B, S]; 0 is padding, which attends to padding.
      interpret: False gives the kernel, which compiles for a TPU alone: here, or ahead of time for one that is not
        here. True runs it step by step on any backend, for tests.

    Returns:
      [B, S, N, H] of the query's dtype. What padding gets means nothing, but is finite.

    Raises:
      ValueError: compiled for another backend without ``interpret``.
    """
    heads, kv_heads = ("batch", None, "heads", None), ("batch", None, "kv_heads", None)
    attend = functools.partial(_attend_local, interpret=interpret)
    attend = on_each_device(attend, (heads, kv_heads, kv_heads, ("batch", None)), heads)
    return attend(query, key, value, segment_ids)


def block_sizes(length: int, head_dim: int, dtype: jax.typing.DTypeLike) -> kernels.BlockSizes:
    """Tile sizes of the three kernels: squares as large as divide the row and fit into fast memory.

    Large tiles mean few steps and few loads, and that up to half of those on the diagonal is made in vain.

    Args:
      length: slots of a row, a multiple of ``LANES``.
      head_dim, dtype: of queries, keys and values.
    """
    bytes_a_slot = -(-head_dim // LANES) * LANES * jnp.dtype(dtype).itemsize
    largest = min(LARGEST_TILE, TILE_BYTES // bytes_a_slot)
    side = max(side for side in range(LANES, max(largest, LANES) + 1, LANES) if length % side == 0)
    return kernels.BlockSizes(
        block_q=side,
        block_kv=side,
        block_q_dkv=side,
        block_kv_dkv=side,
        # Queries' gradients have a kernel of their own: fused with that of the keys, they would take memory once for
        # every tile of keys.
        block_q_dq=side,
        block_kv_dq=side,
    )


def _attend_local(query, key, value, segment_ids, *, interpret: bool) -> jax.Array:
    """``attend_causal`` on the rows and heads of one device."""
    length, heads, head_dim = query.shape[1:]
    short = -length % LANES

    def lay(x):  # [B, S, N, H] -> [B, N, S', H]
        return jnp.pad(x, ((0, 0), (0, short), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, short)))  # [B, S']
    causal = kernels.CausalMask((length + short, length + short))
    kernel = kernels.make_splash_mha(
        kernels.MultiHeadMask([causal] * heads),
        block_sizes=block_sizes(length + short, head_dim, query.dtype),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    query = query * (1 / math.sqrt(head_dim))
    mixed = jax.vmap(kernel)(lay(query), lay(key), lay(value), kernels.SegmentIds(segment_ids, segment_ids))
    return mixed.transpose(0, 2, 1, 3)[:, :length]  # [B, S, N, H]
