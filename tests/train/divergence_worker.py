"""One of the processes of ``test_divergence``: compares parameters of which process 1 holds another copy.

python -m tests.train.divergence_worker ADDRESS PROCESSES INDEX
"""

from __future__ import annotations

import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rcjax.distributed import Place, leads, one_run
from rcjax.sharding import make_mesh
from rcjax.train.divergence import check_copies


def main() -> None:
    address, processes, index = sys.argv[1:]
    with one_run(Place(address, int(processes), int(index)), {}, timeout=60):
        sharding = NamedSharding(make_mesh({"data": -1, "fsdp": 2}), PartitionSpec("fsdp"))
        for copy, step in ((0.0, 7), (0.0 if leads() else 1e-6, 8)):
            numbers = np.arange(1, 9, dtype=np.float32) + np.float32(copy)
            check_copies({"w": jax.make_array_from_callback((8,), sharding, lambda part, n=numbers: n[part])}, step)
            print(f"step {step} agrees")


if __name__ == "__main__":
    main()
