"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split layout of Llama checkpoints."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from rcjax.model.config import LlamaConfig, RopeScaling


def frequencies(config: LlamaConfig) -> np.ndarray:
    """Angle per position of each pair of dimensions, radians: float64 [H / 2]."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    angles = config.rope_theta**-exponents
    scaling = config.rope_scaling
    return angles if scaling is None else _STRETCHES[scaling.rope_type](angles, config, scaling)


def magnitude(config: LlamaConfig) -> float:
    """Factor on the rotated queries and on the rotated keys: 1 but for yarn (arXiv 2309.00071, section 3.4)."""
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)


def _linear(angles: np.ndarray, config: LlamaConfig, scaling: RopeScaling) -> np.ndarray:
    return angles / scaling.factor


def _dynamic(angles: np.ndarray, config: LlamaConfig, scaling: RopeScaling) -> np.ndarray:
    """As it is up to ``max_position_embeddings``; ``LlamaConfig.check_length`` refuses what is longer."""
    return angles


def _llama3(angles: np.ndarray, config: LlamaConfig, scaling: RopeScaling) -> np.ndarray:
    """Turns that fit the original length less than ``low`` times are slowed down, more than ``high`` times kept."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings * angles / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - kept) * angles / scaling.factor + kept * angles


def _yarn(angles: np.ndarray, config: LlamaConfig, scaling: RopeScaling) -> np.ndarray:
    """Slowed down by ``factor`` above a pair, kept below another, a ramp between (arXiv 2309.00071, section 3.2)."""

    def pair(turns: float) -> float:  # which pair makes so many turns over the original length
        length = scaling.original_max_position_embeddings
        return config.head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = pair(scaling.beta_fast or 32), pair(scaling.beta_slow or 1)
    if scaling.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    slowed = np.clip((np.arange(len(angles)) - low) / (high - low or 0.001), 0, 1)
    return slowed * angles / scaling.factor + (1 - slowed) * angles


_STRETCHES = {"linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn}


def rotation(config: LlamaConfig, positions: jax.Array, dtype) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine tables of arbitrary positions: int32 [B, S] -> two of [B, S, H / 2].

    At least float32 whatever ``dtype`` is: bfloat16 can not tell positions above 256 apart.
    """
    precise = jnp.promote_types(jnp.float32, dtype)
    angles = positions.astype(precise)[..., None] * jnp.asarray(frequencies(config), precise)  # [B, S, H/2]
    size = magnitude(config)
    return (jnp.cos(angles), jnp.sin(angles)) if size == 1 else (size * jnp.cos(angles), size * jnp.sin(angles))


def rotate(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns each pair (x[i], x[i + H/2]) by its angle: [..., H] with tables that broadcast to [..., H / 2]."""
    cosine, sine = table
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate((first * cosine - second * sine, second * cosine + first * sine), axis=-1)
    return turned.astype(x.dtype)
