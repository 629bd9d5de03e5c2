"""Single tensors of a model that lies on many devices and hosts, brought to the host of process 0."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rcjax.distributed import leads
from rcjax.hf.convert import TensorSpec, find


def gather_tensor(params: dict[str, Any], spec: TensorSpec) -> np.ndarray | None:
    """One parameter, or one layer of a stacked one, as ``spec`` names it, in our layout.

    Where the parameters lie on several hosts, every process must call it, with the same tensors in the same order.

    Args:
      params: the parameter dict, of jax arrays on any mesh, or of numpy arrays.

    Returns:
      The tensor on process 0, None elsewhere. It may share memory with the parameters: not to be written to.
    """
    leaf = find(params, spec.path)
    if not isinstance(leaf, jax.Array):
        return (leaf if spec.layer is None else leaf[spec.layer]) if leads() else None
    if not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        # The one way to cross hosts: a collective after which every device holds the tensor. One layer is little.
        whole = NamedSharding(leaf.sharding.mesh, PartitionSpec())
        leaf = _replicated(whole)(leaf, None if spec.layer is None else np.int32(spec.layer))
        return np.asarray(leaf.addressable_data(0)) if leads() else None
    return _from_devices(leaf, spec.layer) if leads() else None


def _pick(leaf: jax.Array, layer: jax.Array | None) -> jax.Array:
    """The index is an argument, so that all layers share a compiled program."""
    return leaf if layer is None else jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)


_pick_on_device = jax.jit(_pick)


@functools.lru_cache(maxsize=8)
def _replicated(sharding: NamedSharding):
    return jax.jit(_pick, out_shardings=sharding)


def _from_devices(leaf: jax.Array, layer: int | None) -> np.ndarray:
    """Puts a tensor together from this process's devices, each part read once and no more of it than the layer."""
    shards = leaf.addressable_shards
    # A copy on another device is not needed; where all are copies, the first will do.
    shards = shards[:1] if leaf.is_fully_replicated else [shard for shard in shards if shard.replica_id == 0]
    result = None
    for shard in shards:
        index, part = shard.index, shard.data
        if layer is not None:
            first, last, _ = index[0].indices(leaf.shape[0])
            if not first <= layer < last:
                continue
            index, part = index[1:], _pick_on_device(part, np.int32(layer - first))
        part = np.asarray(part)
        shape = leaf.shape if layer is None else leaf.shape[1:]
        if part.shape == shape:
            return part
        if result is None:
            result = np.empty(shape, leaf.dtype)
        result[index] = part
    return result
