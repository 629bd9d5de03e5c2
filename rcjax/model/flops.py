"""Floating-point operations that a model's formula asks for, and what the devices could do at most.

Counted are matrix products alone, a multiplication and an addition as two operations: projections, scores and mixing of
attention over the (query, key) pairs that causality allows inside a view, the output projection of labelled slots.
Not counted are norms, softmax, embedding look-ups and whatever is computed twice. This is the "model FLOPs" of
Chowdhery et al. 2022 (arXiv 2204.02311, appendix B), but with the causal half of attention instead of the whole.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rcjax.model.config import LlamaConfig

# Dense bfloat16 operations a second of one chip, from the makers' data sheets.
PEAK_BFLOAT16 = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def forward_flops(config: LlamaConfig, *, tokens: int, pairs: int, labels: int) -> float:
    """Operations of a forward pass.

    Args:
      tokens: that the layers read.
      pairs: of a query and a key, over all rows, in one head of one layer. Sliding windows are the caller's affair.
      labels: slots that are projected onto the vocabulary.
    """
    width, heads = config.hidden_size, config.num_heads * config.head_dim
    kv_heads = config.num_kv_heads * config.head_dim
    layer = width * (heads + 2 * kv_heads) + heads * width + 3 * width * config.intermediate_size
    per_token, per_pair = 2 * config.num_layers * layer, 4 * config.num_layers * heads
    return float(per_token * tokens + per_pair * pairs + 2 * width * config.vocab_size * labels)


def peak_flops(dtype) -> float:
    """Operations a second of all devices together: the data sheet's where it is known, else a large product's.

    Processes on CPU are taken to run on machines of their own.
    """
    device = jax.devices()[0]
    if jnp.dtype(dtype) == jnp.bfloat16:
        known = [peak for kind, peak in PEAK_BFLOAT16.items() if device.device_kind == kind]
        known = known or [peak for kind, peak in PEAK_BFLOAT16.items() if device.device_kind.startswith(kind)]
        if known:
            return known[0] * jax.device_count()
    return _measured_flops(jnp.dtype(dtype).name) * jax.process_count()


@functools.lru_cache
def _measured_flops(dtype: str, rounds: int = 3) -> float:
    """Of this process's devices, the best of some rounds; of products so small that a start does not wait for it."""
    work, operations = products(dtype, 1024)
    work()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return operations / float(np.min(seconds))


def products(dtype, size: int = 1536) -> tuple[Callable[[], None], float]:
    """A [size, size] product on each of this process's devices at once, and its operations.

    All at once, since devices of a CPU share its cores: one alone may use some of them or all.
    """
    matrices = [jax.device_put(np.ones((size, size), dtype), device) for device in jax.local_devices()]
    product = jax.jit(jnp.matmul)

    def work() -> None:
        jax.block_until_ready([product(matrix, matrix) for matrix in matrices])

    return work, 2.0 * size**3 * len(matrices)
