"""What each curriculum costs to compute, on data of the published shape, and how fast views and rows are made.

    python -m benchmarks.curriculum_cost [--examples=512] [--steps=50] [--plot=docs/curricula.svg]

For each curriculum, averaged over a whole training: the student's tokens as a share of the teacher's, and the row slots
of both views, padding included, as a share of what two full views cost. Then the tokens a second that one core turns
from examples into packed microbatches. With ``--plot`` also a picture of how much of each block type the student still
sees at each step, made with the same function that training calls.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.examples import published_shape
from rcjax.blocks import BlockType, Example
from rcjax.curriculum import CURRICULA, Curriculum, mask_rate, visible
from rcjax.data.loader import BatchSettings, StepSource
from rcjax.evaluation.charts import COLOURS, Panel, Series, line_chart, standalone
from rcjax.objective import make_objective
from rcjax.views import blocks_of_reflection

ROW = 8192
BATCH = 512
SHOWN = ("block", "sequential_block", "random_block", "sequential_token", "random_token", "all")


def cost(examples: Sequence[Example], name: str, steps: int) -> tuple[float, float, float]:
    """(student / teacher tokens, slots / two full views, share of row slots in use) over a whole training."""
    settings = BatchSettings(make_objective("reference"), Curriculum(name), steps, BATCH, ROW, 1, "example", 0)
    source = StepSource([examples], [1], settings)
    student = teacher = slots = used = 0.0
    for step in range(steps):
        batch = source[step]
        student += batch.metrics["visible_tokens_per_example"]
        teacher += batch.metrics["teacher_tokens_per_example"]
        slots += batch.arrays["tokens"].size
        used += batch.metrics["tokens"]
    return student / teacher, slots / (2 * BATCH * teacher), used / slots


def visible_shares(example: Example, name: str, steps: int) -> list[Series]:
    """Visible share of each block type of one example at each optimizer step."""
    types, lengths = blocks_of_reflection(example)
    of_token = np.repeat(types, lengths)
    curriculum = Curriculum(name)
    shares: dict[BlockType, list[tuple[float, float]]] = {kind: [] for kind in list(BlockType)[1:]}
    for step in range(steps):
        rate = mask_rate(step, steps, curriculum.rate)
        draws = [visible(curriculum, types, lengths, rate, np.random.default_rng([step, k])) for k in range(64)]
        mask = np.mean(draws, axis=0)
        for kind, points in shares.items():
            points.append((step + 1, float(mask[of_token == kind].mean())))
    return [Series(kind.name, points, slot) for slot, (kind, points) in enumerate(shares.items(), 1)]


def plot(example: Example, path: Path, steps: int = 100) -> None:
    """Writes the picture of all curricula."""
    panels = [
        Panel(f"{name}: visible share by block type", visible_shares(example, name, steps), top=1.0, height=84)
        for name in SHOWN
    ]
    names = zip(list(BlockType)[1:], COLOURS, strict=True)
    legend = "  ".join(f'<tspan fill="{colour}">{kind.name}</tspan>' for kind, colour in names)
    legend = f'<text x="608" y="15" text-anchor="end" font-weight="600" xml:space="preserve">{legend}</text>'
    path.write_text(standalone(line_chart(panels), legend), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1024, help="distinct examples (default 1024)")
    parser.add_argument("--steps", type=int, default=50, help=f"optimizer steps of {BATCH} examples (default 50)")
    parser.add_argument("--plot", type=Path, help="SVG file to write the picture of the curricula to")
    flags = parser.parse_args()
    examples = published_shape(flags.examples)
    tokens = np.array([len(example) for example in examples])
    share = np.array([example.reflection[1] - example.reflection[0] for example in examples]) / tokens
    print(f"{len(examples)} examples of {tokens.min()} to {tokens.max()} tokens, mean {tokens.mean():.0f}; ", end="")
    print(f"{share.mean():.0%} of them in the reflection part; rows of {ROW} slots, {BATCH} examples a step\n")
    print(f"{'curriculum':<18}{'student / teacher':>18}{'slots / two full views':>24}{'row use':>10}")
    for name in CURRICULA:
        student, both, use = cost(examples, name, flags.steps)
        print(f"{name:<18}{student:>18.3f}{both:>24.3f}{use:>10.1%}")
    settings = BatchSettings(make_objective("reference"), Curriculum("block"), 10, BATCH, ROW, 1, "example", 0)
    source = StepSource([examples], [1], settings)
    source[0]
    seconds = []
    for step in range(1, 8):
        started = time.process_time()
        batch = source[step]
        seconds.append((time.process_time() - started) / batch.metrics["tokens"])
    print(
        f"\nviews and rows: {1 / np.median(seconds):,.0f} tokens a second of one core (median of {len(seconds)} steps)"
    )
    if flags.plot:
        plot(examples[0], flags.plot)
        print(f"{flags.plot} written")


if __name__ == "__main__":
    main()
