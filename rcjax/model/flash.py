"""Attention by the flash kernel in Triton that comes with JAX: the path for GPU.

The kernel (``jax.experimental.pallas.ops.gpu.attention``) is FlashAttention-2 (Dao 2023, arXiv 2307.08691), segments
being a mask inside of its tiles, forward and backward. cuDNN's attention is not used: what JAX offers of it knows
causality and padding, but packed rows only through a mask of [S, S] a row, which is what one wants to do without.

On a mesh each device works its own rows and heads (``shard_map``).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention as kernels

from rcjax.sharding import on_each_device

TILE = 64  # queries, and keys, of a tile of the forward pass
TILE_BACKWARD = 32
OLDEST = 8.0  # compute capability: products of bfloat16


def attend_causal(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """softmax(Q K^T / sqrt(H)) V under the causal segment mask, through the kernel; softmax in float32.

    Any row length: the row is padded to a multiple of ``TILE`` and cut again.

    Args:
      query: [B, S, N, H]; key, value: [B, S, K, H] with K dividing N; of one dtype. On a GPU the products of float32
        are of TF32, which keeps 10 bits: ``rcjax.model.attention`` sends bfloat16 alone here.
      segment_ids: int32 [B, S]; 0 is padding, which attends to padding.
      interpret: run the kernel step by step on any backend, for tests.

    Returns:
      [B, S, N, H] of the query's dtype. What padding gets means nothing, but is finite.
    """
    heads, kv_heads = ("batch", None, "heads", None), ("batch", None, "kv_heads", None)
    attend = functools.partial(_attend_local, interpret=interpret)
    return on_each_device(attend, (heads, kv_heads, kv_heads, ("batch", None)), heads)(query, key, value, segment_ids)


def usable(device: jax.Device) -> bool:
    """Whether a GPU is new enough for the kernel."""
    return float(getattr(device, "compute_capability", None) or 0) >= OLDEST


def _attend_local(query, key, value, segment_ids, *, interpret: bool) -> jax.Array:
    """``attend_causal`` on the rows and heads of one device."""
    length, heads, head_dim = query.shape[1:]
    short = -length % TILE
    group = heads // key.shape[2]  # the kernel wants a key head for every query head

    def lay(x, times=1):
        return jnp.repeat(jnp.pad(x, ((0, 0), (0, short), (0, 0), (0, 0))), times, axis=2)

    mixed = kernels.mha(
        lay(query),
        lay(key, group),
        lay(value, group),
        jnp.pad(segment_ids, ((0, 0), (0, short))),
        sm_scale=1 / math.sqrt(head_dim),
        causal=True,
        block_sizes=kernels.BlockSizes(TILE, TILE, *(TILE_BACKWARD,) * 4),
        interpret=interpret,
    )
    return mixed[:, :length]
