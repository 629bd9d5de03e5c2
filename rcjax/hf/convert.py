"""Our parameter dict and Hugging Face tensor names: one table, read in both directions.

Hugging Face keeps a linear map as [out, in] and one tensor a layer; ours is [in..., out...] with layers stacked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
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
    ("attention_norm", "scale"): "input_layernorm.weight",
    ("attention", "query", "kernel"): "self_attn.q_proj.weight",
    ("attention", "key", "kernel"): "self_attn.k_proj.weight",
    ("attention", "value", "kernel"): "self_attn.v_proj.weight",
    ("attention", "output", "kernel"): "self_attn.o_proj.weight",
    ("attention", "query", "bias"): "self_attn.q_proj.bias",
    ("attention", "key", "bias"): "self_attn.k_proj.bias",
    ("attention", "value", "bias"): "self_attn.v_proj.bias",
    ("attention", "output", "bias"): "self_attn.o_proj.bias",
    ("mlp_norm", "scale"): "post_attention_layernorm.weight",
    ("mlp", "gate", "kernel"): "mlp.gate_proj.weight",
    ("mlp", "up", "kernel"): "mlp.up_proj.weight",
    ("mlp", "down", "kernel"): "mlp.down_proj.weight",
}
CONTRACTED = {("attention", "output", "kernel"): 2}


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One Hugging Face tensor and where it lives here.

    Attributes:
      name, shape: of the Hugging Face tensor.
      path: keys of the parameter dict.
      layer: index on axis 0 of a stacked parameter; None for one that is not stacked.
      inner_shape: of our tensor, without the layer axis.
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    layer: int | None
    inner_shape: tuple[int, ...]

    def to_hf(self, tensor: np.ndarray) -> np.ndarray:
        """Ours, without the layer axis, in the Hugging Face layout; contiguous."""
        if self.path[-1] == "kernel":
            tensor = tensor.reshape(self.shape[::-1]).T
        return np.ascontiguousarray(tensor.reshape(self.shape))

    def from_hf(self, tensor: np.ndarray) -> np.ndarray:
        """The inverse of ``to_hf``."""
        return (tensor.T if self.path[-1] == "kernel" else tensor).reshape(self.inner_shape)


def tensor_specs(config: LlamaConfig) -> list[TensorSpec]:
    """All Hugging Face tensors of a model, in the order in which transformers lists them.

    A tied model has no ``lm_head.weight``.
    """
    shapes = abstract_params(config)
    specs = [_spec(("embed", "embedding"), TOP["embed", "embedding"], shapes, None)]
    for layer in range(config.num_layers):
        for path, name in LAYER.items():
            if _find(shapes["layers"], path) is not None:
                specs.append(_spec(("layers", *path), f"model.layers.{layer}.{name}", shapes, layer))
    specs.append(_spec(("norm", "scale"), TOP["norm", "scale"], shapes, None))
    if not config.tie_embeddings:
        specs.append(_spec(("head", "kernel"), TOP["head", "kernel"], shapes, None))
    return specs


def to_hf(config: LlamaConfig, params: Params, dtype: Any = None) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) of each Hugging Face tensor, one after another.

    Args:
      params: the parameter dict, of numpy or jax arrays.
      dtype: to convert to; None keeps it.
    """
    for spec in tensor_specs(config):
        tensor = _find(params, spec.path)
        tensor = np.asarray(tensor if spec.layer is None else tensor[spec.layer])
        yield spec.name, spec.to_hf(tensor if dtype is None else tensor.astype(dtype))


def from_hf(config: LlamaConfig, read: Callable[[str], np.ndarray], dtype: Any = None) -> Params:
    """The parameter dict (numpy) from a function that gives the tensor of a name.

    Args:
      read: called once a tensor, in the order of ``tensor_specs``; shapes must be those of the specs.
      dtype: to convert to; None takes that of the first tensor.
    """
    params: Params = {}
    shapes = abstract_params(config)
    for spec in tensor_specs(config):
        tensor = spec.from_hf(read(spec.name))
        dtype = tensor.dtype if dtype is None else dtype
        node = params
        for key in spec.path[:-1]:
            node = node.setdefault(key, {})
        if spec.path[-1] not in node:
            node[spec.path[-1]] = np.empty(_find(shapes, spec.path).shape, dtype)
        node[spec.path[-1]][... if spec.layer is None else spec.layer] = tensor
    return params


def _find(tree: Params, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree.get(key)
        if tree is None:
            return None
    return tree


def _spec(path: tuple[str, ...], name: str, shapes: Params, layer: int | None) -> TensorSpec:
    inner = _find(shapes, path).shape
    inner = inner if layer is None else inner[1:]
    shape = inner
    if path[-1] == "kernel":
        contracted = CONTRACTED.get(path[1:], 1)
        shape = (math.prod(inner[contracted:]), math.prod(inner[:contracted]))
    elif path[-1] == "bias":
        shape = (math.prod(inner),)
    return TensorSpec(name, tuple(shape), path, layer, tuple(inner))
