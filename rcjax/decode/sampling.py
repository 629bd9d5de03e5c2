"""From logits to tokens: the most likely one, or a draw.

The draw of token t of sample s depends on nothing but (seed, s, t) and the logits: one uniform number from a key that
these three make, looked up in the cumulative distribution.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 128


class Sampling(NamedTuple):
    """How tokens are drawn; every field is a scalar that a compiled program takes.

    Attributes:
      temperature: above 0, divides the logits.
      top_k: draws are among so many most likely tokens.
      top_p: and of these among the fewest most likely ones that have together this share of the probability.
      seed: uint32.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    seed: jax.Array


class Filters(NamedTuple):
    """What is compiled: draws at all, and which restrictions."""

    draws: bool
    top_k: bool
    top_p: bool


def check_range(temperature: float, top_p: float, top_k: int, seed: int, prefix: str = "") -> None:
    """Refuses what can not be meant.

    Raises:
      ValueError: a number is out of its range; the sentence names it with ``prefix`` before.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"{prefix}temperature is {temperature}; expected 0 (the most likely token) or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"{prefix}top_p is {top_p}; expected above 0 and at most 1")
    if top_k < 0:
        raise ValueError(f"{prefix}top_k is {top_k}; expected 0 (all tokens) or more")
    if not 0 <= seed < 2**32:
        raise ValueError(f"{prefix}seed is {seed}; expected 0 to {2**32 - 1}")


def choose(
    logits: jax.Array, allowed: jax.Array, filters: Filters, sampling: Sampling, sample: jax.Array, count: jax.Array
) -> jax.Array:
    """A token for each column.

    Args:
      logits: [V, M].
      allowed: bool [V].
      sample: uint32 [M], number of the sample that a column belongs to.
      count: int32 [M], tokens that were generated before this one.

    Returns:
      int32 [M].
    """
    logits = jnp.where(allowed[:, None], logits, -jnp.inf)
    best = jnp.max(logits, axis=0)  # [M]
    if not filters.draws:
        # The first of the largest, in two plain reductions: argmax is one that compilers on CPU do not vectorise.
        numbers = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
        return jnp.min(jnp.where(logits == best, numbers, logits.shape[0]), axis=0).astype(jnp.int32)
    shares = jnp.exp((logits - best) / sampling.temperature).astype(jnp.float32)  # [V, M], not normalised
    if filters.top_k:
        shares = _keep(shares, jnp.ones_like(shares), jnp.broadcast_to(sampling.top_k, best.shape))
    if filters.top_p:
        shares = _keep(shares, shares, sampling.top_p * jnp.sum(shares, axis=0))
    return _draw(shares, jax.vmap(_uniform, (None, 0, 0))(sampling.seed, sample, count))


def _uniform(seed: jax.Array, sample: jax.Array, count: jax.Array) -> jax.Array:
    """In [0, 1), from the three numbers alone: not from jax's default generator either."""
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, sample), count), dtype=jnp.float32)


def _keep(shares: jax.Array, weights: jax.Array, least: jax.Array) -> jax.Array:
    """Zeroes all but the fewest largest shares whose weights add up to ``least``; equal shares go together.

    No sort, which is slow on every backend: the smallest share that is kept is found bit by bit, floats above 0 being
    in the order of their bits.
    """

    def add_bit(number: jax.Array, bound: jax.Array) -> jax.Array:
        higher = bound | (jnp.int32(1) << (30 - number))
        share = jax.lax.bitcast_convert_type(higher, jnp.float32)
        enough = jnp.sum(jnp.where(shares >= share, weights, 0), axis=0) >= least
        return jnp.where(enough, higher, bound)

    bound = jax.lax.fori_loop(0, 31, add_bit, jnp.zeros(shares.shape[1], jnp.int32))
    return jnp.where(shares >= jax.lax.bitcast_convert_type(bound, jnp.float32), shares, 0)


def _draw(shares: jax.Array, uniform: jax.Array) -> jax.Array:
    """The row at which the cumulative sum of a column passes ``uniform`` of the whole: [V, M], [M] -> int32 [M]."""
    size, columns = shares.shape
    blocks = -(-size // BLOCK)
    shares = jnp.pad(shares, ((0, blocks * BLOCK - size), (0, 0))).reshape(blocks, BLOCK, columns)
    sums = jnp.sum(shares, axis=1)  # [V / BLOCK, M]
    block, before = _passes(sums, uniform * jnp.sum(sums, axis=0))
    inside = jnp.take_along_axis(shares, block[None, None], axis=0)[0]  # [BLOCK, M]
    return block * BLOCK + _passes(inside, before)[0]


def _passes(shares: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first row where the cumulative sum is above ``target``, and what of the target is left before it."""
    sums = jnp.cumsum(shares, axis=0)
    rows = jnp.arange(shares.shape[0], dtype=jnp.int32)[:, None]
    last = jnp.max(jnp.where(shares > 0, rows, 0), axis=0)  # rounding may put the target at the very end
    index = jnp.minimum(jnp.sum(sums <= target, axis=0, dtype=jnp.int32), last)
    before = jnp.where(index > 0, jnp.take_along_axis(sums, jnp.maximum(index - 1, 0)[None], axis=0)[0], 0)
    return index, target - before
