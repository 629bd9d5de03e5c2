"""Where the time of a training step goes, by part of the program: a table, and pictures for docs/performance.md.

    python -m benchmarks.profile [--model=tiny] [--plot=docs/profile.svg]

Takes an XLA profile of one optimizer step, as `--config.profile.steps` does, and adds up the operations of the devices
by the `jax.named_scope` they come from. Matrix products are told apart from the rest: they are the work that counts.
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax

from benchmarks.harness import record
from benchmarks.utilisation import trainer
from rcjax.host_devices import one_device_per_core
from rcjax.host_memory import ask_for_huge_pages
from rcjax.train.loop import run_step

# In this order: the first that stands in an operation's name has it. Loops of attention lie inside of `attention`.
SCOPES = ("gather_labels", "vocabulary_loss", "attention", "mlp", "embed", "optimizer", "accumulate")
COLOURS = dict(
    zip(
        (*SCOPES, "exchange", "other"),
        ("#b07aa1", "#e15759", "#4e79a7", "#59a14f", "#edc948", "#f28e2b", "#9c755f", "#76b7b2", "#bab0ac"),
        strict=True,
    )
)
PRODUCT = re.compile(r"dot|ynn_fusion|cublas|convolution")
EXCHANGE = re.compile(r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective)")  # waiting for the other included
CONTAINER = re.compile(r"(while|call|conditional)[.\d]*$")  # their time is that of what they hold


class Operation(NamedTuple):
    """One run of an operation; nanoseconds from the start of the step."""

    scope: str
    product: bool
    lane: str
    start: float
    end: float


def scopes_of(text: str) -> dict[str, str]:
    """Operation -> part of the program, of a compiled program's text."""
    found = {}
    for name, path in re.findall(r"%?([\w.\-]+) = .*?metadata=\{[^}]*op_name=\"([^\"]*)\"", text):
        found[name] = next((scope for scope in SCOPES if scope in path), "other")
    return found


def operations(directory: Path, scopes: dict[str, dict[str, str]]) -> Iterator[Operation]:
    """Those of a profile; ``scopes``: of each program by its name."""
    from jax.profiler import ProfileData

    (path,) = directory.glob("**/*.xplane.pb")
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                name = stats.get("hlo_op")
                if name is None or CONTAINER.match(name):
                    continue
                scope = scopes.get(stats.get("hlo_module"), {}).get(name, "other")
                scope = "exchange" if EXCHANGE.match(name) else scope
                product = bool(PRODUCT.match(name))
                yield Operation(scope, product, line.name, event.start_ns, event.start_ns + event.duration_ns)


def timeline(events: list[Operation], share: float) -> str:
    """SVG of the step's first ``share``: a lane for each thread that works much, and what share each part has."""
    first = min(event.start for event in events)
    span = share * (max(event.end for event in events) - first)
    busy = collections.Counter()
    for event in events:
        busy[event.lane] += event.end - event.start
    lanes = [lane for lane, time in busy.most_common() if time > 0.05 * sum(busy.values())]
    width, height, top = 960, 26, 52
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + height * len(lanes) + 96}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="8" y="18" font-size="14">The first {span / 1e6:.0f} ms of a step: a lane a thread. Dark: matrix '
        "products. Light: the rest.</text>"
    ]
    for number, scope in enumerate(COLOURS):
        x = 8 + 105 * number
        parts.append(f'<rect x="{x}" y="28" width="12" height="12" fill="{COLOURS[scope]}"/>')
        parts.append(f'<text x="{x + 16}" y="38">{scope}</text>')
    for event in events:
        start = (event.start - first) / span * width
        if event.lane not in lanes or start > width:
            continue
        size = min(width - start, (event.end - event.start) / span * width)
        if size < 0.1:
            continue
        y = top + height * lanes.index(event.lane)
        parts.append(
            f'<rect x="{start:.1f}" y="{y}" width="{max(size, 0.2):.1f}" height="{height - 4}" '
            f'fill="{COLOURS[event.scope]}" opacity="{1 if event.product else 0.55}"/>'
        )
    total = sum(event.end - event.start for event in events)
    parts.append(f'<text x="8" y="{top + height * len(lanes) + 24}" font-size="14">The whole step</text>')
    x, y = 0.0, top + height * len(lanes) + 34
    for scope in COLOURS:
        for product in (True, False):
            time = sum(e.end - e.start for e in events if e.scope == scope and e.product == product)
            size = time / total * width
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{size:.1f}" height="34" fill="{COLOURS[scope]}" '
                f'opacity="{1 if product else 0.55}"/>'
            )
            if size > 30:
                parts.append(f'<text x="{x + 4:.1f}" y="{y + 22}" fill="white">{time / total:.0%}</text>')
            x += size
    return "".join([*parts, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a config, e.g. tiny or smollm2_135m (default tiny)")
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    parser.add_argument("--share", type=float, default=0.3, help="of the step that the picture shows (default 0.3)")
    flags = parser.parse_args()
    made = trainer(flags.model, flags.examples)
    with jax.set_mesh(made.mesh), tempfile.TemporaryDirectory() as directory:
        state, sums = made.start()
        for _ in range(2):
            state, sums, _ = run_step(made.steps, state, sums, made.batch)
        texts = {}
        for index in range(made.batch.microbatches):  # programs differ by width
            arrays = {n: jax.device_put(a, made.steps.row_sharding) for n, a in made.batch.microbatch(index).items()}
            texts[made.batch.widths[index]] = made.steps.accumulate.lower(state.params, sums, arrays, None)
        jax.block_until_ready((state, sums))
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        jax.profiler.start_trace(directory, profiler_options=options)
        state, sums, _ = run_step(made.steps, state, sums, made.batch)
        jax.block_until_ready((state, sums))
        jax.profiler.stop_trace()
        # Names of operations are a program's own: all widths come from one source and seldom differ in them.
        scopes = {"jit_accumulate": {}, "jit_update": {}}
        for lowered in texts.values():
            scopes["jit_accumulate"] |= scopes_of(lowered.compile().as_text())
        scopes["jit_update"] |= scopes_of(made.steps.update.lower(state, sums).compile().as_text())
        events = list(operations(Path(directory), scopes))
    total = sum(event.end - event.start for event in events)
    rows = []
    for scope in COLOURS:
        mine = [event for event in events if event.scope == scope]
        products = sum(event.end - event.start for event in mine if event.product)
        rest = sum(event.end - event.start for event in mine if not event.product)
        rows.append({"part": scope, "products": products / total, "rest": rest / total})
    rows.append({"part": "all", **{kind: sum(row[kind] for row in rows) for kind in ("products", "rest")}})
    settings = {key: str(value) for key, value in vars(flags).items()}
    record("profile", f"where the time of a step of configs/{flags.model}.py goes, shares", rows, **settings)
    if flags.plot:
        flags.plot.write_text(timeline(events, flags.share), encoding="utf-8")
        print(f"{flags.plot} written")


if __name__ == "__main__":
    one_device_per_core()  # as launch.py does
    ask_for_huge_pages()
    main()
