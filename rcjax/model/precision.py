"""Float32 that is float32 on every chip."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp


def full_precision(dtype: Any) -> AbstractContextManager:
    """A context in which products of a program that computes in ``dtype`` keep float32 where that is the dtype.

    What JAX does by default in a product of float32 hangs on the chip: float32 on a CPU, TF32 on a GPU (10 bits), one
    pass of bfloat16 on a TPU (7 bits). Whoever asks for float32 wants the first of these; bfloat16 is there for speed.
    It holds for what is traced inside, so gradients must be taken inside too.
    """
    if jnp.dtype(dtype) == jnp.float32:
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()
