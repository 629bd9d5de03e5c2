"""Peak host memory and speed of exporting a model, against its peers, each in a fresh process of the same run.

    python benchmarks/export_memory.py [--megabytes=640] [--dtype=float32] [--devices=4]

A random float32 model is made and then written: by ``rcjax.hf.export`` from one device and from a mesh of several (all
of them this host's), by one ``safetensors`` ``save_file`` of a dict of all tensors (as this project did before), and by
``save_pretrained`` of transformers. "over resident" is the peak less what was in use with the model made. Ours alone
reads again and compares what it wrote, and runs a prompt, for about half of its seconds. Memory is what Linux counts
(VmHWM), mapped pages of files included.
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

MIB = 2**20
WRITERS = ("export, one device", "export, mesh", "one save_file", "save_pretrained")


def memory(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS (now) or VmHWM (peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def model_config(megabytes: float):
    """A model of width 1024, 46 MB a layer and 66 MB a table in float32, that makes up the size."""
    from rcjax.model import LlamaConfig

    fields = dict(
        vocab_size=16000, hidden_size=1024, intermediate_size=2816, num_heads=16, num_kv_heads=16, head_dim=64
    )
    base, one = (LlamaConfig(num_layers=layers, **fields).num_params for layers in (1, 2))
    layers = max(1, math.ceil((megabytes * 1e6 / 4 - base) / (one - base)) + 1)
    return LlamaConfig(num_layers=layers, vocab_multiple=128, **fields)


def child(writer: str, megabytes: float, dtype: str, directory: str) -> None:
    """Makes the model, writes it once, and prints what it took as JSON."""
    config = model_config(megabytes)
    if writer == "save_pretrained":
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        hf_config = transformers.AutoConfig.for_model(**config.to_hf())
        model = transformers.AutoModelForCausalLM.from_config(hf_config)

        def write():
            model.to(getattr(torch, dtype)).save_pretrained(directory)
    else:
        import jax
        import jax.numpy as jnp
        import numpy as np
        import optax
        from safetensors.numpy import save_file

        from rcjax.hf import convert
        from rcjax.hf.export import export
        from rcjax.hf.tokenizer import train_tokenizer
        from rcjax.sharding import make_mesh
        from rcjax.train.state import init_state, state_shardings

        devices = jax.devices() if writer == "export, mesh" else jax.devices()[:1]
        tx = optax.identity()
        shardings = state_shardings(config, tx, make_mesh({"fsdp": -1}, devices))
        params = jax.block_until_ready(init_state(config, tx, shardings, 0).params)
        tokenizer = train_tokenizer(["def add(a, b):\n    return a + b"], 300)

        def write():
            if writer == "one save_file":
                tensors = dict(convert.to_hf(config, jax.tree.map(np.asarray, params), jnp.dtype(dtype)))
                save_file(tensors, Path(directory) / "model.safetensors", metadata={"format": "pt"})
                return
            print(export(config, params, tokenizer, Path(directory) / "model", dtype=dtype), file=sys.stderr)

    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    started = time.perf_counter()
    write()
    seconds = time.perf_counter() - started
    print(json.dumps(dict(seconds=seconds, resident=config.num_params * 4, over=memory("VmHWM") - before)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=640, help="of the model in float32 (default 640)")
    parser.add_argument("--dtype", default="float32", help="to write (default float32)")
    parser.add_argument("--devices", type=int, default=4, help="virtual devices of the mesh (default 4)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        writer, directory = flags.child
        child(writer, flags.megabytes, flags.dtype, directory)
        return
    config = model_config(flags.megabytes)
    table, layer = config.vocab_size * config.hidden_size * 4, (config.num_params - 2 * 16000 * 1024) * 4
    print(
        f"model of {config.num_params * 4 / MIB:.0f} MiB in float32 ({layer / config.num_layers / MIB:.0f} a layer, "
        f"{table / MIB:.0f} a table), written in {flags.dtype}; load average {os.getloadavg()[0]:.1f}\n"
    )
    print(f"{'writer':<20}{'seconds':>9}{'over resident, MiB':>20}{'of the model':>14}")
    flag = f"--xla_force_host_platform_device_count={flags.devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
    for writer in WRITERS:
        with tempfile.TemporaryDirectory() as directory:
            options = (f"--megabytes={flags.megabytes}", f"--dtype={flags.dtype}", "--child", writer, directory)
            done = subprocess.run([sys.executable, __file__, *options], env=environment, capture_output=True, text=True)
        if done.returncode:
            print(f"{writer:<20} failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{writer:<20}{found['seconds']:9.1f}{found['over'] / MIB:20.0f}{found['over'] / found['resident']:14.2f}"
        )


if __name__ == "__main__":
    main()
