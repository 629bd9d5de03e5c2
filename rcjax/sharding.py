"""Mesh and logical axes: which mesh axis carries which dimension, as data.

A parameter or activation names its dimensions (``"embed"``, ``"heads"``, ``"batch"`` ...); rules map each name to mesh
axes. ``RULES`` are those that programs compute by; where parameters, gradients and optimizer lie between two programs
may follow others (``rcjax.layout``). Everything runs under ``jax.set_mesh`` with Auto axes, so the same code serves one
CPU and a pod.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("replica", "data", "fsdp", "tensor")
ANY = "any"  # in rules: whichever dimension these mesh axes divide, see ``tensor_spec``
LAYERS = "layers"  # the dimension that a scan walks along

Rules = Mapping[str, tuple[str, ...]]
Fits = Callable[[dict[str, int]], bool]  # of the sizes of a mesh's axes

# Logical axis -> mesh axes that split it. Absent: replicated.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("replica", "data", "fsdp"),  # rows of a microbatch
    "groups": ("replica", "data"),  # rows, of all devices of a group over fsdp together
    "embed": ("fsdp",),  # model width of parameters
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    # Where the output projection's gradient is added up over rows: what its parts are put together over last comes
    # first, so that of the slow networks' axes only small parts are exchanged.
    "scattered": ("fsdp", "data", "replica"),
}
LOGICAL_AXES = (LAYERS, "embed", "vocab", "heads", "kv_heads", "mlp", ANY)  # that rules for parameters may name


# ---- the mesh


def make_mesh(shape: Mapping[str, int | None], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh over all devices; one axis may be -1 and takes what is left.

    Where the devices are of several slices (pods that a slow network connects), ``replica`` lies over slices, or
    ``data`` as far as ``replica`` does not, so that no other axis talks over that network.

    Args:
      shape: size by axis name, e.g. ``{"data": -1, "fsdp": 2}``; axes that are absent or None are 1.
      devices: defaults to ``jax.devices()``.

    Raises:
      ValueError: unknown axis, more than one -1, sizes that do not multiply to the device count, or that can not be
        laid over slices; the sentence names the nearest meshes that do.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = count_slices(devices)
    sizes = mesh_sizes(shape, len(devices), _lies_over_slices(devices))
    between = over_slices(sizes, slices)
    if between is None and not _lies_over_slices(devices)(sizes):
        nearest = nearest_meshes(sizes, len(devices), _lies_over_slices(devices))
        raise ValueError(
            f"config.mesh: replica={sizes['replica']} data={sizes['data']} do not lie over {slices} slices of "
            f"{len(devices) // slices} devices, and no other axis may (config.sharding.preset=hybrid lays replica so); "
            f"{nearest}"
        )
    if slices == 1 or between is None:
        grid = _grid(mesh_utils.create_device_mesh, tuple(sizes.values()), devices)
    else:
        within = tuple(size // between[axis] for axis, size in sizes.items())
        grid = _grid(mesh_utils.create_hybrid_device_mesh, within, tuple(between.values()), devices)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def mesh_sizes(shape: Mapping[str, int | None], count: int, fits: Fits = lambda sizes: True) -> dict[str, int]:
    """Every axis of a mesh over ``count`` devices, as ``make_mesh`` takes and refuses them.

    Args:
      fits: which meshes may be named as near ones.
    """
    unknown = set(shape) - set(MESH_AXES)
    if unknown:
        raise ValueError(f"config.mesh: unknown axis {sorted(unknown)[0]!r}; axes are {', '.join(MESH_AXES)}")
    given = {axis: shape.get(axis) for axis in MESH_AXES}
    sizes = {axis: 1 if size is None else int(size) for axis, size in given.items()}
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"config.mesh: only one axis may be -1, got {', '.join(free)}")
    bad = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    if bad:
        raise ValueError(f"config.mesh.{bad[0]} is {sizes[bad[0]]}; expected a positive size or -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    wanted = sizes | {axis: max(1, count // fixed) for axis in free}
    if math.prod(wanted.values()) != count:
        words = " ".join(f"{axis}={sizes[axis]}" for axis in MESH_AXES if sizes[axis] not in (1, -1))
        wrong = "which does not divide" if free else "but there are"
        mend = "" if free else ", or set one axis to -1"
        raise ValueError(
            f"config.mesh: {words or 'all axes are 1, which'} makes {fixed}, {wrong} {count} devices; "
            f"{nearest_meshes(wanted, count, fits)}{mend}"
        )
    return wanted


def count_slices(devices: Iterable[jax.Device]) -> int:
    """Over how many slices devices lie; 1 where the backend knows of none."""
    return len({getattr(device, "slice_index", None) for device in devices})


def over_slices(sizes: Mapping[str, int], slices: int) -> dict[str, int] | None:
    """How much of each axis lies over slices, ``replica`` first, then ``data``; None: they can not hold them all."""
    replica = math.gcd(sizes["replica"], slices)
    data = math.gcd(sizes["data"], slices // replica)
    if replica * data != slices:
        return None
    return {"replica": replica, "data": data, "fsdp": 1, "tensor": 1}


def _lies_over_slices(devices: Sequence[jax.Device]) -> Fits:
    """Which meshes may be laid over slices; any where there is one, or on GPUs, whose hosts any axis may span."""
    slices = count_slices(devices) if devices[0].platform == "tpu" else 1
    return lambda sizes: over_slices(sizes, slices) is not None


def _grid(make: Callable, *arguments) -> np.ndarray:
    """Devices in the order in which the axes' neighbours are near each other."""
    try:
        return make(*arguments)
    except NotImplementedError:  # no axis of the torus is as long as one of the mesh: then a part of one
        return make(*arguments, allow_split_physical_axes=True)


def nearest_meshes(wanted: Mapping[str, int], count: int, fits: Fits, most: int = 3) -> str:
    """The meshes of ``count`` devices that fit and that have most in common with the wanted one, in words."""

    def distance(sizes: dict[str, int]) -> tuple:
        steps = {axis: abs(math.log2(sizes[axis] / wanted[axis])) for axis in MESH_AXES}
        # Devices move rather between other axes than to or from replica, which is there for a slow network.
        return round(sum(steps.values()) + steps["replica"], 6), [-sizes[axis] for axis in ("fsdp", "data", "tensor")]

    found = sorted(filter(fits, _all_sizes(count)), key=distance)[:most]
    if not found:
        return f"no mesh of {count} devices does"
    words = [
        " ".join(f"{axis}={size}" for axis, size in sizes.items() if max(size, wanted[axis]) > 1) for sizes in found
    ]
    return "nearest meshes that do: " + ", ".join(word or "all axes 1" for word in words)


def _all_sizes(count: int) -> list[dict[str, int]]:
    """Every way to write ``count`` as a product of the axes."""
    ways: list[tuple[int, ...]] = [()]
    for _ in MESH_AXES[1:]:
        rests = [(way, count // math.prod(way)) for way in ways]
        ways = [(*way, size) for way, rest in rests for size in range(1, rest + 1) if rest % size == 0]
    return [dict(zip(MESH_AXES, (*way, count // math.prod(way)), strict=True)) for way in ways]


def row_shards(mesh: Mesh) -> int:
    """Over how many devices the rows of a microbatch are split."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


# ---- where a tensor lies


class Placed(NamedTuple):
    """A tensor that is to lie by rules.

    Attributes:
      name: for messages.
      shape: of the whole tensor.
      logical_axes: names of its dimensions, None for one that is never split.
      rules: mesh axes by name.
    """

    name: str
    shape: tuple[int, ...]
    logical_axes: tuple[str | None, ...]
    rules: Rules


def partition_spec(logical_axes: tuple[str | None, ...], rules: Rules = RULES) -> PartitionSpec:
    """PartitionSpec of a tensor whose dimensions carry these logical names (None: replicated)."""
    entries: list[str | tuple[str, ...] | None] = []
    used: dict[str, str] = {}
    for name in logical_axes:
        axes = rules.get(name, ()) if name else ()
        for axis in axes:
            if axis in used:
                raise ValueError(
                    f"sharding rules put mesh axis {axis!r} on two dimensions of one tensor, {used[axis]!r} and "
                    f"{name!r}; split one of them over another axis"
                )
            used[axis] = str(name)
        entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*entries)


def tensor_spec(mesh: Mesh | AbstractMesh, tensor: Placed) -> PartitionSpec:
    """``partition_spec``, and the rule ``any``, which needs sizes.

    Its mesh axes, as far as no other rule has used them for this tensor, together split the longest dimension that is
    free and that they divide, the first one of equally long ones; the stacked layers are not among them. Where they
    divide none, the last of them is left out, and so on; what none divides, mostly biases, stays whole.
    """
    spec = partition_spec(tensor.logical_axes, tensor.rules)
    used = {axis for entry in spec for axis in ((entry,) if isinstance(entry, str) else entry or ())}
    spread = [axis for axis in tensor.rules.get(ANY, ()) if axis not in used and mesh.shape[axis] > 1]
    free = [
        number
        for number, (name, entry) in enumerate(zip(tensor.logical_axes, spec, strict=True))
        if entry is None and name != LAYERS
    ]
    for count in range(len(spread), 0, -1):
        axes = tuple(spread[:count])
        parts = math.prod(mesh.shape[axis] for axis in axes)
        divided = [number for number in free if tensor.shape[number] % parts == 0]
        if divided:
            longest = max(divided, key=lambda number: tensor.shape[number])
            entries = list(spec)
            entries[longest] = axes if len(axes) > 1 else axes[0]
            return PartitionSpec(*entries)
    return spec


def check_divides(mesh: Mesh | AbstractMesh, tensors: Sequence[Placed]) -> None:
    """Refuses a mesh that does not divide a dimension, before anything is allocated.

    Raises:
      ValueError: names the tensor, the dimension, its size, the axes, and the nearest meshes that divide all tensors.
    """
    lies = _lies_over_slices(list(mesh.devices.flat)) if isinstance(mesh, Mesh) else lambda sizes: True

    def fits(sizes: Mapping[str, int]) -> bool:
        return lies(sizes) and all(_undivided(sizes, tensor) is None for tensor in tensors)

    for tensor in tensors:
        number = _undivided(mesh.shape, tensor)
        if number is None:
            continue
        name = tensor.logical_axes[number]
        axes = tensor.rules[name]
        parts = math.prod(mesh.shape[axis] for axis in axes)
        raise ValueError(
            f"config.mesh: dimension {number} ({name}) of {tensor.name} has size {tensor.shape[number]}, "
            f"which {'*'.join(axes)}={parts} does not divide; {nearest_meshes(mesh.shape, mesh.size, fits)}"
        )


def _undivided(sizes: Mapping[str, int], tensor: Placed) -> int | None:
    """The first dimension that a mesh of these sizes does not divide."""
    for number, (size, name) in enumerate(zip(tensor.shape, tensor.logical_axes, strict=True)):
        if name is not None and size % math.prod(sizes[axis] for axis in tensor.rules.get(name, ())):
            return number
    return None


def named(mesh: Mesh, spec: PartitionSpec) -> NamedSharding:
    """Shorthand for ``NamedSharding(mesh, spec)``."""
    return NamedSharding(mesh, spec)


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every process holds whole, on the devices: each process lays down its own part of it."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


# ---- inside of programs


def rules_here() -> Rules:
    """``RULES`` without the mesh axes that split nothing here, since each place along them is on its own.

    Those are the axes of ``apart`` inside of it, and all axes inside of ``on_each_device``.
    """
    own = jax.sharding.get_abstract_mesh().manual_axes
    return {name: tuple(axis for axis in axes if axis not in own) for name, axes in RULES.items()}


def devices_here() -> int:
    """How many devices work together here on what one program sees as whole arrays."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(size for axis, size in mesh.shape.items() if axis not in mesh.manual_axes)


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """Asks the compiler to lay ``x`` out by its logical axes; does nothing where one device works alone."""
    if devices_here() == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(logical_axes, rules_here()))


def parts_of(logical_axis: str) -> int:
    """In how many parts a dimension of this name is computed here."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in rules_here()[logical_axis])


def on_each_device(function: Callable, in_axes: tuple, out_axes: tuple) -> Callable:
    """``function`` on each device's own parts of its arguments; where one device works alone, as it is.

    Args:
      function: of arrays, dictionaries of them, and Nones; to it the part of a device is all there is.
      in_axes: the logical axes of every argument, as ``partition_spec`` takes them; every device gets the whole of
        an argument with ``()``.
      out_axes: those of the result, or a tuple of those of several.
    """
    if devices_here() == 1:
        return function
    rules = rules_here()
    several = any(isinstance(axes, tuple) for axes in out_axes)
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(
        function,
        in_specs=tuple(partition_spec(axes, rules) for axes in in_axes),
        out_specs=tuple(partition_spec(axes, rules) for axes in out_axes)
        if several
        else partition_spec(out_axes, rules),
        axis_names=set(mesh.axis_names) - set(mesh.manual_axes),
        check_vma=False,
    )


def apart(function: Callable, axes: tuple[str, ...], in_split: tuple[bool, ...]) -> Callable:
    """``function`` in each group of devices along mesh axes by itself: nothing in it crosses from group to group.

    Args:
      axes: groups differ in their places along these; the other axes split arrays inside of a group as ever.
      in_split: of each argument, whether a group gets its part of the first dimension, or else the whole. The first
        dimension of every result is put together from the groups' parts.
    """
    mesh = jax.sharding.get_abstract_mesh()
    split = PartitionSpec(axes)
    return jax.shard_map(
        function,
        in_specs=tuple(split if given else PartitionSpec() for given in in_split),
        out_specs=split,
        # Axes that split nothing go along: with none left a group is one device, and its program that of one device.
        axis_names={axis for axis, size in mesh.shape.items() if axis in axes or size == 1},
        check_vma=False,
    )
