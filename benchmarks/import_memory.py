"""Peak host memory and speed of importing a checkpoint, against its peers, each in a fresh process of the same run.

    python benchmarks/import_memory.py [--gigabytes=2.2] [--dtype=float32] [--devices=4]

Writes a synthetic sharded bfloat16 checkpoint and reads it with ``rcjax.hf.load.load_params`` (all devices are this
host's, so that the shards themselves are host memory too), with ``load_model`` (numpy) and with transformers. "over
resident" is the peak less what was in use before and less the parameters themselves; the promise is that it stays
below the largest tensor and 1 GiB. Memory is what Linux counts (VmHWM), mapped pages of files included. The file is
in the page cache, so that seconds are those of reading memory and converting it. Without a conversion transformers
maps the file and reads nothing until it is used: its figures then say nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

GIB = 2**30
PEERS = ("load_params", "load_model", "transformers")


def memory(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS (now) or VmHWM (peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def model_config(gigabytes: float):
    """A model of TinyLlama's width and as many layers as make up the size in bfloat16."""
    from rcjax.model import LlamaConfig

    fields = dict(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_heads=32, num_kv_heads=4, head_dim=64)
    base, one = (LlamaConfig(num_layers=layers, **fields).num_params for layers in (1, 2))
    layers = max(1, math.ceil((gigabytes * 1e9 / 2 - base) / (one - base)) + 1)
    return LlamaConfig(num_layers=layers, **fields)


def write_checkpoint(directory: Path, gigabytes: float) -> tuple[int, int]:
    """A checkpoint of random finite numbers in shards of about 0.5 GB; returns its bytes and its largest tensor's."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from rcjax.hf.convert import tensor_specs

    config = model_config(gigabytes)
    (directory / "config.json").write_text(json.dumps({**config.to_hf(), "dtype": "bfloat16"}))
    rng = np.random.default_rng(0)
    shard, held, placed, largest, total = {}, 0, {}, 0, 0

    def flush():
        name = f"model-{len(set(placed.values())) + 1:05}.safetensors"
        save_file(shard, directory / name, metadata={"format": "pt"})
        placed.update(dict.fromkeys(shard, name))
        shard.clear()

    for spec in tensor_specs(config):
        bits = rng.integers(0, 2**16, spec.shape, dtype=np.uint16)
        shard[spec.name] = ((bits & 0x80FF) | 0x3C00).view(ml_dtypes.bfloat16)  # 0.008 to 0.03, either sign
        size = bits.nbytes
        largest, total, held = max(largest, size), total + size, held + size
        if held > 0.5e9:
            flush()
            held = 0
    if shard:
        flush()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return total, largest


def child(peer: str, directory: str, dtype: str) -> None:
    """Loads once and prints what it took as JSON."""
    if peer == "transformers":
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        kind = getattr(torch, dtype)

        def load():
            return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=kind)

        def size(model):
            return sum(parameter.nbytes for parameter in model.parameters())
    else:
        import jax
        import jax.numpy as jnp
        import optax

        from rcjax.hf.load import load_config, load_model, load_params
        from rcjax.sharding import make_mesh
        from rcjax.train.state import state_shardings

        config = load_config(directory)
        shardings = state_shardings(config, optax.identity(), make_mesh({"fsdp": -1})).params
        jnp.zeros(1).block_until_ready()

        def load():
            if peer == "load_model":
                return load_model(directory, dtype)[1]
            return load_params(directory, config, shardings, dtype)

        def size(params):
            return sum(leaf.nbytes for leaf in jax.tree.leaves(params))

    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    started = time.perf_counter()
    loaded = load()
    seconds = time.perf_counter() - started
    print(json.dumps(dict(seconds=seconds, resident=size(loaded), peak=memory("VmHWM") - before)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.2, help="of the checkpoint (default 2.2)")
    parser.add_argument("--dtype", default="float32", help="to load as (default float32)")
    parser.add_argument("--devices", type=int, default=4, help="virtual devices that share the parameters (default 4)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        child(*flags.child, flags.dtype)
        return
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={flags.devices}",
    }
    with tempfile.TemporaryDirectory() as directory:
        total, largest = write_checkpoint(Path(directory), flags.gigabytes)
        bound = largest + GIB
        print(f"checkpoint {total / GIB:.2f} GiB in bfloat16, largest tensor {largest / GIB:.3f} GiB, to {flags.dtype}")
        print(f"promise: over resident at most {bound / GIB:.2f} GiB; load average {os.getloadavg()[0]:.1f}\n")
        print(f"{'reader':<14}{'seconds':>9}{'GB/s':>7}{'resident':>10}{'peak':>8}{'over resident':>15}  GiB")
        for peer in PEERS:
            command = [sys.executable, __file__, f"--dtype={flags.dtype}", "--child", peer, directory]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                print(f"{peer:<14} failed: {done.stderr.strip().splitlines()[-1]}")
                continue
            took = json.loads(done.stdout.splitlines()[-1])
            over = took["peak"] - took["resident"]
            print(
                f"{peer:<14}{took['seconds']:>9.1f}{total / took['seconds'] / 1e9:>7.2f}"
                f"{took['resident'] / GIB:>10.2f}{took['peak'] / GIB:>8.2f}{over / GIB:>15.2f}  "
                f"{'within the promise' if over <= bound else 'beyond it'}"
            )


if __name__ == "__main__":
    main()
