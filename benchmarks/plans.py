"""What every shipped config needs, on chips that are not there: the table of docs/plans.md.

    python -m benchmarks.plans [ds67b ...] [--again] [--table]

Each line is one `launch.py --mode=plan`, one after the other; what came of it is kept in benchmarks/plans.jsonl, so a
second call takes up where the first was stopped. Configs are named to do those alone; --again makes their lines anew,
--table writes the table of what is there already and compiles nothing.

Needs the compilers: pip install --no-deps -r requirements-plan.txt
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT

RESULTS = ROOT / "benchmarks" / "plans.jsonl"
PAGE = ROOT / "docs" / "plans.md"
BEGIN, END = "<!-- begin: python -m benchmarks.plans -->", "<!-- end -->"

FULL = ("--effort=full",)
# A tokenizer is trained, and has the block tokens besides. So small a program is too much for the TPU compiler's
# --effort=fast: a check of its own ends it.
TINY = (*FULL, "--config.model.vocab_size=1543")
# The two that the promises are about are compiled as a run compiles them; --effort=fast does for the others.
PLANS = [
    *(("tiny", topology, TINY) for topology in ("v5e:2x4", "h100:8")),
    *(("smollm2_135m", topology, ()) for topology in ("v5e:2x4", "h100:8")),
    *(("ds13b", topology, ()) for topology in ("v5e:2x4", "h100:8")),
    ("ds67b", "v5e:4x4", FULL),
    ("ds33b", "v5p:4x4x4", FULL),
    *(("ds67b", topology, ()) for topology in ("h100:8", "v5p:2x2x4")),
    ("ds33b", "h100:64", ()),
    *(("cl7b", topology, ()) for topology in ("v5e:4x4", "h100:8")),
    *(("qwen25coder7b", topology, ()) for topology in ("v6e:4x4", "h100:8")),
    *(("cl34b", topology, ()) for topology in ("h100:64", "v5p:4x4x4")),
]


def main() -> None:
    """Makes what is missing, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", help="e.g. ds67b; none: all")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    unknown = set(arguments.configs) - {name for name, *_ in PLANS}
    if unknown:
        sys.exit(f"{sorted(unknown)[0]}: no plan is kept of such a config; see PLANS in {__file__}")
    done = {} if arguments.again and not arguments.configs else results()
    for config, topology, flags in PLANS:
        chosen = not arguments.configs or config in arguments.configs
        if arguments.table or not chosen or (key(config, topology, flags) in done and not arguments.again):
            continue
        found = make(config, topology, flags)
        done[key(config, topology, flags)] = found
        keep(done)
        print(f"{config} on {topology}: {line(found)}", flush=True)
    write_table(done)


def key(config: str, topology: str, flags: tuple[str, ...]) -> str:
    """The command of a line."""
    effort = () if "--effort=full" in flags else ("--effort=fast",)
    words = (f"--config=configs/{config}.py", "--mode=plan", f"--topology={topology}", *effort, *flags)
    return " ".join(("python launch.py", *(word for word in words if word != "--effort=full")))


def results() -> dict[str, dict[str, Any]]:
    """Command -> figures."""
    if not RESULTS.exists():
        return {}
    entries = map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())
    return {entry["command"]: entry for entry in entries}


def keep(done: dict[str, dict[str, Any]]) -> None:
    """Writes the results, in the order of ``PLANS``."""
    order = [key(*plan) for plan in PLANS]
    lines = [json.dumps(done[command]) for command in order if command in done]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def make(config: str, topology: str, flags: tuple[str, ...]) -> dict[str, Any]:
    """Runs one plan in a process of its own, and gives its figures."""
    command = key(config, topology, flags)
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "plan.json"
        words = [sys.executable, *command.split()[1:], f"--output={output}"]
        finished = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        if finished.returncode:
            sys.exit(f"{command}: {finished.stderr.strip()[-2000:]}")
        return {"config": config, "command": command} | json.loads(output.read_text())


def line(found: dict[str, Any]) -> str:
    """One line of the table."""
    gib, hbm = 2**30, found["hbm_bytes"]
    mesh = " ".join(f"{axis}={size}" for axis, size in found["mesh"].items() if size > 1) or "one device"
    cells = [
        f"{found['config']} on {found['topology']}",
        mesh,
        f"{sum(found['held_bytes'].values()) / gib:.2f}",
        f"{found['activation_bytes'] / gib:.2f}",
        f"{found['peak_bytes'] / gib:.2f} of {hbm / gib:.2f}",
        f"{found['peak_bytes'] / hbm:.0%}" if found["fits"] else "**does not fit**",
        f"{sum(found['sent_bytes_per_microbatch'].values()) / gib:.3g}",
    ]
    if found["refused"]:
        cells += [""] * 4
    else:
        cells += [
            f"{found['step_seconds']:.3g} to {found['step_seconds_one_by_one']:.3g}",
            found["binding"],
            f"{found['utilisation']:.0%} to {found['utilisation_one_by_one']:.0%}",
            f"{found['chip_hours_per_100k_examples']:.3g}",
        ]
    cells.append(found["effort"])
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "config, topology",
    "mesh",
    "held, GiB",
    "activations, GiB",
    "peak of memory, GiB",
    "share",
    "sent a microbatch, GiB",
    "step, s",
    "binds",
    "utilisation",
    "chip-hours per 100,000 examples",
    "effort",
)


def write_table(done: dict[str, dict[str, Any]]) -> None:
    """Puts the table between its marks."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    configs = list(dict.fromkeys(name for name, *_ in PLANS))
    order = sorted(PLANS, key=lambda plan: configs.index(plan[0]))
    rows = [line(done[key(*plan)]) for plan in order if key(*plan) in done]
    table = "\n".join(["| " + " | ".join(HEAD) + " |", "|---|---|" + "---:|" * (len(HEAD) - 3) + "---|", *rows])
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(rows)} of {len(PLANS)} plans")


if __name__ == "__main__":
    main()
