"""One of the processes of ``test_several_processes``: trains in each of some workdirs, to the end.

python -m tests.train.several_worker ADDRESS PROCESSES INDEX WORKDIR...
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

from configs import tiny
from rcjax.distributed import Place, one_run
from rcjax.model import LlamaConfig
from rcjax.train.loop import train
from tests.examples import VOCABULARY, random_examples

STEPS = 4
MODEL = LlamaConfig(
    vocab_size=VOCABULARY,
    vocab_multiple=64,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
)


def small_config():
    """Four steps over all eight devices; parameters lie on pairs of them, so that there are parts and copies."""
    config = tiny.get_config()
    config.mesh.update(data=4, fsdp=2)
    config.packing.update(row_length=192, rows_per_device=1, cuts=1)
    config.train.update(batch_size=16, steps=STEPS, log_every=1, compute_dtype="float32")
    config.checkpoint.update(every=2, keep=4)
    return config


def small_training(workdir: Path) -> dict[str, np.ndarray]:
    """Trains; gives the parameters by name."""
    run = train(small_config(), workdir, MODEL, [random_examples(0, 40)], [1])
    whole = jax.jit(lambda tree: tree, out_shardings=jax.sharding.NamedSharding(_mesh(run.params), jax.P()))
    leaves, _ = jax.tree_util.tree_flatten_with_path(whole(run.params))
    return {jax.tree_util.keystr(path): np.asarray(leaf.addressable_data(0)) for path, leaf in leaves}


def _mesh(params) -> jax.sharding.Mesh:
    return jax.tree.leaves(params)[0].sharding.mesh


def main() -> None:
    address, processes, index, *workdirs = sys.argv[1:]
    with one_run(Place(address, int(processes), int(index)), {}, timeout=60):
        for workdir in map(Path, workdirs):
            numbers = small_training(workdir)
            if index == "0":
                np.savez(workdir / "params.npz", **numbers)


if __name__ == "__main__":
    main()
