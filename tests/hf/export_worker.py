"""One of the processes of ``test_export_multiprocess``: exports models that lie on the devices of all of them.

    python -m tests.hf.export_worker ADDRESS PROCESSES INDEX TOKENIZER JOB...

A job is a JSON object: ``directory`` and other arguments of ``export``, ``mesh``, and ``file_limit``, the most bytes
that process 0 may write into one file from then on, as if the disk were full. A job that fails prints its sentence; the
exit code is that of the last one.
"""

from __future__ import annotations

import json
import resource
import sys

import jax
import numpy as np

from rcjax.hf.export import ExportError, export, export_steps
from rcjax.hf.tokenizer import load_tokenizer
from rcjax.model import LlamaConfig, abstract_params
from rcjax.sharding import make_mesh
from rcjax.train.state import state_shardings


def small_model(tokenizer, **changes) -> tuple[LlamaConfig, dict]:
    """A model whose table is padded, and numpy parameters, the padding's not zero."""
    fields = dict(hidden_size=32, intermediate_size=64, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=12)
    special = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    config = LlamaConfig(vocab_size=len(tokenizer), vocab_multiple=128, **{**fields, **special, **changes})
    rng = np.random.default_rng(0)
    return config, jax.tree.map(
        lambda leaf: rng.normal(0.5, 0.3, leaf.shape).astype(np.float32), abstract_params(config)
    )


def laid_out(config: LlamaConfig, params: dict, shape: dict[str, int]) -> dict:
    """The parameters on a mesh over all devices of all processes."""
    import optax

    shardings = state_shardings(config, optax.identity(), make_mesh(shape)).params
    return jax.tree.map(
        lambda leaf, sharding: jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index]),
        params,
        shardings,
    )


def main() -> int:
    address, processes, index, tokenizer_path, *jobs = sys.argv[1:]
    jax.distributed.initialize(address, int(processes), int(index))
    tokenizer = load_tokenizer(tokenizer_path)
    config, numbers = small_model(tokenizer)
    for job in map(json.loads, jobs):
        limit = job.pop("file_limit", None)
        if limit and index == "0":
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        params, ticks = laid_out(config, numbers, job.pop("mesh")), []
        try:
            report = export(config, params, tokenizer, job.pop("directory"), on_advance=ticks.append, **job)
        except ExportError as error:
            print(f"error: {error}")
            code = 1
        else:
            assert sum(ticks) == export_steps(config)
            print(f"logit_difference={report.logit_difference}")
            code = 0
    return code


if __name__ == "__main__":
    sys.exit(main())
