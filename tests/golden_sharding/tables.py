"""Where every tensor lies under every preset, and what crosses devices, as tables that a change shows in."""

from __future__ import annotations

import jax
import optax
from jax.sharding import AbstractMesh, NamedSharding

from rcjax.hf.base_model import shape_fields
from rcjax.hf.inspect import shipped_configs
from rcjax.layout import PRESETS, mesh_shape
from rcjax.model import LlamaConfig
from rcjax.sharding import MESH_AXES, mesh_sizes
from rcjax.train.program import make_program
from rcjax.train.state import tensors_of
from tests.conftest import ROOT
from tests.layouts import CASES, DEVICES, collectives, run_of

DIRECTORY = ROOT / "tests" / "golden_sharding"
CONFIGS = shipped_configs(ROOT / "configs")
MANY = 64  # devices that the tables are for; two slices where the preset knows of slices
COMMAND = "python -m tests.golden_sharding --write"
MADE = f"made by {COMMAND}"


def tables() -> dict[str, str]:
    """Every table by the name of its file."""
    return {f"{name}.txt": specs(name) for name in CONFIGS} | {"collectives.txt": counts()}


def specs(name: str) -> str:
    """The PartitionSpecs of a config of ``configs/`` under every preset; no device is needed for them."""
    lines = [f"configs/{name}.py on {MANY} devices, mesh axes of size 1 left out; {MADE}"]
    for preset in PRESETS:
        config = CONFIGS[name].copy_and_resolve_references()
        config.sharding.preset = preset
        config.teacher.name = "ema"  # so that there is one
        sizes = mesh_sizes(mesh_shape(config, slices=2), MANY)
        words = " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
        lines += ["", f"preset {preset or 'none'}: {words}"]
        model = LlamaConfig(
            **shape_fields(config.model),
            vocab_size=config.model.vocab_size or config.tokenizer.vocab_size,
            vocab_multiple=config.model.vocab_multiple,
        )
        mesh = AbstractMesh(tuple(sizes.values()), MESH_AXES)
        try:
            program = make_program(config, model, mesh, 100)
        except ValueError as refusal:
            lines.append(str(refusal))
            continue
        state = program.shardings
        parts = {
            "params": state.params,
            "gradients": program.steps.sums_shardings["grads"],
            "moments": optax.tree_utils.tree_get(state.opt_state, "mu"),
            "ema": state.ema,
        }
        lines.append(_row("tensor", "shape", *parts))
        columns = zip(*(jax.tree.leaves(part) for part in parts.values()), strict=True)
        for tensor, places in zip(tensors_of(model, {}), columns, strict=True):
            lines.append(_row(tensor.name, "x".join(map(str, tensor.shape)), *map(_words, places)))
    return "\n".join(lines) + "\n"


def counts() -> str:
    """How often each kind of exchange stands in the programs of small models of two layers, under the presets."""
    lines = [f"jax {jax.__version__}, {DEVICES} CPU devices, layers scanned (a loop's body counts once); {MADE}"]
    for kind, preset in CASES:
        run = run_of(kind, preset)
        words = " ".join(f"{axis}={size}" for axis, size in run.program.mesh.shape.items() if size > 1)
        lines += ["", f"{kind}, preset {preset or 'none'}: {words}"]
        for name, text in run.texts.items():
            found = sorted(collectives(text).items())
            lines.append(f"  {name}: " + (", ".join(f"{count} {word}" for word, count in found) or "nothing"))
    return "\n".join(lines) + "\n"


def _words(place: NamedSharding) -> str:
    """The mesh axes of each dimension, ``-`` where it is not split."""
    entries = [(entry,) if isinstance(entry, str) else entry or () for entry in place.spec]
    split = ["*".join(axis for axis in entry if place.mesh.shape[axis] > 1) for entry in entries]
    return ",".join(axes or "-" for axes in split) if any(split) else "whole"


def _row(name: str, shape: str, *places: str) -> str:
    return f"{name:<32} {shape:<18} " + " ".join(f"{place:<24}" for place in places).rstrip()
