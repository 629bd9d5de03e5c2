"""An optimizer step on data of the published shape against the same step of peers, over a whole `block` curriculum.

    python -m benchmarks.step [--vocab=8192] [--examples=16] [--rounds=3] [--peers=jax,torch,improved]

A model of about 10M parameters, examples of about 1,000 tokens of which 70 % are reflection, float32. `block` has three
states, one for each third of a training; each is timed, and examples per second are those of the whole training.
Peers: `jax`, the reference's way in JAX (both views at full length, dense logits); `torch`, the same in PyTorch with
transformers; `improved`, PyTorch that cuts the student's hidden tokens out and projects labelled positions alone.

All start from the same weights and must agree on the loss, the gradient's effect included (a second loss, after a
step), before anything is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.batches import Dense, dense_step, our_step
from benchmarks.examples import published_shape
from benchmarks.harness import alternate, median, record
from rcjax.host_devices import one_device_per_core
from rcjax.host_memory import ask_for_huge_pages
from rcjax.model import LlamaConfig, init_params
from rcjax.model.flops import forward_flops
from rcjax.objective import make_objective
from rcjax.sharding import make_mesh, row_shards
from rcjax.train.loop import run_step
from rcjax.train.state import init_state, make_optimizer, state_shardings
from rcjax.train.step import LossSettings, make_steps

STATES = (1, 5, 9)  # of 12 steps: one in each third of the curriculum
STEPS = 12
RATE = 1e-4


def small_model(vocab_size: int) -> LlamaConfig:
    """About 10M parameters with a vocabulary of 8,192."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=704,
        num_layers=8,
        num_heads=4,
        num_kv_heads=4,
        head_dim=64,
        tie_embeddings=False,
        max_position_embeddings=4096,
    )


class Ours:
    """The trainer's own step."""

    def __init__(self, config: LlamaConfig, params, chunk: int):
        mesh = make_mesh({"data": -1})
        fields = dict(learning_rate=RATE, warmup_ratio=0.0, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=1.0)
        tx, _ = make_optimizer(ConfigDict(fields), 1_000_000)  # so long that the rate stays where it is
        shardings = state_shardings(config, tx, mesh)
        settings = LossSettings(model=config, objective=make_objective("reference"), chunk=chunk)
        self.steps = make_steps(settings, tx, lambda step: RATE, shardings, mesh)
        with jax.set_mesh(mesh):
            self.state = init_state(config, tx, shardings, 0, jax.tree.map(jax.numpy.array, params))
            self.sums = self.steps.zeros()
        self.mesh, self.rows = mesh, row_shards(mesh)

    def __call__(self, batch) -> float:
        with jax.set_mesh(self.mesh):
            self.state, self.sums, metrics = run_step(self.steps, self.state, self.sums, batch)
            jax.block_until_ready(self.state)
        return float(metrics["loss"])


def peer(name: str, config: LlamaConfig, params):
    """(step, batch -> what it takes)"""
    if name == "jax":
        from benchmarks import peers_jax

        return peers_jax.Step(config, params, RATE), lambda batch: {f.name: getattr(batch, f.name) for f in FIELDS}
    from benchmarks import peers_torch

    loss = {"torch": peers_torch.plain_loss, "improved": peers_torch.improved_loss}[name]
    return peers_torch.Step(config, params, loss, RATE), peers_torch.tensors


FIELDS = dataclasses.fields(Dense)


def allowed(config: LlamaConfig, examples, batch) -> float:
    """Operations of the reference's way, padding left out, over ours."""
    whole = [len(example) for example in examples]
    pairs = sum(size * (size + 1) // 2 for size in whole)
    theirs = forward_flops(config, tokens=2 * sum(whole), pairs=2 * pairs, labels=2 * sum(whole))
    return theirs / forward_flops(config, **dataclasses.asdict(batch.work))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--examples", type=int, default=16, help="of a step (default 16)")
    parser.add_argument("--microbatch", type=int, default=2, help="of the peers, examples (default 2)")
    parser.add_argument("--row", type=int, default=4096, help="slots of a row of ours (default 4096)")
    parser.add_argument(
        "--chunk", type=int, default=256, help="label columns that ours projects at a time (default 256)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default="jax,torch,improved")
    flags = parser.parse_args()
    config = small_model(flags.vocab)
    params = jax.tree.map(np.asarray, init_params(config, jax.random.key(0)))
    examples = published_shape(flags.examples, median=1000, shortest=600, longest=2000, vocab_size=flags.vocab, seed=1)
    tokens = np.mean([len(example) for example in examples])
    print(f"{config.num_params:,} parameters; {len(examples)} examples of {tokens:.0f} tokens on average")

    ours = Ours(config, params, flags.chunk)
    peers = {name: peer(name, config, params) for name in flags.peers.split(",")}
    rows, seconds = [], {}
    for state in STATES:
        batch = our_step(examples, "block", state, STEPS, flags.row, ours.rows)
        runs = {"ours": lambda batch=batch: ours(batch)}
        for name, (step, convert) in peers.items():
            multiple = 128 if name == "jax" else 1  # every length is a program of its own there
            dense = [convert(d) for d in dense_step(examples, "block", state, STEPS, flags.microbatch, multiple)]
            runs[name] = lambda step=step, dense=dense: step(dense)
        if state == STATES[0]:
            for number in range(2):
                losses = {name: run() for name, run in runs.items()}
                np.testing.assert_allclose(list(losses.values()), losses["ours"], rtol=2e-5, err_msg=f"step {number}")
            print("losses agree, before and after a step:", {name: round(loss, 6) for name, loss in losses.items()})
        seconds[state] = alternate(runs, flags.rounds)
        middle = median(seconds[state])
        rows.append(
            {
                "mask rate": round(float(batch.metrics["mask_rate"]), 2),
                "ours, s": middle["ours"],
                **{f"{name} / ours": middle[name] / middle["ours"] for name in peers},
                "FLOPs allow": allowed(config, examples, batch),
                "row use": float(batch.metrics["row_use"]),
            }
        )
    total = {name: sum(median(seconds[state])[name] for state in STATES) for name in ("ours", *peers)}
    rows.append(
        {
            "mask rate": "whole training",
            "ours, s": total["ours"],
            **{f"{name} / ours": total[name] / total["ours"] for name in peers},
            "ours, examples/s": len(STATES) * len(examples) / total["ours"],
        }
    )
    claim = (
        f"optimizer step, {config.num_params / 1e6:.1f}M parameters, vocabulary {flags.vocab}: times as long as ours"
    )
    record("step", claim, rows, **vars(flags))


if __name__ == "__main__":
    one_device_per_core()  # as launch.py does
    ask_for_huge_pages()  # as launch.py does; peers have them too
    main()
