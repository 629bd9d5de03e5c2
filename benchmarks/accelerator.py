"""What a GPU does with it: attention, the training step, the loss and decoding, against peers on the same GPU.

    python -m benchmarks.accelerator [--parts=attention,loss,step,decode,tiles] [--models=...] [--small]

`attention`: forward and backward pass over rows of 8,192 slots, packed as training packs them, against the Triton
kernel that comes with JAX, and cuDNN's over the causal triangle, which masks no segments. `loss`: label columns at a
time. `step`: an optimizer step in bfloat16 of two models of the shipped configs, the middle of a `block` curriculum,
against PyTorch with transformers (autocast to bfloat16, SDPA), plain and improved (benchmarks/step.py). `decode`:
greedy, against `transformers.generate`. `tiles`: what sizes of tiles take. Losses and tokens are compared before
anything is timed. `--small` runs all of it on small shapes, on whatever there is: to see that it works.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# PyTorch wants memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.batches import dense_step, our_step
from benchmarks.examples import published_shape
from benchmarks.harness import alternate, median, ratio, record
from rcjax.decode import generate
from rcjax.hf.base_model import shape_fields
from rcjax.losses import vocabulary_loss
from rcjax.model import LlamaConfig, init_params
from rcjax.model.attention import attend_blocks
from rcjax.model.flash import Tile, Tiles, attend_causal, tiles_for
from rcjax.model.flops import forward_flops, peak_flops
from rcjax.sharding import make_mesh
from rcjax.train.loop import run_step
from rcjax.train.program import make_program
from rcjax.train.state import init_state

# Config, its remat (JAX and PyTorch share the memory), examples of a step and their lengths, microbatch of the peers.
STEPS = {
    "smollm2_135m": ("none", 64, dict(median=500, shortest=300, longest=760), 16),
    "ds13b": ("full", 16, dict(median=1500, shortest=600, longest=3900), 1),
}
ROUNDS = 5
SMALL = dict(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, head_dim=16)


def config_of(name: str, remat: str = "none"):
    """``configs/NAME.py`` for one device, in bfloat16, with rows of 8,192 slots."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.sharding.preset = ""
    config.packing.row_length, config.packing.rows_per_device, config.objective.chunk = 8192, 1, 512
    config.train.update(compute_dtype="bfloat16", remat=remat)
    config.optimizer.update(warmup_ratio=0.0, learning_rate=1e-5, weight_decay=0.0)
    return config


def model_of(config, small: bool) -> LlamaConfig:
    """Its shape, or a small one of its kind."""
    fields = shape_fields(config.model)
    if small:
        fields |= dict(SMALL, num_kv_heads=4 if fields["num_heads"] == fields["num_kv_heads"] else 2)
    vocabulary = dict(vocab_size=1024 if small else config.model.vocab_size, vocab_multiple=config.model.vocab_multiple)
    return LlamaConfig(**fields, **vocabulary)


def repeat(run: Callable, times: int) -> Callable[[], None]:
    """``run`` so often, waited for at the end: what the host takes is hidden as it is in training."""

    def work() -> None:
        for _ in range(times):
            result = run()
        jax.block_until_ready(result)

    return work


def attention_inputs(heads: int, kv_heads: int, head_dim: int, length: int, rows: int = 1):
    """Query, key, value in bfloat16, and segments of rows as training packs them."""
    examples = published_shape(32 * rows, vocab_size=1024, longest=length // 2)
    segments = our_step(examples, "block", 5, 12, length, rows, cuts=1).arrays["segment_ids"][0]
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(rows, length, n, head_dim) for n in (heads, kv_heads, kv_heads)]
    arrays = [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)]
    return arrays, jnp.asarray(segments)


def both_passes(attend: Callable) -> Callable:
    """(query, key, value, segments) -> the gradients of a sum of squares."""

    def total(query, key, value, segments):
        return jnp.sum(jnp.square(attend(query, key, value, segments).astype(jnp.float32)))

    return jax.jit(jax.grad(total, (0, 1, 2)))


def cudnn(query, key, value, segments):
    """The whole causal triangle: segments are not masked."""
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="cudnn")


def jax_kernel(query, key, value, segments):
    """The Triton kernel that comes with JAX, deprecated there."""
    from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    group = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))
    sizes = BlockSizes(64, 64, 32, 32, 32, 32)
    return mha(query, key, value, segments, sm_scale=query.shape[-1] ** -0.5, causal=True, block_sizes=sizes)


def attention(small: bool) -> None:
    rows, times = [], 1 if small else 20
    for heads, kv_heads, head_dim in ((16, 16, 128), (9, 3, 64)):
        arrays, segments = attention_inputs(heads, kv_heads, head_dim, 512 if small else 8192, rows=2)
        ours = functools.partial(attend_causal, interpret=small)
        contestants = {"ours": ours} | ({} if small else {"JAX's Triton": jax_kernel, "cuDNN, no segments": cudnn})
        runs = {}
        for name, attend in contestants.items():
            run = both_passes(attend)
            try:
                jax.block_until_ready(run(*arrays, segments))
            except Exception as failure:  # a peer that can not run here is left out, and said
                print(f"{name}: {str(failure).splitlines()[0][:300]}", flush=True)
                continue
            runs[name] = repeat(functools.partial(run, *arrays, segments), times)
        seconds = alternate(runs, ROUNDS)
        rows.append(
            {
                "heads, of keys, width": f"{heads}, {kv_heads}, {head_dim}",
                "views a row": int(jnp.sum(jnp.max(segments, axis=1))) / len(segments),
                "ours, ms": median(seconds)["ours"] * 1e3 / times,
                **{f"{name} / ours": ratio(seconds, "ours", name) for name in runs if name != "ours"},
                "error of gradients": gradient_error(ours, *attention_inputs(heads, kv_heads, head_dim, 512)),
            }
        )
        print(rows[-1], flush=True)
    record("accelerator", "attention over packed rows of 8,192 slots, both passes, bfloat16", rows)


def gradient_error(attend: Callable, arrays, segments) -> float:
    """The largest relative error, |ours - exact| / |exact|, of the gradients; exact in float32."""
    with jax.default_matmul_precision("highest"):
        exact = both_passes(attend_blocks)(*(x.astype(jnp.float32) for x in arrays), segments)
    real = (segments > 0)[..., None, None]
    pairs = zip(both_passes(attend)(*arrays, segments), exact, strict=True)
    norm = jnp.linalg.norm
    return max(float(norm(jnp.where(real, a - b, 0)) / norm(jnp.where(real, b, 0))) for a, b in pairs)


def tiles(small: bool) -> None:
    rows, times = [], 1 if small else 20
    for heads, kv_heads, head_dim in ((16, 16, 128), (9, 3, 64)):
        arrays, segments = attention_inputs(heads, kv_heads, head_dim, 512 if small else 8192, rows=2)
        base = tiles_for(head_dim)

        def compile_one(place, tile, base=base, arrays=arrays, segments=segments):
            attend = functools.partial(attend_causal, tiles=Tiles(*base._replace(**{place: tile})), interpret=small)
            try:
                run = jax.jit(attend) if place == "forward" else both_passes(attend)
                return place, tile, run.lower(*arrays, segments).compile()
            except Exception as failure:
                return place, tile, str(failure).splitlines()[0][:120]

        sizes = [
            (place, Tile(q, k, warps, stages))
            for place in Tiles._fields
            for q, k in ((64, 64), (128, 64), (64, 128), (128, 128), (64, 32), (32, 64))
            for warps in (4, 8)
            for stages in (2, 3)
            if (place == "forward") <= (q >= 64 <= k)
        ][:: 20 if small else 1]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = list(pool.map(lambda size: compile_one(*size), sizes))
        for place, tile, run in made:
            if isinstance(run, str):
                print(head_dim, place, tile, run, flush=True)
                continue
            work = repeat(functools.partial(run, *arrays, segments), times)
            taken = median(alternate({"": work}, 3))[""] / times
            rows.append({"width": head_dim, "part": place, **dataclasses.asdict(tile), "ms": taken * 1e3})
    rows.sort(key=lambda row: (row["width"], row["part"], row["ms"]))
    best = [
        row for row in rows if row in [r for r in rows if (r["width"], r["part"]) == (row["width"], row["part"])][:3]
    ]
    record("accelerator", "sizes of attention's tiles, packed rows of 8,192 slots, the quickest three", best)


def loss(small: bool) -> None:
    """The vocabulary loss by label columns at a time."""
    times = 1 if small else 5
    width, vocabulary, labels = (64, 512, 256) if small else (2048, 32256, 8192)
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (1, 2 * labels, width), jnp.bfloat16)
    head = (jax.random.normal(keys[1], (width, vocabulary)) * width**-0.5).astype(jnp.bfloat16)
    weights = jnp.full((1, labels), 1 / labels)
    arrays = {
        "single_slots": jnp.zeros((1, 1), jnp.int32),
        "single_targets": jnp.zeros((1, 1), jnp.int32),
        "single_ce": jnp.zeros((1, 1)),
        "pair_teacher_slots": jnp.arange(labels)[None],
        "pair_student_slots": labels + jnp.arange(labels)[None],
        "pair_targets": jax.random.randint(keys[2], (1, labels), 0, vocabulary),
        **dict.fromkeys(("pair_teacher_ce", "pair_student_ce", "pair_kd"), weights),
    }

    def total(hidden, head, chunk):
        return vocabulary_loss(hidden, head, arrays, ce_weight=1.0, kd_weight=1.0, chunk=chunk)[0]

    runs = {}
    for chunk in (64, 128) if small else (64, 256, 512, 1024, 2048, 4096):
        run = jax.jit(jax.value_and_grad(functools.partial(total, chunk=chunk), (0, 1)))
        runs[chunk] = repeat(functools.partial(run, hidden, head), times)
    seconds = median(alternate(runs, 3))
    rates = {chunk: 3 * 2 * 2 * labels * width * vocabulary / (taken / times) for chunk, taken in seconds.items()}
    rows = [
        {"chunk": chunk, "ms": taken * 1e3 / times, "share of peak": rates[chunk] / peak_flops(jnp.bfloat16)}
        for chunk, taken in seconds.items()
    ]
    record("accelerator", f"vocabulary loss of {labels} pairs, width {width}, vocabulary {vocabulary}, bfloat16", rows)


class Ours:
    """The trainer's own step."""

    def __init__(self, config, model: LlamaConfig, params, batch):
        self.mesh, self.batch = make_mesh({"data": -1}), batch
        self.program = make_program(config, model, self.mesh, 1_000_000)
        with jax.set_mesh(self.mesh):
            own = jax.tree.map(jnp.array, params)
            self.state = init_state(model, self.program.tx, self.program.shardings, 0, own)
            self.sums = self.program.steps.zeros()

    def __call__(self) -> float:
        with jax.set_mesh(self.mesh):
            self.state, self.sums, metrics = run_step(self.program.steps, self.state, self.sums, self.batch)
            jax.block_until_ready(self.state)
        return float(metrics["loss"])


def step(small: bool) -> None:
    for name in STEPS:
        step_of(name, small)
        gc.collect()


def step_of(name: str, small: bool) -> None:
    """One peer after the other, each in turns with ours: three models and their moments would take too much memory."""
    import torch

    from benchmarks import peers_torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    remat, count, lengths, microbatch = STEPS[name]
    config = config_of(name, remat)
    model = model_of(config, small)
    if small:
        count, lengths, config.packing.row_length = 4, dict(median=150, shortest=100, longest=200), 512
    examples = published_shape(count, vocab_size=model.vocab_size, **lengths)
    batch = our_step(examples, "block", 5, 12, config.packing.row_length, 1, config.packing.cuts)
    params = jax.tree.map(np.asarray, jax.jit(init_params, static_argnums=0)(model, jax.random.key(0)))
    begin = time.perf_counter()
    ours = Ours(config, model, params, batch)
    losses = {"ours": [ours(), ours()]}
    print(f"{name}: ours compiled and ran twice in {time.perf_counter() - begin:.0f} s", flush=True)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    dense = [peers_torch.tensors(d) for d in dense_step(examples, "block", 5, 12, microbatch)]
    taken, ratios = [], {}
    for peer, function in (("torch", peers_torch.plain_loss), ("improved", peers_torch.improved_loss)):
        run = functools.partial(
            peers_torch.Step(model, params, function, config.optimizer.learning_rate, device, mixed=True), dense
        )
        losses[peer] = [run(), run()]
        np.testing.assert_allclose(losses[peer], losses["ours"], rtol=1e-3, err_msg=peer)
        seconds = alternate({"ours": ours, peer: run}, 1 if small else ROUNDS)
        taken += seconds["ours"]
        ratios[f"{peer} / ours"] = ratio(seconds, "ours", peer)
        del run
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    print("losses before and after a step:", losses, flush=True)
    own = float(np.median(taken))
    row = {
        "ours, s": own,
        **ratios,
        "examples/s": len(examples) / own,
        "tokens/s": batch.metrics["tokens"] / own,
        "utilisation": 3 * forward_flops(model, **dataclasses.asdict(batch.work)) / own / peak_flops(jnp.bfloat16),
        "row use": float(batch.metrics["row_use"]),
        "peak of memory, GiB": memory / 2**30,
    }
    claim = f"optimizer step of {name}, {model.num_params / 1e6:.0f}M parameters, bfloat16, remat {remat}"
    record("accelerator", f"{claim}: times as long as ours", [row])


def decode(small: bool) -> None:
    import torch

    from benchmarks import peers_torch
    from benchmarks.decode import Transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    config = config_of("smollm2_135m")
    model = dataclasses.replace(model_of(config, small), pad_token_id=None)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    new_tokens = 8 if small else 256
    rng = np.random.default_rng(0)
    for dtype, batch in ((jnp.float32, 16), (jnp.bfloat16, 128), (jnp.bfloat16, 16)):
        prompts = [rng.integers(3, model.vocab_size, 128).tolist() for _ in range(batch)]
        kind = {jnp.float32: torch.float32, jnp.bfloat16: torch.bfloat16}[dtype]
        network = peers_torch.model(model, params, device=device).to(kind)

        def ours(prompts=prompts, dtype=dtype, batch=batch):
            kwargs = dict(max_new_tokens=new_tokens, stop_ids=[], batch_size=batch, dtype=dtype, cache_dtype=dtype)
            return generate(model, params, prompts, **kwargs)

        runs = {"ours": ours}
        # On a GPU transformers compiles for `static`, for minutes.
        for cache in ("dynamic", "static") if device == "cpu" else ("dynamic",):
            peer = Transformers(network, cache, (), device=device, batch=batch)
            runs[cache] = functools.partial(peer, prompts, new_tokens)
        results = {}
        for name, run in list(runs.items()):
            try:
                begin = time.perf_counter()
                results[name] = run()
                print(f"{name} took {time.perf_counter() - begin:.1f} s the first time", flush=True)
            except Exception as failure:
                print(f"{name}: {str(failure).splitlines()[0][:300]}", flush=True)
                del runs[name]
        equal = {
            name: float(np.mean([a == b for a, b in zip(results["ours"], result, strict=True)]))
            for name, result in results.items()
        }
        seconds = alternate(runs, 2, warm_up=0)
        rows.append(
            {
                "dtype": jnp.dtype(dtype).name,
                "rows": batch,
                **{f"{name}, tokens/s": batch * new_tokens / median(seconds)[name] for name in runs},
                **{f"ours / {name}": ratio(seconds, "ours", name) for name in runs if name != "ours"},
                "equal to dynamic's": equal.get("dynamic"),
            }
        )
        print(rows[-1], flush=True)
    record("accelerator", f"greedy decoding, {model.num_params / 1e6:.0f}M parameters: tokens per second", rows)


PARTS = {"attention": attention, "loss": loss, "step": step, "decode": decode, "tiles": tiles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="attention,loss,step,decode", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--models", default=",".join(STEPS), help="of `step`")
    parser.add_argument("--small", action="store_true")
    flags = parser.parse_args()
    if jax.default_backend() == "cpu" and not flags.small:
        raise SystemExit("JAX sees no accelerator here: pip install 'jax[cuda13]', or --small to try it on the CPU")
    for name in STEPS.keys() - set(flags.models.split(",")):
        del STEPS[name]
    failed = []
    for part in flags.parts.split(","):
        try:
            PARTS[part](flags.small)
        except Exception:  # the others are worth their time all the same
            traceback.print_exc()
            failed.append(part)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
