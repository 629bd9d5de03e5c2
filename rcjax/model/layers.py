"""The parts of a transformer layer that know nothing of attention: normalisation, projections, the gated MLP."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from rcjax.model.config import LlamaConfig
from rcjax.sharding import constrain

INIT_STDDEV = 0.02

Axes = tuple[str | None, ...]


def residual_stddev(config: LlamaConfig) -> float:
    """Initial scale of projections that write into the residual stream.

    Divided by sqrt(2 * layers), so that the sum over both writes of every layer keeps its variance
    (Radford et al. 2019, section 2.3).
    """
    return INIT_STDDEV / math.sqrt(2 * config.num_layers)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: jax.Array, kernel: jax.Array, contracted: int = 1) -> jax.Array:
    """Linear map: sums the last ``contracted`` dimensions of x with the first of the kernel, [..., *in] -> [..., *out].

    Its gradient is written out because of the order of factors. JAX transposes a product to ``(g^T x)^T`` for the
    kernel, for which XLA on CPU first turns the whole of ``g`` over in memory; ``x^T g`` needs no copy (a training
    step of the demo model takes a quarter less).
    """
    return jnp.tensordot(x, kernel, axes=contracted)


def _project_forward(x, kernel, contracted):
    # Not ``project`` again: a remat policy recognises products by what they are, and would not look into it.
    return jnp.tensordot(x, kernel, axes=contracted), (x, kernel)


def _project_backward(contracted, kept, gradient):
    x, kernel = kept
    batch = tuple(range(x.ndim - contracted))
    outputs = tuple(range(len(batch), gradient.ndim)), tuple(range(contracted, kernel.ndim))
    d_x = jax.lax.dot_general(gradient, kernel, (outputs, ((), ())))
    d_kernel = jax.lax.dot_general(x, gradient, ((batch, batch), ((), ())))
    return d_x, d_kernel


project.defvjp(_project_forward, _project_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Root mean square normalisation (Zhang & Sennrich 2019) over the last dimension: [..., D], [D] -> [..., D].

    Computed in float32 or wider; the result has the dtype of ``x``. The gradient is written out: it keeps one number
    a row besides ``x`` for the backward pass, and its sums are products, which XLA on CPU adds up several times faster
    than reductions (a training step of the demo model takes a tenth less).
    """
    return _rms_norm_forward(x, scale, eps)[0]


def _rms_norm_forward(x, scale, eps):
    precise = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    inverse = jax.lax.rsqrt(_row_dots(precise, precise) / x.shape[-1] + eps)[..., None]  # [..., 1]
    # Rounded before the scale, as Llama does: the other order differs in bfloat16.
    return (precise * inverse).astype(x.dtype) * scale.astype(x.dtype), (x, scale, inverse)


def _rms_norm_backward(eps, kept, gradient):
    x, scale, inverse = kept
    gradient = gradient.astype(inverse.dtype)
    normed = x.astype(inverse.dtype) * inverse
    rows = "abcdefg"[: x.ndim - 1]
    d_scale = jnp.einsum(f"{rows}z,{rows}z->z", gradient, normed, precision=jax.lax.Precision.HIGHEST)
    d_normed = gradient * scale.astype(inverse.dtype)
    # normed has length sqrt(D) by construction, so no gradient goes along it.
    d_x = inverse * (d_normed - normed * (_row_dots(d_normed, normed)[..., None] / x.shape[-1]))
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype)


def _row_dots(x: jax.Array, y: jax.Array) -> jax.Array:
    """sum(x * y) over the last dimension, in full precision on every backend."""
    return jnp.einsum("...z,...z->...", x, y, precision=jax.lax.Precision.HIGHEST)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


class RMSNorm(nnx.Module):
    """``rms_norm`` over ``size`` values with a scale of its own."""

    def __init__(self, size: int, eps: float, *, param_dtype):
        self.scale = nnx.Param(jnp.ones(size, param_dtype), logical_axes=(None,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        return rms_norm(x, self.scale[...], self.eps)


class Projection(nnx.Module):
    """A linear map between named groups of dimensions.

    Args:
      shape: of the kernel, contracted dimensions first.
      logical_axes: name of each kernel dimension, see ``rcjax.sharding.RULES``.
      contracted: how many leading kernel dimensions are summed over.
      bias: adds a bias with the shape of the output dimensions.
    """

    def __init__(
        self,
        shape: Sequence[int],
        logical_axes: Axes,
        *,
        rngs: nnx.Rngs,
        dtype,
        param_dtype,
        contracted: int = 1,
        stddev: float = INIT_STDDEV,
        bias: bool = False,
    ):
        kernel = stddev * jax.random.normal(rngs.params(), tuple(shape), param_dtype)
        self.kernel = nnx.Param(kernel, logical_axes=tuple(logical_axes))
        if bias:
            zeros = jnp.zeros(tuple(shape[contracted:]), param_dtype)
            self.bias = nnx.Param(zeros, logical_axes=tuple(logical_axes[contracted:]))
        self.has_bias = bias
        self.contracted = contracted
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *in] -> [..., *out]."""
        y = project(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.contracted)
        return y + self.bias[...].astype(self.dtype) if self.has_bias else y


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up, elementwise (Shazeer 2020, arXiv 2002.05202).

    The gradient is written out so that nothing but the two arguments is kept for it: left to itself JAX keeps three
    more arrays of their size, which are a good part of all that a layer keeps.
    """
    return jax.nn.silu(gate) * up


def _swiglu_forward(gate, up):
    return swiglu(gate, up), (gate, up)


def _swiglu_backward(kept, gradient):
    dtype = kept[0].dtype
    gate, up, gradient = (x.astype(jnp.promote_types(jnp.float32, dtype)) for x in (*kept, gradient))
    share = jax.nn.sigmoid(gate)
    d_gate = gradient * up * share * (1 + gate * (1 - share))
    return d_gate.astype(dtype), (gradient * gate * share).astype(dtype)


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


class MLP(nnx.Module):
    """SwiGLU feed-forward (Shazeer 2020, arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtype, param_dtype):
        embed, inner = config.hidden_size, config.intermediate_size
        common = dict(rngs=rngs, dtype=dtype, param_dtype=param_dtype)
        self.gate = Projection((embed, inner), ("embed", "mlp"), **common)
        self.up = Projection((embed, inner), ("embed", "mlp"), **common)
        self.down = Projection((inner, embed), ("mlp", "embed"), stddev=residual_stddev(config), **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, S, D] -> [B, S, D]."""
        inner = swiglu(self.gate(x), self.up(x))  # [B, S, F]
        return self.down(constrain(inner, "batch", None, "mlp"))
