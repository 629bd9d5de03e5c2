"""Memory that training a config takes on each device of a TPU topology: the real compiler, no TPU.

    python -m benchmarks.memory_per_device configs/ds67b.py --topology=v5p:2x2x4 [--set packing.row_length=4096 ...]

Compiles the two programs of a training step ahead of time, `accumulate` (a microbatch's gradients added up) and
`update` (the optimizer), and prints what the compiler says that each takes, with what else lies in memory meanwhile.
Shape and vocabulary are those that the config file states; no checkpoint is read.

--attention=splash, the default, is the kernel that a run on a TPU takes; the column `kernels` counts its calls in the
compiled program.

--effort=fast, the default, compiles without most optimisations, in a fraction of the time; --effort=full is what a run
does.

Needs libtpu: pip install libtpu==0.0.42.1
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Before jax starts: it shall run on the CPU, and ask nobody what machine this is.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TPU_LOG_DIR", tempfile.gettempdir())
# It would complain at length that it finds no TPU; the topology decides for which chip it compiles.
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from rcjax.hf.base_model import shape_fields
from rcjax.hf.inspect import read_config_file
from rcjax.layout import mesh_of
from rcjax.model import LlamaConfig
from rcjax.packing import assemble
from rcjax.sharding import row_shards
from rcjax.train.program import make_program
from rcjax.train.state import abstract_state

GIB = 2**30
# GiB of a device that programs may use.
HBM = {"v5e": 15.75, "v6e": 31.25, "v5p": 95.0}
KERNEL = "tpu_custom_call"  # its target in the compiler's text
ROW = "{:<12}{:>11}{:>11}{:>8}{:>11}{:>9}{:>9}{:>10}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="config file, e.g. configs/ds67b.py")
    parser.add_argument("--topology", default="v5p:2x2x4", help="chip and grid, e.g. v5e:4x4, v6e:4x4, v5p:2x2x4")
    parser.add_argument("--attention", choices=("splash", "blocks"), default="splash")
    parser.add_argument("--effort", choices=("fast", "full"), default="fast")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="another value of a field")
    arguments = parser.parse_args()
    chip = arguments.topology.partition(":")[0]
    if chip not in HBM:
        sys.exit(f"--topology={arguments.topology}: the chip must be one of {', '.join(HBM)}")
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("libtpu is not installed, and it holds the TPU compiler: pip install libtpu==0.0.42.1")
    config = read_config_file(arguments.config)
    config.update_from_flattened_dict(dict(map(_setting, arguments.set)))
    if config.teacher.name == "frozen":
        sys.exit("config.teacher.name is 'frozen', and a second network is not counted here; use 'self' or 'ema'")
    if config.model.vocab_size is None:
        sys.exit(f"{arguments.config} does not state config.model.vocab_size; give it with --set model.vocab_size=N")
    if arguments.effort == "fast":
        jax.config.update("jax_optimization_level", "O0")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology).devices
    mesh = mesh_of(config, devices)
    model = LlamaConfig(
        **shape_fields(config.model), vocab_size=config.model.vocab_size, vocab_multiple=config.model.vocab_multiple
    )
    split = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    print(
        f"{arguments.config}: {model.num_params:,} parameters on {arguments.topology}, {len(devices)} devices ({split})"
    )
    print(
        f"rows of {config.packing.row_length:,} slots, {config.packing.rows_per_device} a device; compute in "
        f"{config.train.compute_dtype}, remat {config.train.remat}, attention {arguments.attention}; "
        f"compiled with --effort={arguments.effort}\n"
    )
    most = measure(config, model, mesh, arguments.attention)
    verdict = "fits" if most <= HBM[chip] else "DOES NOT FIT"
    print(f"\n{verdict}: {most:.2f} of {HBM[chip]:.2f} GiB")


def measure(config: ConfigDict, model: LlamaConfig, mesh: Mesh, attention: str) -> float:
    """Prints a line for each program; returns the most GiB that a device needs."""
    # scan_layers: what a TPU takes by itself; this process runs on the CPU.
    program = make_program(config, model, mesh, 1000, scan_layers=True, attention=attention)
    steps, state = program.steps, abstract_state(model, program.tx, program.shardings)
    shapes = jax.eval_shape(steps.zeros)
    sums = jax.tree.map(_place, shapes, steps.sums_shardings)
    empty = assemble(
        [],
        [],
        row_length=config.packing.row_length,
        rows_per_microbatch=config.packing.rows_per_device * row_shards(mesh),
        own_teacher=program.average is None,
    )
    microbatch = {
        name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype, sharding=steps.row_sharding)
        for name, array in empty.items()
    }
    print(ROW.format("GiB", "arguments", "temporary", "peak", "beside it", "in all", "kernels", "compile"))
    most = 0.0
    programs = {
        # The optimizer's state is no argument of it, but stays where it is.
        "accumulate": (steps.accumulate, (state.params, sums, microbatch, state.ema), state.opt_state),
        "update": (steps.update, (state, sums), ()),
    }
    for name, (program, inputs, beside) in programs.items():
        clock = time.perf_counter()
        with jax.set_mesh(mesh):
            compiled = program.lower(*inputs).compile()
        memory, kernels = compiled.memory_analysis(), compiled.as_text().count(f'custom_call_target="{KERNEL}"')
        seconds = time.perf_counter() - clock
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes  # the others lie where arguments did
        temporary = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
        figures = [memory.argument_size_in_bytes, temporary, memory.peak_memory_in_bytes, _device_bytes(beside)]
        in_all = (memory.argument_size_in_bytes + temporary + outputs + _device_bytes(beside)) / GIB
        cells = [f"{figure / GIB:.2f}" for figure in figures]
        print(ROW.format(name, *cells, f"{in_all:.2f}", kernels, f"{seconds:.0f} s"), flush=True)
        most = max(most, in_all)
    return most


def _place(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _device_bytes(tree: Any) -> int:
    """Bytes of one device's part of a tree of shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)


def _setting(text: str) -> tuple[str, Any]:
    """``"a.b=1"`` -> ("a.b", 1); what is no Python literal is a string."""
    field, equals, value = text.partition("=")
    if not equals:
        sys.exit(f"--set {text}: expected FIELD=VALUE")
    try:
        return field.removeprefix("config."), ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return field.removeprefix("config."), value


if __name__ == "__main__":
    main()
