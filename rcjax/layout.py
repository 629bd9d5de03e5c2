"""How a run lies on its devices: which mesh, and by which rules parameters, gradients, optimizer and teacher lie.

``config.sharding.preset`` names a whole layout. What ``config.mesh`` and the other fields of ``config.sharding`` give
wins over it, whether a config file or the command line gives it, field by field; docs/sharding.md tells how to choose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rcjax.sharding import LOGICAL_AXES, MESH_AXES, RULES, Rules, count_slices, make_mesh

SLICES = "slices"  # of an axis in a preset: as many as there are slices

_TENSOR = {axis: RULES[axis] for axis in ("vocab", "heads", "kv_heads", "mlp")}

# Rules by name. All split over `tensor` what the products of a layer split over it.
RULE_SETS: dict[str, Rules] = {
    "replicated": {},  # whole on every device
    "tensor": _TENSOR,  # whole on all devices that work different rows
    "fsdp": {**_TENSOR, "embed": RULES["embed"]},  # split over fsdp: gathered for each layer, where it is computed
    "zero": {**_TENSOR, "any": ("fsdp", "data", "replica")},  # split over all devices that work different rows
}

# Of a preset: `fill`, the axis that takes what devices are left, the second one where the first is given; `mesh`, the
# axes that are not 1; and the rules. Without a preset every device keeps everything, unless the mesh says otherwise.
PRESETS: dict[str, dict[str, Any]] = {
    "": dict(
        fill=("data",),
        mesh={},
        rules=dict(params="fsdp", gradients="fsdp", optimizer="fsdp", ema="fsdp", teacher="fsdp"),
    ),
    # A moving average that teaches is read for every microbatch, so it lies as the parameters do.
    "zero1": dict(
        fill=("data",),
        mesh={},
        rules=dict(params="tensor", gradients="tensor", optimizer="zero", ema="tensor", teacher="tensor"),
    ),
    "zero2": dict(
        fill=("data",),
        mesh={},
        rules=dict(params="tensor", gradients="zero", optimizer="zero", ema="tensor", teacher="tensor"),
    ),
    "fsdp": dict(
        fill=("fsdp", "data"),
        mesh={},
        rules=dict(params="fsdp", gradients="fsdp", optimizer="fsdp", ema="fsdp", teacher="fsdp"),
    ),
    "fsdp+tensor": dict(
        fill=("fsdp", "data"),
        mesh={"tensor": 2},
        rules=dict(params="fsdp", gradients="fsdp", optimizer="fsdp", ema="fsdp", teacher="fsdp"),
    ),
    "hybrid": dict(
        fill=("fsdp", "data"),
        mesh={"replica": SLICES},
        rules=dict(params="fsdp", gradients="fsdp", optimizer="fsdp", ema="fsdp", teacher="fsdp"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The rules of each part of a training.

    Attributes:
      params: the parameters that are trained.
      gradients: their gradients, which microbatches add up; along `replica` and `data`, where these rules do not split
        them, each group of devices keeps the sums of its own rows until the update (``rcjax.train.step``).
      optimizer: moments and whatever else the optimizer keeps for each parameter.
      ema: the moving average of the parameters.
      teacher: the parameters of another network that teaches.
    """

    params: Rules
    gradients: Rules
    optimizer: Rules
    ema: Rules
    teacher: Rules


def layout_of(config: ConfigDict) -> Layout:
    """The rules that ``config.sharding`` describes.

    Raises:
      ValueError: an unknown preset, set of rules, logical axis or mesh axis.
    """
    given = _sharding(config)
    rules = _preset(config)["rules"]
    names = [field.name for field in dataclasses.fields(Layout)]
    return Layout(**{name: _rules(rules[name] if given.get(name) is None else given[name], name) for name in names})


def mesh_of(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that ``config.mesh`` and ``config.sharding.preset`` describe, over ``devices`` or all there are.

    Raises:
      ValueError: an unknown preset, or ``sharding.make_mesh`` refuses.
    """
    devices = jax.devices() if devices is None else devices
    return make_mesh(mesh_shape(config, count_slices(devices)), devices)


def mesh_shape(config: ConfigDict, slices: int = 1) -> dict[str, int]:
    """Size by axis, one of them perhaps -1: what ``config.mesh`` gives, and the preset's where it gives nothing."""
    given = {axis: size for axis, size in config.mesh.items() if size is not None}
    preset = _preset(config)
    shape = {axis: slices if size == SLICES else size for axis, size in preset["mesh"].items()} | given
    free = [axis for axis in preset["fill"] if axis not in given]
    if -1 not in shape.values() and free:
        shape[free[0]] = -1
    return dict.fromkeys(MESH_AXES, 1) | shape


def _sharding(config: ConfigDict) -> Mapping[str, Any]:
    return config.get("sharding") or {}  # a workdir of an older version has none


def _preset(config: ConfigDict) -> dict[str, Any]:
    name = _sharding(config).get("preset") or ""
    if name not in PRESETS:
        known = ", ".join(preset for preset in PRESETS if preset)
        raise ValueError(f"config.sharding.preset is {name!r}; expected one of {known}, or nothing")
    return PRESETS[name]


def _rules(given: str | Mapping[str, str | Sequence[str]], field: str) -> Rules:
    """A set of rules by its name, or the user's own."""
    if isinstance(given, str):
        if given not in RULE_SETS:
            raise ValueError(
                f"config.sharding.{field} is {given!r}; expected one of {', '.join(RULE_SETS)}, or rules of one's own"
            )
        return RULE_SETS[given]
    if not isinstance(given, Mapping | ConfigDict):
        raise ValueError(f"config.sharding.{field} is {given!r}; expected a name, or rules such as {{'embed': 'fsdp'}}")
    rules = {name: (axes,) if isinstance(axes, str) else tuple(axes or ()) for name, axes in given.items()}
    for name, axes in rules.items():
        if name not in LOGICAL_AXES:
            raise ValueError(
                f"config.sharding.{field}: unknown logical axis {name!r}; there are {', '.join(LOGICAL_AXES)}"
            )
        for axis in axes:
            if axis not in MESH_AXES:
                raise ValueError(
                    f"config.sharding.{field}: {name} is split over unknown axis {axis!r}; "
                    f"axes are {', '.join(MESH_AXES)}"
                )
    return rules
