"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split layout of Llama checkpoints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rcjax.model.config import LlamaConfig


def frequencies(config: LlamaConfig) -> np.ndarray:
    """Angle per position of each pair of dimensions, radians: float64 [H / 2]."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    angles = config.rope_theta**-exponents
    if config.rope_scaling is not None:  # linear, the one type that RopeScaling admits
        angles = angles / config.rope_scaling.factor
    return angles


def rotation(config: LlamaConfig, positions: jax.Array, dtype) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine tables of arbitrary positions: int32 [B, S] -> two of [B, S, H / 2].

    At least float32 whatever ``dtype`` is: bfloat16 can not tell positions above 256 apart.
    """
    precise = jnp.promote_types(jnp.float32, dtype)
    angles = positions.astype(precise)[..., None] * jnp.asarray(frequencies(config), precise)  # [B, S, H/2]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns each pair (x[i], x[i + H/2]) by its angle: [..., H] with tables that broadcast to [..., H / 2]."""
    cosine, sine = table
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate((first * cosine - second * sine, second * cosine + first * sine), axis=-1)
    return turned.astype(x.dtype)
