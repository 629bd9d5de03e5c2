"""Whether all copies of the parameters are still the same, on whatever device and host they lie.

Copies are made the same by computing the same from the same. A device that computes wrongly, or a host that feeds other
data, makes them drift apart without a word: losses stay plausible, and a checkpoint holds whichever copy is written.
So each device adds up the bits of what it holds, the sums go to every process, and copies must agree.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rcjax.distributed import everywhere

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


class DivergenceError(ValueError):
    """Copies of a parameter that differ; the message names it, the step and the devices."""


def check_copies(params: Any, step: int) -> None:
    """Compares the copies of each parameter's parts. Every process of a run calls this.

    Costs reading the parameters once, and one small all-gather.

    Args:
      params: the parameter dict, laid out on one mesh.
      step: optimizer steps that made it, for the message.

    Raises:
      DivergenceError: copies differ; on every process alike.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    arrays = [leaf for _, leaf in leaves]
    mesh = arrays[0].sharding.mesh
    sums = np.asarray(_program(mesh, tuple(leaf.sharding.spec for leaf in arrays))(arrays))  # [devices, leaves]
    devices = mesh.devices.flatten()
    for (path, leaf), column in zip(leaves, sums.T, strict=True):
        for positions in _copies(leaf.sharding, leaf.shape):
            odd = _odd(column[positions])
            if odd is not None:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                one, other = ([devices[positions[i]] for i in group] for group in odd)
                raise everywhere(
                    DivergenceError(
                        f"copies of parameter {name} differ after step {step}: {_named(one)} hold another than "
                        f"{_named(other)}; find out which computes wrongly or reads other data, leave it out, "
                        "delete the checkpoints since the last comparison and give the same command again"
                    )
                )


@functools.lru_cache(maxsize=8)
def _program(mesh: Mesh, specs: tuple[PartitionSpec, ...]):
    """Arrays -> the checksum of each device's part of each, uint32 [devices, leaves], on every process."""
    everyone = PartitionSpec(mesh.axis_names)

    def on_device(arrays):
        return jnp.stack([_checksum(array) for array in arrays])[None]

    sums = jax.shard_map(on_device, mesh=mesh, in_specs=(list(specs),), out_specs=everyone, check_vma=False)
    return jax.jit(sums, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _checksum(array: jax.Array) -> jax.Array:
    """uint32 [], of the bits in their places: the sum, modulo 2**32, of bits times odd numbers.

    With odd factors no single changed entry goes unseen, and entries that change places seldom do.
    """
    bits = jax.lax.bitcast_convert_type(array, UNSIGNED[array.dtype.itemsize]).reshape(-1)
    if bits.dtype.itemsize == 8:
        bits = bits ^ (bits >> 32)
    odd = 2 * jax.lax.iota(jnp.uint32, bits.size) + 1
    return jnp.sum(bits.astype(jnp.uint32) * odd, dtype=jnp.uint32)


def _copies(sharding: NamedSharding, shape: Sequence[int]) -> list[list[int]]:
    """Positions in the mesh of the devices that hold the same part, for each part that several hold."""
    where = sharding.devices_indices_map(tuple(shape))
    parts: dict[str, list[int]] = {}
    for position, device in enumerate(sharding.mesh.devices.flatten()):
        parts.setdefault(str(where[device]), []).append(position)
    return [positions for positions in parts.values() if len(positions) > 1]


def _odd(sums: np.ndarray) -> tuple[list[int], list[int]] | None:
    """Indices of sums that differ from the most frequent one (of the first in a tie), and of those that do not."""
    common = Counter(sums.tolist()).most_common(1)[0][0]
    differ = np.flatnonzero(sums != common).tolist()
    return (differ, np.flatnonzero(sums == common).tolist()) if differ else None


def _named(devices: Sequence[jax.Device]) -> str:
    """``devices 4, 5 of process 1 and 8 of process 2``."""
    by_process: dict[int, list[int]] = {}
    for device in devices:
        by_process.setdefault(device.process_index, []).append(device.id)
    return "devices " + " and ".join(
        f"{', '.join(map(str, ids))} of process {process}" for process, ids in by_process.items()
    )
