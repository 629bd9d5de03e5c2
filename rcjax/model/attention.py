"""Grouped-query attention inside the segments of packed rows.

Slot i of a row attends to slot j when j <= i and both are of one segment: the order of slots is the causal order,
whatever positions the slots carry (a student view keeps the positions of the full example, with gaps).

A sliding window is measured in positions, not in slots: slot i sees slot j when position i - position j < window. So a
view with gaps sees what the full example would show it, and without gaps this is the usual sliding window.
"""

from __future__ import annotations

import functools
import math
import warnings

import jax
import jax.numpy as jnp
from flax import nnx

from rcjax.model.config import LlamaConfig
from rcjax.model.layers import Projection, RMSNorm, residual_stddev
from rcjax.model.rope import rotate
from rcjax.model.tiles import attend_tiles
from rcjax.sharding import constrain

QUERY_BLOCK = 128


class Attention(nnx.Module):
    """Projections, rotary embedding and attention of one layer."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtype, param_dtype, path: str):
        self.path = path
        embed, head = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_heads, config.num_kv_heads
        common = dict(rngs=rngs, dtype=dtype, param_dtype=param_dtype)
        self.query = Projection((embed, heads, head), ("embed", "heads", None), bias=config.qkv_bias, **common)
        self.key = Projection((embed, kv_heads, head), ("embed", "kv_heads", None), bias=config.qkv_bias, **common)
        self.value = Projection((embed, kv_heads, head), ("embed", "kv_heads", None), bias=config.qkv_bias, **common)
        self.output = Projection(
            (heads, head, embed),
            ("heads", None, "embed"),
            contracted=2,
            stddev=residual_stddev(config),
            bias=config.output_bias,
            **common,
        )
        self.has_norms = config.qk_norm
        if config.qk_norm:
            self.query_norm = RMSNorm(head, config.rms_norm_eps, param_dtype=param_dtype)
            self.key_norm = RMSNorm(head, config.rms_norm_eps, param_dtype=param_dtype)

    def __call__(
        self,
        x: jax.Array,
        table: tuple[jax.Array, jax.Array],
        positions: jax.Array,
        segment_ids: jax.Array,
        window: int | jax.Array | None,
    ) -> jax.Array:
        """[B, S, D], rotary tables [B, S, H / 2], int32 [B, S] twice, window as below -> [B, S, D]."""
        table = tuple(part[:, :, None, :] for part in table)  # [B, S, 1, H/2]
        query, key = self.query(x), self.key(x)  # [B, S, N, H], [B, S, K, H]
        if self.has_norms:
            query, key = self.query_norm(query), self.key_norm(key)
        query = constrain(rotate(query, table), "batch", None, "heads", None)  # [B, S, N, H]
        key = constrain(rotate(key, table), "batch", None, "kv_heads", None)  # [B, S, K, H]
        value = constrain(self.value(x), "batch", None, "kv_heads", None)  # [B, S, K, H]
        mixed = PATHS[self.path](query, key, value, segment_ids, positions, window)  # [B, S, N, H]
        return self.output(constrain(mixed, "batch", None, "heads", None))


def attend_blocks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array | None = None,
    window: int | jax.Array | None = None,
) -> jax.Array:
    """softmax(Q K^T / sqrt(H)) V under the causal segment mask; softmax in float32 or wider.

    Blocks of queries see only the keys up to their own end, so about half of the [S, S] scores are never made,
    and no more than [QUERY_BLOCK, S] of a head at a time. A window that is a Python number cuts the keys off at the
    other end too.

    Args:
      query: [B, S, N, H]; key, value: [B, S, K, H] with K dividing N.
      segment_ids: int32 [B, S]; 0 is padding. Padding attends to padding: nobody reads it, and it costs
        less than a mask of its own (and keeps every softmax well defined).
      positions: int32 [B, S], at least 0; only a window reads them. Two slots of one segment must lie at least as far
        apart in position as in slots, as they do where a segment is a run of slots with strictly rising positions.
      window: how many positions a slot sees, its own included: None for all, a Python number, or an int32 scalar
        (layers in a scan that differ); at least 1.

    Returns:
      [B, S, N, H].
    """
    batch, length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    query = query.reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)  # [B, K, S, H]
    blocks = []
    for start in range(0, length, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, length)
        first = max(0, start - window + 1) if isinstance(window, int) else 0
        mask = segment_ids[:, start:stop, None] == segment_ids[:, None, first:stop]  # [B, Q, T]
        mask &= jnp.arange(start, stop)[:, None] >= jnp.arange(first, stop)
        if window is not None:
            mask &= positions[:, start:stop, None] - positions[:, None, first:stop] < window
        seen = slice(first, stop)
        blocks.append(
            _attend_block(query[:, :, :, start:stop], key[:, :, seen], value[:, :, seen], mask[:, None, None])
        )
    mixed = jnp.concatenate(blocks, axis=3)  # [B, K, G, S, H]
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)


def _attend_block(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, K, G, Q, H], [B, K, T, H] twice, bool [B, 1, 1, Q, T] -> [B, K, G, Q, H]."""
    precise = jnp.promote_types(jnp.float32, query.dtype)
    query = query * (1 / math.sqrt(query.shape[-1]))
    scores = jnp.einsum("bkgqh,bkth->bkgqt", query, key, preferred_element_type=precise)
    scores = jnp.where(mask, scores, jnp.finfo(precise).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgqt,bkth->bkgqh", weights, value)


def attend_splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array | None = None,
    window: int | jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """As ``attend_blocks``: through the TPU's kernel where that computes the same, by ``attend_blocks`` elsewhere.

    Args:
      interpret: see ``rcjax.model.splash.attend_causal``.

    Raises:
      ValueError: compiled for another backend without ``interpret``.
    """
    # The kernel measures a window in slots. Where a view has gaps, that would show more than the full example does.
    # And it knows nothing wider than float32.
    if window is not None or query.dtype not in (jnp.float32, jnp.bfloat16):
        return attend_blocks(query, key, value, segment_ids, positions, window)
    from rcjax.model.splash import attend_causal  # an experimental part of JAX, slow to import: for those who use it

    return attend_causal(query, key, value, segment_ids, interpret=interpret)


def attend_flash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array | None = None,
    window: int | jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """As ``attend_blocks``: through the GPU's kernel where that computes the same, by ``attend_blocks`` elsewhere.

    Args:
      interpret: see ``rcjax.model.flash.attend_causal``.
    """
    if query.dtype != jnp.bfloat16:  # no TF32 in place of float32
        return attend_blocks(query, key, value, segment_ids, positions, window)
    from rcjax.model.flash import attend_causal  # slow to import: for those who use it

    return attend_causal(query, key, value, segment_ids, positions, window, interpret=interpret)


# Same result from each. `splash` and `flash` are kernels for a TPU and for a GPU alone. `tiles` makes only the
# scores that segments need and is the quicker one on CPU; its loop over tiles would leave an accelerator idle, which
# gets whole blocks of queries where it has no kernel.
PATHS = {"blocks": attend_blocks, "tiles": attend_tiles, "splash": attend_splash, "flash": attend_flash}


def default_path() -> str:
    """The quicker path on the backend that JAX runs on; a warning, once, where a GPU has to do without its kernel."""
    backend = jax.default_backend()
    return _gpu_path() if backend == "gpu" else {"tpu": "splash", "cpu": "tiles"}.get(backend, "blocks")


@functools.cache
def _gpu_path() -> str:
    from rcjax.model.flash import OLDEST, usable

    device = jax.devices()[0]
    if usable(device):
        return "flash"
    warnings.warn(
        f"{device.device_kind} is older than compute capability {OLDEST}: attention runs without its kernel, slower "
        "and in more memory",
        stacklevel=3,
    )
    return "blocks"
