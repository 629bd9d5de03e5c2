"""Our parameter dict and Hugging Face tensor names: one table, read in both directions.

Hugging Face keeps a linear map as [out, in] and one tensor a layer; ours is [in..., out...] with layers stacked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rcjax.model import LlamaConfig, abstract_params

Params = dict[str, Any]

# Path below the root (or below `layers`) -> name. Kernels are transposed; how many of their dimensions are inputs
# stands in CONTRACTED where it is not one.
TOP = {
    ("embed", "embedding"): "model.embed_tokens.weight",
    ("norm", "scale"): "model.norm.weight",
    ("head", "kernel"): "lm_head.weight",
}
LAYER = {
    ("attention", "query", "kernel"): "self_attn.q_proj.weight",
    ("attention", "query", "bias"): "self_attn.q_proj.bias",
    ("attention", "key", "kernel"): "self_attn.k_proj.weight",
    ("attention", "key", "bias"): "self_attn.k_proj.bias",
    ("attention", "value", "kernel"): "self_attn.v_proj.weight",
    ("attention", "value", "bias"): "self_attn.v_proj.bias",
    ("attention", "output", "kernel"): "self_attn.o_proj.weight",
    ("attention", "output", "bias"): "self_attn.o_proj.bias",
    ("attention", "query_norm", "scale"): "self_attn.q_norm.weight",
    ("attention", "key_norm", "scale"): "self_attn.k_norm.weight",
    ("mlp", "gate", "kernel"): "mlp.gate_proj.weight",
    ("mlp", "up", "kernel"): "mlp.up_proj.weight",
    ("mlp", "down", "kernel"): "mlp.down_proj.weight",
    ("attention_norm", "scale"): "input_layernorm.weight",
    ("mlp_norm", "scale"): "post_attention_layernorm.weight",
}
CONTRACTED = {("attention", "output", "kernel"): 2}
TILE = 256  # entries a side; a tile of either array fits into a core's cache
TABLES = (("embed", "embedding"), ("head", "kernel"))

Range = tuple[int, int]  # [start, stop)


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One Hugging Face tensor and where it lives here.

    Attributes:
      name, shape: of the Hugging Face tensor.
      path: keys of the parameter dict.
      layer: index on axis 0 of a stacked parameter; None for one that is not stacked.
      inner_shape: of our tensor, without the layer axis.
      padding: rows that our table has behind the vocabulary and the Hugging Face tensor has not (dimension 0 there,
        the dimension of the vocabulary here).
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    layer: int | None
    inner_shape: tuple[int, ...]
    padding: int = 0

    @property
    def is_table(self) -> bool:
        """Whether dimension 0 of the Hugging Face tensor is the vocabulary."""
        return self.path in TABLES

    @property
    def num_inputs(self) -> int:
        """How many leading dimensions of our kernel are inputs, that is columns of the Hugging Face matrix."""
        return CONTRACTED.get(self.path[1:], 1) if self.path[-1] == "kernel" else 0

    @property
    def row_axes(self) -> tuple[int, ...]:
        """Dimensions of ``inner_shape`` that make up the rows of the Hugging Face tensor."""
        if self.path[-1] == "embedding":
            return (0,)
        return tuple(range(self.num_inputs, len(self.inner_shape)))

    def hf_ranges(self, index: Sequence[Range]) -> tuple[list[Range], list[Range] | None]:
        """Which part of the Hugging Face tensor a part of ours is.

        Args:
          index: [start, stop) on each dimension of ``inner_shape``.

        Returns:
          Ranges of its rows (from ``shape[0]`` on they are padding) and of its columns, in the order of
          ``hf_view``; None for columns where it has one dimension.
        """
        rows = self.row_axes
        columns = tuple(axis for axis in range(len(index)) if axis not in rows)
        flat = [_flat_ranges([index[a] for a in axes], [self.inner_shape[a] for a in axes]) for axes in (rows, columns)]
        return flat[0], flat[1] if len(self.shape) == 2 else None

    def hf_view(self, tensor: np.ndarray) -> np.ndarray:
        """A part of our tensor in the Hugging Face layout: a view, so that what is written there is written here."""
        if len(self.shape) == 1:
            return tensor.reshape(-1)
        if self.path[-1] != "kernel":
            return tensor
        return tensor.reshape(math.prod(tensor.shape[: self.num_inputs]), -1).T

    def to_hf(self, tensor: np.ndarray) -> np.ndarray:
        """Ours, without the layer axis, in the Hugging Face layout; contiguous, without the padding."""
        rows, *rest = self.shape
        if self.path[-1] == "kernel":
            tensor = tensor.reshape(*rest, rows + self.padding).T
        return np.ascontiguousarray(tensor.reshape(rows + self.padding, *rest)[:rows])


def tensor_specs(config: LlamaConfig) -> list[TensorSpec]:
    """All Hugging Face tensors of a model, in the order in which transformers lists them.

    A tied model has no ``lm_head.weight``.
    """
    shapes = abstract_params(config)
    specs = [_spec(config, ("embed", "embedding"), TOP["embed", "embedding"], shapes, None)]
    for layer in range(config.num_layers):
        for path, name in LAYER.items():
            if find(shapes["layers"], path) is not None:
                specs.append(_spec(config, ("layers", *path), f"model.layers.{layer}.{name}", shapes, layer))
    specs.append(_spec(config, ("norm", "scale"), TOP["norm", "scale"], shapes, None))
    if not config.tie_embeddings:
        specs.append(_spec(config, ("head", "kernel"), TOP["head", "kernel"], shapes, None))
    return specs


def to_hf(config: LlamaConfig, params: Params, dtype: Any = None) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) of each Hugging Face tensor, one after another.

    Args:
      params: the parameter dict, of numpy or jax arrays.
      dtype: to convert to; None keeps it.
    """
    for spec in tensor_specs(config):
        tensor = find(params, spec.path)
        tensor = np.asarray(tensor if spec.layer is None else tensor[spec.layer])
        yield spec.name, spec.to_hf(tensor if dtype is None else tensor.astype(dtype))


def _flat_ranges(index: Sequence[Range], shape: Sequence[int]) -> list[Range]:
    """Ranges, in order, of the flattened dimensions that a box covers; side by side where it can be."""
    ranges = [(0, 1)]
    for (start, stop), size in zip(index, shape, strict=True):
        if (start, stop) == (0, size):
            ranges = [(first * size, last * size) for first, last in ranges]
        else:
            ranges = [(unit * size + start, unit * size + stop) for one in ranges for unit in range(*one)]
    return ranges


def find(tree: Params, path: tuple[str, ...]) -> Any:
    """The leaf at a path, None where there is none."""
    for key in path:
        tree = tree.get(key)
        if tree is None:
            return None
    return tree


def put(tree: Params, path: tuple[str, ...], leaf: Any) -> None:
    """Sets the leaf at a path."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


def _spec(config: LlamaConfig, path: tuple[str, ...], name: str, shapes: Params, layer: int | None) -> TensorSpec:
    inner = find(shapes, path).shape
    inner = inner if layer is None else inner[1:]
    shape = inner
    if path[-1] == "kernel":
        contracted = CONTRACTED.get(path[1:], 1)
        shape = (math.prod(inner[contracted:]), math.prod(inner[:contracted]))
    elif path[-1] == "bias":
        shape = (math.prod(inner),)
    padding = config.table_size - config.vocab_size if path in TABLES else 0
    shape = (shape[0] - padding, *shape[1:])
    return TensorSpec(name, shape, path, layer, tuple(inner), padding)


def copy_tiles(target: np.ndarray, source: np.ndarray) -> None:
    """target[...] = source, converted; tile by tile, for one of the two may be turned over: five times as quick."""
    if source.ndim < 2 or (source.flags.c_contiguous and target.flags.c_contiguous):
        target[...] = source
        return
    for top in range(0, source.shape[0], TILE):
        for left in range(0, source.shape[1], TILE):
            tile = (slice(top, top + TILE), slice(left, left + TILE))
            target[tile] = source[tile].astype(target.dtype)
