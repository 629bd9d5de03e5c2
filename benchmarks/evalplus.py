"""Scoring against evalplus 0.3.1: the same verdicts, in at most half of the time, on the same samples and cores.

    python -m benchmarks.evalplus [--sets=humaneval,mbpp] [--rounds=1] [--samples=FILE] [--python=PATH]

Both have computed the expected outputs before (evalplus its "groundtruth"), so scoring alone is timed: of evalplus
the call of ``evaluate``, with as many processes as there are cores, of ours the whole command. (The command of evalplus
takes up to 20 s longer: a thread that watches for stuck samples sleeps on.) The statuses of each task are compared in
each round. ``--samples=canonical`` scores the canonical programs, ``mutants`` one faulty program a task, a file its
samples; the default are the published samples under RCJAX_SHARED. ``--python`` is an interpreter that has evalplus.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import harness
from data_gen.mutations import mutants, normalize
from rcjax.evaluation.benchmarks import Benchmark, load_benchmark
from rcjax.evaluation.expected import expected_outputs

SHARED = Path(os.environ.get("RCJAX_SHARED", harness.ROOT.parent / "shared")) / "data"
SETS = {
    "humaneval": (SHARED / "humaneval_plus" / "HumanEvalPlus.jsonl.gz", "HUMANEVAL_OVERRIDE_PATH"),
    "mbpp": (SHARED / "mbpp_plus" / "MbppPlus.jsonl.gz", "MBPP_OVERRIDE_PATH"),
}
PUBLISHED = "evalplus-starcoder2-15b-instruct-v0.1-{}.jsonl"
# Run by the interpreter that has evalplus: computes the groundtruth without samples, times `evaluate` with them.
DRIVER = """
import os, sys, time
from evalplus import evaluate as e
name, samples, workers = sys.argv[1:]
if not samples:
    if name == "humaneval":
        e.get_groundtruth(e.get_human_eval_plus(), e.get_human_eval_plus_hash(), [])
    else:
        e.get_groundtruth(e.get_mbpp_plus(), e.get_mbpp_plus_hash(), e.MBPP_OUTPUT_NOT_NONE_TASKS)
else:
    started = time.perf_counter()
    e.evaluate(dataset=name, samples=samples, parallel=int(workers))
    print("SECONDS", time.perf_counter() - started, flush=True)
    os._exit(0)
"""


class Set:
    """One benchmark with its samples, for both."""

    def __init__(self, name: str, samples: str, python: str, directory: Path):
        self.name, self.python, self.directory = name, python, directory
        self.packed, variable = SETS[name]
        plain = directory / f"{name}-data.jsonl"
        plain.write_bytes(gzip.decompress(self.packed.read_bytes()))
        self.environment = os.environ | {variable: str(plain)}
        self.benchmark = load_benchmark(f"{name}+", self.packed)
        self.samples = directory / f"{name}.jsonl"
        self.samples.write_text("".join(json.dumps(row) + "\n" for row in _rows(self.benchmark, name, samples)))
        self.seconds: dict[str, list[float]] = {"evalplus": [], "rcjax": []}

    def prepare(self) -> None:
        """Expected outputs of both."""
        expected_outputs(self.benchmark)
        self._evalplus("")

    def evalplus(self) -> dict[str, list[tuple[str, str]]]:
        """Task id to statuses; keeps the seconds of ``evaluate``."""
        results = self.samples.with_name(f"{self.name}_eval_results.json")
        results.unlink(missing_ok=True)
        line = next(line for line in self._evalplus(str(self.samples)).splitlines() if line.startswith("SECONDS"))
        self.seconds["evalplus"].append(float(line.split()[1]))
        rows = json.loads(results.read_text())["eval"]
        return {task: [(row["base_status"], row["plus_status"]) for row in found] for task, found in rows.items()}

    def _evalplus(self, samples: str) -> str:
        command = [self.python, "-c", DRIVER, self.name, samples, str(len(os.sched_getaffinity(0)))]
        return subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
        ).stdout

    def rcjax(self) -> dict[str, list[tuple[str, str]]]:
        """The same by our command."""
        output = self.directory / "out"
        command = [sys.executable, "launch.py", "--mode=score", f"--benchmark={self.name}+", f"--data={self.packed}"]
        command += [f"--samples={self.samples}", f"--output={output}"]

        def run() -> None:
            subprocess.run(command, cwd=harness.ROOT, stdout=subprocess.DEVNULL, check=True)

        self.seconds["rcjax"] += harness.alternate({"rcjax": run}, rounds=1, warm_up=0)["rcjax"]
        rows = json.loads((output / "results.json").read_text())["tasks"]
        return {task: [(row["base"], row["plus"]) for row in found] for task, found in rows.items()}


def _rows(benchmark: Benchmark, name: str, samples: str) -> list[dict[str, str]]:
    if samples == "canonical":
        return [{"task_id": task.id, "solution": task.canonical} for task in benchmark.tasks.values()]
    if samples == "mutants":
        rows = []
        for number, task in enumerate(benchmark.tasks.values()):
            code = next(mutants(normalize(task.canonical), random.Random(number), limit=1)).code
            rows.append({"task_id": task.id, "solution": code})
        return rows
    file = Path(samples) if samples else SHARED / "published_samples" / PUBLISHED.format(name)
    rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    return [row for row in rows if row["task_id"] in benchmark.tasks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="humaneval,mbpp", help="of humaneval and mbpp")
    parser.add_argument("--rounds", type=int, default=1, help="rounds, of which the median counts")
    parser.add_argument("--samples", default="", help="canonical, mutants, or a file; default: the published samples")
    parser.add_argument("--python", default=sys.executable, help="interpreter with evalplus 0.3.1")
    flags = parser.parse_args()
    sys.argv = [argument for argument in sys.argv if not argument.startswith("--python=")]  # the record names no paths
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name in flags.sets.split(","):
            one = Set(name, flags.samples, flags.python, Path(directory))
            one.prepare()
            compared, different = 0, set()
            for _ in range(flags.rounds):
                theirs, ours = one.evalplus(), one.rcjax()
                compared += len(theirs)
                print(f"{name}+:", ", ".join(f"{who} {taken[-1]:.1f} s" for who, taken in one.seconds.items()))
                different |= {task for task in theirs.keys() | ours.keys() if theirs.get(task) != ours.get(task)}
                for task in sorted(different):
                    print(f"{task}: evalplus {theirs.get(task)}, rcjax {ours.get(task)}")
            medians = harness.median(one.seconds)
            rows.append(
                {
                    "set": f"{name}+",
                    "tasks compared": compared,
                    "different": len(different),
                    "evalplus s": round(medians["evalplus"], 1),
                    "rcjax s": round(medians["rcjax"], 1),
                    "times quicker": round(harness.ratio(one.seconds, "rcjax", "evalplus"), 2),
                }
            )
    what = flags.samples or "published samples"
    if set(flags.sets.split(",")) != SETS.keys():
        what += f", {flags.sets}"
    harness.record("evalplus", f"Scoring: verdicts and time against evalplus 0.3.1 ({what})", rows, samples=what)


if __name__ == "__main__":
    main()
