"""Share of the machine's own matrix-product rate that training steps of the demo's size and of 135M parameters reach.

    python -m benchmarks.utilisation [--models=tiny,smollm2_135m] [--rounds=5]

Useful operations are those of rcjax/model/flops.py, padding and recomputation left out. The peak is a product of two
[1536, 1536] matrices on every device at once, measured between the steps: the best of them, since a machine that is
shared gives now one core's worth and now two, and a step that met the better moment would seem to reach more than
everything.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks.batches import our_step
from benchmarks.examples import published_shape
from benchmarks.harness import record
from rcjax.data.loader import StepBatch
from rcjax.hf.base_model import shape_fields
from rcjax.host_devices import one_device_per_core
from rcjax.host_memory import ask_for_huge_pages
from rcjax.model import LlamaConfig
from rcjax.model.flops import forward_flops, products
from rcjax.sharding import make_mesh, row_shards
from rcjax.train.loop import run_step
from rcjax.train.program import objective_of
from rcjax.train.state import init_state, make_optimizer, state_shardings
from rcjax.train.step import LossSettings, Steps, make_steps

# Examples as long as the demo's own, and of the published shape; all of them fit the rows whole.
SHAPES = {
    "tiny": dict(median=200, shortest=120, longest=380),
    "smollm2_135m": dict(median=500, shortest=300, longest=760),
}


class Trainer(NamedTuple):
    """What trains a config's model on one step of examples of its usual length."""

    model: LlamaConfig
    mesh: Mesh
    steps: Steps
    batch: StepBatch
    start: Callable  # () -> (state, sums)


def trainer(name: str, count: int) -> Trainer:
    """The trainer's own step of ``configs/NAME.py``, with ``count`` examples."""
    config = importlib.import_module(f"configs.{name}").get_config()
    vocab_size = config.model.vocab_size or config.tokenizer.vocab_size
    model = LlamaConfig(**shape_fields(config.model), vocab_size=vocab_size)
    mesh = make_mesh({"data": -1})
    tx, schedule = make_optimizer(config.optimizer, 1000)
    shardings = state_shardings(model, tx, mesh)
    settings = LossSettings(
        model=model, objective=objective_of(config.objective), chunk=config.objective.chunk, remat=config.train.remat
    )
    steps = make_steps(settings, tx, schedule, shardings, mesh)
    examples = published_shape(count, vocab_size=vocab_size, **SHAPES[name])
    batch = our_step(examples, "block", 5, 12, config.packing.row_length, row_shards(mesh), config.packing.cuts)
    return Trainer(model, mesh, steps, batch, lambda: (init_state(model, tx, shardings, 0), steps.zeros()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny,smollm2_135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=8)
    flags = parser.parse_args()
    work, operations = products(jnp.float32)
    work()
    rows = []
    for name in flags.models.split(","):
        made = trainer(name, flags.examples)
        useful = 3 * forward_flops(made.model, **dataclasses.asdict(made.batch.work))
        seconds, peaks = [], []
        with jax.set_mesh(made.mesh):
            state, sums = made.start()
        for number in range(1 + flags.rounds):
            start = time.perf_counter()
            with jax.set_mesh(made.mesh):
                state, sums, _ = run_step(made.steps, state, sums, made.batch)
                jax.block_until_ready((state, sums))
            middle = time.perf_counter()
            for _ in range(4):
                work()
            if number:
                seconds.append(middle - start)
                peaks.append(4 * operations / (time.perf_counter() - middle))
        rows.append(
            {
                "model": name,
                "seconds a step": statistics.median(seconds),
                "useful GFLOP/s": useful / statistics.median(seconds) / 1e9,
                "matmul GFLOP/s, median": statistics.median(peaks) / 1e9,
                "best": max(peaks) / 1e9,
                "utilisation": useful / statistics.median(seconds) / max(peaks),
                "row use": float(made.batch.metrics["row_use"]),
            }
        )
        del state, sums
    record("utilisation", "utilisation of a training step on this CPU, float32", rows, **vars(flags))


if __name__ == "__main__":
    one_device_per_core()  # as launch.py does
    ask_for_huge_pages()  # as launch.py does; peers have them too
    main()
