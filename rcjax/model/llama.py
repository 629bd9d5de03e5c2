"""The Llama model, and its parameters as a plain nested dict.

Outside of this package parameters are always the plain dict: layers stacked on axis 0, names as below. ``apply``
puts them into the module again, which costs nothing at run time.

    embed/embedding [V, D]                    V = config.table_size
    layers/attention_norm/scale [L, D]        layers/mlp_norm/scale [L, D]
    layers/attention/{query,key,value}/kernel [L, D, N or K, H]      layers/attention/output/kernel [L, N, H, D]
    layers/attention/{query,key,value}/bias [L, N or K, H]           layers/attention/output/bias [L, D]
    layers/attention/{query,key}_norm/scale [L, H]                   (biases and these where the config has them)
    layers/mlp/{gate,up}/kernel [L, D, F]     layers/mlp/down/kernel [L, F, D]
    norm/scale [D]
    head/kernel [D, V]                        (absent when tied)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rcjax.model.attention import PATHS, Attention, default_path
from rcjax.model.config import LlamaConfig, ModelConfigError
from rcjax.model.layers import INIT_STDDEV, MLP, Projection, RMSNorm, rms_norm
from rcjax.model.rope import rotation
from rcjax.sharding import LAYERS, RULES, constrain, on_each_device, parts_of

Params = dict[str, Any]

HOST_MEMORY = "pinned_host"

# What the backward pass computes again: nothing, everything but matrix products with parameters, whole layers; or, as
# with `dots`, everything but those products, which wait in the host's memory meanwhile.
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", HOST_MEMORY),
}


class Embedding(nnx.Module):
    """Token table [V, D], V = ``config.table_size``."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtype, param_dtype):
        shape = (config.table_size, config.hidden_size)
        table = INIT_STDDEV * jax.random.normal(rngs.params(), shape, param_dtype)
        self.embedding = nnx.Param(table, logical_axes=("vocab", "embed"))
        self.dtype = dtype

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """int32 [B, S] -> [B, S, D]."""
        table = self.embedding[...]
        parts = parts_of("vocab")
        # Where a device has fewer slots than rows of the table it is not the table that is gathered over fsdp: columns
        # are looked up where they lie, and exchanged for rows.
        by_columns = tokens.size // parts_of("batch") < table.shape[0] // parts
        rows, columns = ("groups", "embed") if by_columns else ("batch", None)
        gathered = not by_columns and parts_of("embed") > 1

        def look_up(table, tokens):
            """[1, B, S, D], zeros where another device has the token's row."""
            if gathered:  # here and not on the way in: so its gradient is scattered, and not added up everywhere
                table = jax.lax.all_gather(table, RULES["embed"], axis=1, tiled=True)
            if parts == 1:
                return jnp.take(table, tokens, axis=0).astype(self.dtype)[None]
            index = tokens - jax.lax.axis_index(RULES["vocab"]) * table.shape[0]
            mine = (index >= 0) & (index < table.shape[0])
            found = jnp.take(table, jnp.where(mine, index, 0), axis=0).astype(self.dtype)
            return jnp.where(mine[..., None], found, 0)[None]

        # Told device by device: the compiler, left to itself, gives every device all rows of all groups on the way, and
        # breaks down where groups are ``apart`` and the table is split both ways.
        split = on_each_device(look_up, (("vocab", "embed"), (rows, None)), ("vocab", rows, None, columns))
        return jnp.sum(split(table, tokens), axis=0)


class Layer(nnx.Module):
    """Pre-norm transformer layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtype, param_dtype, attention: str):
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, param_dtype=param_dtype)
        self.attention = Attention(config, rngs=rngs, dtype=dtype, param_dtype=param_dtype, path=attention)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, param_dtype=param_dtype)
        self.mlp = MLP(config, rngs=rngs, dtype=dtype, param_dtype=param_dtype)

    def __call__(
        self,
        x: jax.Array,
        table: tuple[jax.Array, jax.Array],
        positions: jax.Array,
        segment_ids: jax.Array,
        window: int | jax.Array | None,
    ) -> jax.Array:
        """[B, S, D], the rest as ``Attention.__call__`` -> [B, S, D]."""
        with jax.named_scope("attention"):
            x = x + self.attention(self.attention_norm(x), table, positions, segment_ids, window)
            x = constrain(x, "batch", None, None)
        with jax.named_scope("mlp"):
            x = x + self.mlp(self.mlp_norm(x))
            return constrain(x, "batch", None, None)


class Llama(nnx.Module):
    """Llama: embedding, layers stacked on axis 0, final norm, output projection.

    Args:
      config: the model's shape.
      rngs: stream ``params`` initialises the parameters.
      dtype: of activations; norms, softmax and rotary embedding are at least float32.
      param_dtype: of parameters.
      remat: ``none``, ``dots``, ``full`` or ``offload``, see ``REMAT_POLICIES``.
      scan_layers: one compiled layer in ``jax.lax.scan`` (compile time and code size do not grow with depth)
        or all layers in a row (quicker on CPU). Same result, same parameters.
      attention: a path of ``rcjax.model.attention.PATHS``; None takes what is quicker on the backend.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        remat: str = "none",
        scan_layers: bool = True,
        attention: str | None = None,
    ):
        attention = attention or default_path()
        if attention not in PATHS:
            raise ModelConfigError(f"attention is {attention!r}; choices are {', '.join(PATHS)}")
        if remat not in REMAT_POLICIES:
            raise ModelConfigError(f"remat is {remat!r}; choices are {', '.join(REMAT_POLICIES)}")
        common = dict(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(param_dtype))
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.remat = remat
        self.scan_layers = scan_layers
        self.embed = Embedding(config, rngs=rngs, **common)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make_layer(rngs: nnx.Rngs) -> Layer:
            return Layer(config, rngs=rngs, attention=attention, **common)

        self.layers = make_layer(rngs)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, param_dtype=common["param_dtype"])
        if not config.tie_embeddings:
            self.head = Projection((config.hidden_size, config.table_size), ("embed", "vocab"), rngs=rngs, **common)

    def __call__(self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """Final hidden states, after the last norm.

        Args:
          tokens: int32 [B, S].
          positions: int32 [B, S], of the rotary embedding and of sliding windows: at least 0 and strictly rising
            inside a segment, not necessarily by 1.
          segment_ids: int32 [B, S], 0 is padding, whose output means nothing.

        Returns:
          [B, S, D] of the compute dtype.
        """
        with jax.named_scope("embed"):
            x = constrain(self.embed(tokens), "batch", None, None)  # [B, S, D]
            table = rotation(self.config, positions, self.dtype)
        graph, stacked = nnx.split(self.layers)

        def run(x, one_layer, window):
            return nnx.merge(graph, one_layer)(x, table, positions, segment_ids, window)

        def with_window(window):
            """One layer, (x, parameters) -> x."""
            one = functools.partial(run, window=window)
            if self.remat == "none":
                return one
            # A scan keeps the compiler from merging the two computations, so the costly barrier can go there.
            return jax.checkpoint(one, policy=REMAT_POLICIES[self.remat], prevent_cse=not self.scan_layers)

        windows = self.config.windows
        if self.scan_layers and len(set(windows)) == 1:
            one = with_window(windows[0])
            x, _ = jax.lax.scan(lambda x, one_layer: (one(x, one_layer), None), x, stacked)
        elif self.scan_layers:  # one compiled layer for all, so the window travels with the parameters
            everything = jnp.iinfo(jnp.int32).max
            numbers = jnp.array([everything if window is None else window for window in windows], jnp.int32)
            x, _ = jax.lax.scan(lambda x, layer: (with_window(layer[1])(x, layer[0]), None), x, (stacked, numbers))
        else:
            kinds = {window: with_window(window) for window in windows}
            for index, window in enumerate(windows):
                x = kinds[window](x, jax.tree.map(lambda leaf, index=index: leaf[index], stacked))
        return self.norm(x)

    def head_kernel(self) -> jax.Array:
        """Output projection [D, V]: the token table turned over when tied."""
        return self.embed.embedding[...].T if self.config.tie_embeddings else self.head.kernel[...]


@functools.lru_cache(maxsize=32)
def _abstract(config: LlamaConfig, dtype, param_dtype, remat: str, scan_layers: bool, attention: str):
    """(graph definition, abstract state) of a model that is never allocated."""
    model = nnx.eval_shape(
        lambda: Llama(
            config,
            rngs=nnx.Rngs(params=0),
            dtype=dtype,
            param_dtype=param_dtype,
            remat=remat,
            scan_layers=scan_layers,
            attention=attention,
        )
    )
    return nnx.split(model)


def abstract_params(config: LlamaConfig, param_dtype=jnp.float32) -> Params:
    """The parameter dict with a ``jax.ShapeDtypeStruct`` at each leaf; nothing is allocated."""
    param_dtype = jax.dtypes.canonicalize_dtype(param_dtype)  # float64 is float32 while x64 is off
    _, state = _abstract(config, param_dtype, param_dtype, "none", True, "blocks")
    return nnx.to_pure_dict(state)


def logical_axes(config: LlamaConfig) -> Params:
    """The parameter dict with a tuple of logical axis names at each leaf (``rcjax.sharding.RULES``)."""
    _, state = _abstract(config, jnp.dtype(jnp.float32), jnp.dtype(jnp.float32), "none", True, "blocks")
    axes: Params = {}
    for path, variable in nnx.to_flat_state(state):
        names = variable.get_metadata("logical_axes")
        node = axes
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = (LAYERS, *names) if path[0] == "layers" else names
    return axes


def init_params(config: LlamaConfig, key: jax.Array, param_dtype=jnp.float32) -> Params:
    """Fresh parameters; inside ``jax.jit`` with ``out_shardings`` each is born where it lives.

    Normal with deviation 0.02, projections into the residual stream 0.02 / sqrt(2 * layers); norms are 1.
    """
    model = Llama(config, rngs=nnx.Rngs(params=key), param_dtype=param_dtype)
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def apply(
    config: LlamaConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    dtype=jnp.float32,
    remat: str = "none",
    scan_layers: bool | None = None,
    attention: str | None = None,
) -> jax.Array:
    """Runs the model on parameters given as a plain dict; arguments and result as ``Llama.__call__``.

    Args:
      scan_layers: None takes what is quicker on the backend: in a row on CPU, scanned elsewhere.
      attention: a path of ``rcjax.model.attention.PATHS``; None takes what is quicker on the backend.
    """
    if scan_layers is None:
        scan_layers = jax.default_backend() != "cpu"
    graph, state = _abstract(
        config, jnp.dtype(dtype), jnp.dtype(jnp.float32), remat, scan_layers, attention or default_path()
    )
    state = jax.tree.map(lambda leaf: leaf, state)  # the cached one must stay as it is
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)(tokens, positions, segment_ids)


def head_kernel(config: LlamaConfig, params: Params) -> jax.Array:
    """Output projection [D, V] of a plain parameter dict."""
    return params["embed"]["embedding"].T if config.tie_embeddings else params["head"]["kernel"]


def embed_tokens(config: LlamaConfig, embedding: jax.Array, tokens: jax.Array, dtype=jnp.float32) -> jax.Array:
    """What the first layer gets. With ``apply_layer`` and ``final_logits`` a model runs layer by layer.

    Args:
      embedding: [V, D], the token table; rows of padding may be missing.
      tokens: int32 [B, S].
      dtype: of the computation.

    Returns:
      [B, S, D].
    """
    return jnp.take(embedding, tokens, axis=0).astype(dtype)


def apply_layer(
    config: LlamaConfig,
    layer_params: Params,
    window: int | None,
    x: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    dtype=jnp.float32,
    attention: str | None = None,
) -> jax.Array:
    """One layer; ``config`` and ``window`` are static under ``jax.jit``.

    Args:
      layer_params: one layer's part of the ``layers`` dict, without the leading axis.
      window: ``config.windows`` of this layer.
      x: [B, S, D].
      positions, segment_ids: int32 [B, S], as ``Llama.__call__``.
      dtype, attention: as ``apply``.

    Returns:
      [B, S, D].
    """
    graph, state = _abstract_layer(config, jnp.dtype(dtype), attention or default_path())
    state = jax.tree.map(lambda leaf: leaf, state)  # the cached one must stay as it is
    nnx.replace_by_pure_dict(state, layer_params)
    table = rotation(config, positions, dtype)
    return nnx.merge(graph, state)(x.astype(dtype), table, positions, segment_ids, window)


@functools.lru_cache(maxsize=8)
def _abstract_layer(config: LlamaConfig, dtype, attention: str):
    return nnx.split(
        nnx.eval_shape(
            lambda: Layer(config, rngs=nnx.Rngs(params=0), dtype=dtype, param_dtype=jnp.float32, attention=attention)
        )
    )


def final_logits(config: LlamaConfig, norm_scale: jax.Array, kernel: jax.Array, x: jax.Array) -> jax.Array:
    """Last norm and output projection, in float32 or wider.

    Args:
      norm_scale: [D], ``norm/scale``.
      kernel: [D, V] of ``head_kernel``; columns of padding may be missing.
      x: [B, S, D], what the last layer gave.

    Returns:
      [B, S, vocab_size].
    """
    precise = jnp.promote_types(jnp.float32, x.dtype)
    kernel = kernel[:, : config.vocab_size].astype(x.dtype)
    return jnp.matmul(rms_norm(x, norm_scale, config.rms_norm_eps), kernel, preferred_element_type=precise)
