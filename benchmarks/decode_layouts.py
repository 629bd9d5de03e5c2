"""Products of one decoding step in several layouts: why ``rcjax.decode`` lays weights and caches as it does.

    python -m benchmarks.decode_layouts

16 rows, float32. Kernels of the 10M model: ``x @ kernel`` with x [16, D], and the kernel turned over, ``kernel.T @ x``
with x [D, 16]. Attention of one query a row over 160 slots, with and without query groups: the cache's two last
dimensions as [slots, H] or [H, slots]. Each is repeated in a loop on the same operands, so that caches are warm:
microseconds, the best of three.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import record
from rcjax.host_memory import ask_for_huge_pages

ROWS, SLOTS, HEAD = 16, 160, 64
REPEATS = 300


def microseconds(function, first, *others) -> float:
    """Of ``function(first, *others)``, whose result goes into the next call, so that none can be left out."""

    def again(_, x):
        y = function(x, *others)
        return x + 1e-3 * y[(slice(0, 1),) * y.ndim].reshape((1,) * x.ndim)

    loop = jax.jit(lambda x: jax.lax.fori_loop(0, REPEATS, again, x))
    jax.block_until_ready(loop(first))
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(loop(first))
        best = min(best, time.perf_counter() - start)
    return best / REPEATS * 1e6


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape) / 16


def main() -> None:
    rows = []
    for name, inputs, outputs in (("qkv", 256, 768), ("gate_up", 256, 1408), ("down", 704, 256), ("head", 256, 8192)):
        rows.append(
            {
                "product": f"{name} {inputs} -> {outputs}",
                "x @ kernel": microseconds(jnp.matmul, normal(ROWS, inputs), normal(inputs, outputs)),
                "kernel.T @ x": microseconds(lambda x, k: k @ x, normal(inputs, ROWS), normal(outputs, inputs)),
            }
        )
    for heads, group in ((4, 1), (3, 3)):
        query, shares = normal(ROWS, heads, group, HEAD), normal(ROWS, heads, group, SLOTS)
        flat, turned = normal(ROWS, heads, SLOTS, HEAD), normal(ROWS, heads, HEAD, SLOTS)
        for name, first, formula in (("scores", query, "rkgh,rk{}->rkgt"), ("values", shares, "rkgt,rk{}->rkgh")):
            times = {}
            for label, order, cache in (("[slots, H]", "th", flat), ("[H, slots]", "ht", turned)):
                product = functools.partial(jnp.einsum, formula.format(order))
                times[label] = microseconds(product, first, cache)
            rows.append({"product": f"{name}, {heads} heads x {group} queries", **times})
    record("decode_layouts", "products of a decoding step of 16 rows: microseconds by layout", rows)


if __name__ == "__main__":
    ask_for_huge_pages()
    main()
