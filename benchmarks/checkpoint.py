"""What a checkpoint costs: how long the loop stands still for one, and how fast it is written and read, beside dd.

    python -m benchmarks.checkpoint [--config=smollm2_135m] [--rounds=3] [--directory=DIR]

The state is that of a training run: parameters and AdamW's moments in float32, laid out on all devices. `pause` is the
time that a save takes from the loop; the rest is written while steps go on. dd writes and reads as many bytes in the
same directory, by turns: writing ends with fsync; before anything is read its pages are dropped from
the cache where that is allowed (as root), for both alike. Bandwidth is that of writing and reading one after the other.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax

from benchmarks.harness import record
from rcjax.checkpoint import Checkpoints
from rcjax.hf.base_model import shape_fields
from rcjax.host_devices import one_device_per_core
from rcjax.host_memory import ask_for_huge_pages
from rcjax.model import LlamaConfig
from rcjax.sharding import make_mesh
from rcjax.train.program import make_program
from rcjax.train.state import abstract_state, init_state

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="smollm2_135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default=None, help="on the disk in question; default: a temporary one")
    flags = parser.parse_args()
    config = importlib.import_module(f"configs.{flags.config}").get_config()
    vocab_size = config.model.vocab_size or config.tokenizer.vocab_size
    model = LlamaConfig(**shape_fields(config.model), vocab_size=vocab_size)
    mesh = make_mesh({"data": -1})
    program = make_program(config, model, mesh, 1000)
    state = jax.block_until_ready(init_state(model, program.tx, program.shardings, 0))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    abstract = abstract_state(model, program.tx, program.shardings)
    pauses, ours, theirs = [], [], []
    with tempfile.TemporaryDirectory(dir=flags.directory) as directory:
        place = Path(directory)
        for number in range(1 + flags.rounds):
            theirs.append(dd(place / "dd", size))
            checkpoints = Checkpoints(place / "checkpoints", keep=1)
            start = time.perf_counter()
            checkpoints.save(1, state, {"iterator": {}})
            pauses.append(time.perf_counter() - start)
            checkpoints.save(1, state, {"iterator": {}}, last=True)
            os.sync()
            wrote = time.perf_counter() - start
            drop_caches()
            start = time.perf_counter()
            restored, _ = checkpoints.restore(abstract)
            jax.block_until_ready(restored)
            ours.append((wrote, time.perf_counter() - start))
            assert number or all(map(same, jax.tree.leaves(restored), jax.tree.leaves(state)))
            del restored
            checkpoints.close()
            shutil.rmtree(place / "checkpoints")
    rows = []
    for name, seconds in (("rcjax", ours), ("dd", theirs)):
        writes, reads = zip(*seconds[1:], strict=True)  # the first round warms up
        rows.append(
            {
                "what": name,
                "write MiB/s": size / MIB / statistics.median(writes),
                "read MiB/s": size / MIB / statistics.median(reads),
                "both": 2 * size / MIB / statistics.median(w + r for w, r in seconds[1:]),
                "pause s": statistics.median(pauses[1:]) if name == "rcjax" else None,
            }
        )
    rows[0]["ratio"] = rows[0]["both"] / rows[1]["both"]
    record("checkpoint", f"checkpoints of {size / MIB:,.0f} MiB", rows, **vars(flags))


def same(ours: jax.Array, theirs: jax.Array) -> bool:
    return bool((ours == theirs).all())


def dd(path: Path, size: int) -> tuple[float, float]:
    """Seconds for writing and reading ``size`` bytes, a MiB at a time."""
    count, quiet = -(-size // MIB), {"check": True, "stderr": subprocess.DEVNULL}
    start = time.perf_counter()
    subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={count}", "conv=fsync"], **quiet)
    wrote = time.perf_counter() - start
    drop_caches()
    start = time.perf_counter()
    subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M"], **quiet)
    read = time.perf_counter() - start
    path.unlink()
    return wrote, read


def drop_caches() -> None:
    """Where it may not, both are read from memory."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        print("pages stay in the cache: not root")


if __name__ == "__main__":
    one_device_per_core()
    ask_for_huge_pages()
    main()
