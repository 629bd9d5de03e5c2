"""Mesh and logical axes: which mesh axis carries which dimension, as data.

A parameter or activation names its dimensions (``"embed"``, ``"heads"``, ``"batch"`` ...); ``RULES``
maps each name to mesh axes. Everything runs under ``jax.set_mesh`` with Auto axes, so the same code
serves one CPU and a pod.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("replica", "data", "fsdp", "tensor")

# Logical axis -> mesh axes that split it. Absent: replicated.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("replica", "data", "fsdp"),  # rows of a microbatch
    "embed": ("fsdp",),  # model width of parameters
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}


def make_mesh(shape: Mapping[str, int], devices=None) -> Mesh:
    """Mesh over all devices; one axis may be -1 and takes what is left.

    Args:
      shape: size by axis name, e.g. ``{"data": -1, "fsdp": 2}``; absent axes are 1.
      devices: defaults to ``jax.devices()``.

    Raises:
      ValueError: unknown axis, more than one -1, or sizes that do not multiply to the device count.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    unknown = set(shape) - set(MESH_AXES)
    if unknown:
        raise ValueError(f"config.mesh: unknown axis {sorted(unknown)[0]!r}; axes are {', '.join(MESH_AXES)}")
    sizes = {axis: int(shape.get(axis, 1)) for axis in MESH_AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"config.mesh: only one axis may be -1, got {', '.join(free)}")
    bad = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    if bad:
        raise ValueError(f"config.mesh.{bad[0]} is {sizes[bad[0]]}; expected a positive size or -1")
    fixed = 1
    for size in sizes.values():
        fixed *= size if size != -1 else 1
    if free:
        if count % fixed:
            raise ValueError(f"config.mesh: {count} devices can not be divided by the fixed axes' product {fixed}")
        sizes[free[0]] = count // fixed
    elif fixed != count:
        raise ValueError(f"config.mesh: sizes multiply to {fixed} but there are {count} devices; set one axis to -1")
    shape_tuple = tuple(sizes.values())
    return jax.make_mesh(shape_tuple, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


def row_shards(mesh: Mesh) -> int:
    """Over how many devices the rows of a microbatch are split."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def partition_spec(logical_axes: tuple[str | None, ...]) -> PartitionSpec:
    """PartitionSpec of a tensor whose dimensions carry these logical names (None: replicated)."""
    entries: list[str | tuple[str, ...] | None] = []
    used: set[str] = set()
    for name in logical_axes:
        axes = RULES.get(name, ()) if name else ()
        clash = used.intersection(axes)
        if clash:
            raise ValueError(f"logical axes {logical_axes} put mesh axis {sorted(clash)[0]!r} on two dimensions")
        used.update(axes)
        entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*entries)


def check_divides(mesh: Mesh, shape: tuple[int, ...], spec: PartitionSpec, name: str) -> None:
    """Refuses a mesh that does not divide a dimension, before anything is allocated."""
    for dimension, (size, axes) in enumerate(zip(shape, spec, strict=False)):
        if axes is None:
            continue
        axes = (axes,) if isinstance(axes, str) else axes
        parts = 1
        for axis in axes:
            parts *= mesh.shape[axis]
        if size % parts:
            raise ValueError(
                f"config.mesh: dimension {dimension} of {name} has size {size}, "
                f"which {'x'.join(axes)}={parts} does not divide"
            )


def named(mesh: Mesh, spec: PartitionSpec) -> NamedSharding:
    """Shorthand for ``NamedSharding(mesh, spec)``."""
    return NamedSharding(mesh, spec)


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every process holds whole, on the devices: each process lays down its own part of it."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """Asks the compiler to lay ``x`` out by its logical axes; does nothing outside of a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(logical_axes))


def on_each_device(function: Callable, in_axes: tuple, out_axes: tuple) -> Callable:
    """``function`` on each device's own parts of its arguments; outside of a mesh, or on one device, as it is.

    Args:
      function: of arrays, dictionaries of them, and Nones; to it the part of a device is all there is.
      in_axes: the logical axes of every argument, as ``partition_spec`` takes them; every device gets the whole of
        an argument with ``()``.
      out_axes: those of the result, or a tuple of those of several.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function
    several = any(isinstance(axes, tuple) for axes in out_axes)
    return jax.shard_map(
        function,
        in_specs=tuple(map(partition_spec, in_axes)),
        out_specs=tuple(map(partition_spec, out_axes)) if several else partition_spec(out_axes),
        check_vma=False,
    )
