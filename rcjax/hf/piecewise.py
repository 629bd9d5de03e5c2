"""Sharded arrays that are filled piece by piece: the host never holds more of one than a piece."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# Of one array, what lies in host memory at a time for all devices of this process; several times that while one piece
# is read and converted and the one before is on its way. Small enough that its memory is used again, not asked for.
PIECE_BYTES = 32 * 2**20

Range = tuple[int, int]  # [start, stop)
Index = tuple[Range, ...]  # a range for each dimension


def sharded_array(
    shape: Sequence[int],
    dtype: np.dtype,
    sharding: NamedSharding,
    read: Callable[[Index], np.ndarray],
    *,
    rows: Sequence[int],
    on_piece: Callable[[float], None] = lambda share: None,
) -> jax.Array:
    """An array born where it lives, every process reading only what its devices hold, and that once.

    Each device's shard is cut into pieces. Of each piece this process reads the parts of its devices, and writes them
    into the array in place.

    Args:
      read: gives the part of the whole array at an index, as ``dtype``.
      rows: dimensions that are rows of what is read from, the slowest first. Pieces are cut along them where that
        suffices, since rows lie together there.
      on_piece: called behind each piece with the share of the array that is done.
    """
    shape, dtype = tuple(shape), np.dtype(dtype)
    local = sharding.shard_shape(shape)
    devices = {
        device: tuple(part.indices(size)[0] for part, size in zip(index, shape, strict=True))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    }
    order = (*rows, *(axis for axis in range(len(shape)) if axis not in rows))
    pieces = list(_boxes(local, order, max(1, PIECE_BYTES // (dtype.itemsize * len(devices)))))
    array = _zeros(shape, dtype, sharding)
    for number, piece in enumerate(pieces):
        wanted = {device: _moved(piece, start) for device, start in devices.items()}
        parts = _read_once(set(wanted.values()), read, rows)
        cut = tuple(
            (stop - start) * (size // part) for (start, stop), size, part in zip(piece, shape, local, strict=True)
        )
        new = jax.make_array_from_single_device_arrays(
            cut, sharding, [jax.device_put(parts[index], device) for device, index in wanted.items()]
        )
        del parts
        array.block_until_ready()  # so that no more than two pieces are under way
        array = _writer(sharding)(array, new, np.asarray([start for start, _ in piece], np.int32))
        on_piece((number + 1) / len(pieces))
    return array.block_until_ready()


def _boxes(shape: tuple[int, ...], order: Sequence[int], limit: int) -> Iterator[Index]:
    """Cuts a shape into boxes of at most ``limit`` entries, along the first axes of ``order`` that suffice."""
    steps = list(shape)
    for position, axis in enumerate(order):
        behind = math.prod(shape[other] for other in order[position + 1 :])
        steps[axis] = max(1, min(shape[axis], limit // max(1, behind)))
        if behind <= limit:
            break
    starts = [range(0, size, step) if size else range(1) for size, step in zip(shape, steps, strict=True)]
    ordered = itertools.product(*(starts[axis] for axis in order))
    for corner in ordered:
        at = dict(zip(order, corner, strict=True))
        yield tuple((at[axis], min(at[axis] + steps[axis], size)) for axis, size in enumerate(shape))


def _moved(piece: Index, start: Sequence[int]) -> Index:
    return tuple((first + offset, last + offset) for (first, last), offset in zip(piece, start, strict=True))


def _read_once(wanted: set[Index], read: Callable[[Index], np.ndarray], rows: Sequence[int]) -> dict[Index, np.ndarray]:
    """The part at each index; parts that lie side by side in the same rows are read as one.

    Splitting by columns would otherwise turn one long read into a short one for every row and device.
    """
    groups: dict[tuple[Range, ...], list[Index]] = {}
    for index in wanted:
        groups.setdefault(tuple(index[axis] for axis in rows), []).append(index)
    parts = {}
    for members in groups.values():
        hull = tuple(
            (min(first for first, _ in axis), max(last for _, last in axis)) for axis in zip(*members, strict=True)
        )
        if len(members) == 1 or _size(hull) != sum(map(_size, members)):
            parts.update({index: read(index) for index in members})
            continue
        whole = read(hull)
        for index in members:
            inside = tuple(
                slice(first - start, last - start) for (first, last), (start, _) in zip(index, hull, strict=True)
            )
            parts[index] = whole[inside]
    return parts


def _size(index: Index) -> int:
    return math.prod(last - first for first, last in index)


@functools.lru_cache(maxsize=64)
def _zeros_program(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding) -> Callable[[], jax.Array]:
    return jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=sharding)


def _zeros(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding) -> jax.Array:
    return _zeros_program(shape, dtype, sharding)()


@functools.lru_cache(maxsize=64)
def _writer(sharding: NamedSharding) -> Callable[[jax.Array, jax.Array, np.ndarray], jax.Array]:
    """(array, piece of every shard, where in the shard) -> the array, written in place: each device for itself."""

    def write(array, piece, start):
        return jax.lax.dynamic_update_slice(array, piece, tuple(start))

    spec = sharding.spec
    program = jax.shard_map(
        write, mesh=sharding.mesh, in_specs=(spec, spec, PartitionSpec()), out_specs=spec, check_vma=False
    )
    return jax.jit(program, donate_argnums=0)
