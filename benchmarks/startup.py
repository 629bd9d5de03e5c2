"""How long one waits: `--help`, and compiling the demo's training step, at first and with the persistent cache.

    python -m benchmarks.startup [--rounds=3]

Every measurement is a fresh process. Compilation is that of the two programs of a step of configs/tiny.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def compile_step() -> None:
    """Prints the seconds that tracing, lowering and compiling the demo's step takes."""
    from rcjax.host_devices import one_device_per_core

    one_device_per_core()
    import jax
    import jax.numpy as jnp

    from configs import tiny
    from rcjax.hf.base_model import shape_fields
    from rcjax.layout import mesh_of
    from rcjax.model import LlamaConfig
    from rcjax.packing import PAIR_ARRAYS, SINGLE_ARRAYS, TOKEN_ARRAYS
    from rcjax.sharding import row_shards
    from rcjax.train.program import make_program
    from rcjax.train.state import abstract_state

    config = tiny.get_config()
    model = LlamaConfig(**shape_fields(config.model), vocab_size=config.tokenizer.vocab_size)
    mesh = mesh_of(config)
    program = make_program(config, model, mesh, 100)
    steps, state = program.steps, abstract_state(model, program.tx, program.shardings)
    length = config.packing.row_length
    count = row_shards(mesh)
    rows = {
        name: jax.ShapeDtypeStruct((count, length), dtype) for name, dtype in (TOKEN_ARRAYS | SINGLE_ARRAYS).items()
    }
    rows |= {name: jax.ShapeDtypeStruct((count, length // 2), dtype) for name, dtype in PAIR_ARRAYS.items()}
    jnp.zeros(()).block_until_ready()  # the backend is up
    with jax.set_mesh(mesh):
        sums = jax.eval_shape(steps.zeros)
        start = time.perf_counter()
        steps.accumulate.lower(state.params, sums, rows).compile()
        steps.update.lower(state, sums).compile()
    print(json.dumps({"seconds": time.perf_counter() - start}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.compile:
        compile_step()
        return
    from benchmarks.harness import record

    seconds: dict[str, list[float]] = {"--help": [], "compile, cold": [], "compile, cached": []}
    for _ in range(flags.rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, "launch.py", "--help"], cwd=ROOT, capture_output=True)
        seconds["--help"].append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
            for name in ("compile, cold", "compile, cached"):
                command = [sys.executable, "-m", "benchmarks.startup", "--compile"]
                done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
                seconds[name].append(json.loads(done.stdout.splitlines()[-1])["seconds"])
    rows = [{"": name, "seconds": statistics.median(values)} for name, values in seconds.items()]
    record("startup", "seconds that one waits, medians", rows, rounds=flags.rounds)


if __name__ == "__main__":
    main()
