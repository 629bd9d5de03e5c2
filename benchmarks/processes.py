"""What several processes cost: an optimizer step of 2 processes with 4 devices each against 1 process with 8.

    python -m benchmarks.processes [--rounds=5] [--steps=4]

All on the same cores of one CPU, the demo's model on data of its kind. Both are started once and compile; then they
take turns, some steps each, while the other waits without work. The same losses must come out of both.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DEVICES = 8


def work(processes: int, index: int, port: int, examples: int) -> None:
    """One process: for each line of standard input so many steps, and then a line with their seconds and losses."""
    out = os.fdopen(os.dup(1), "w")  # standard output is process 0's alone from here on
    from rcjax.distributed import Place, one_run

    place = Place(f"127.0.0.1:{port}", processes, index) if processes > 1 else None
    with one_run(place, {}):
        import jax

        from benchmarks.examples import published_shape
        from configs import tiny
        from rcjax.data.loader import BatchSettings, StepSource
        from rcjax.hf.base_model import shape_fields
        from rcjax.model import LlamaConfig
        from rcjax.sharding import make_mesh, row_shards
        from rcjax.train.loop import run_step
        from rcjax.train.program import make_curriculum, make_program, objective_of
        from rcjax.train.state import init_state

        config = tiny.get_config()
        model = LlamaConfig(**shape_fields(config.model), vocab_size=config.tokenizer.vocab_size)
        mesh = make_mesh({"data": -1})
        program = make_program(config, model, mesh, 10_000)
        objective = objective_of(config.objective)
        settings = BatchSettings(
            objective=objective,
            curriculum=make_curriculum(config.curriculum, objective),
            total_steps=10_000,
            batch_size=examples,
            row_length=config.packing.row_length,
            rows_per_microbatch=row_shards(mesh),
            normalisation=config.objective.normalisation,
            seed=config.seed,
            cuts=1,
        )
        data = published_shape(200, median=250, shortest=150, longest=380, vocab_size=model.vocab_size, seed=1)
        source = StepSource([data], [1], settings)
        with jax.set_mesh(mesh):
            state = init_state(model, program.tx, program.shardings, 0)
            sums = program.steps.zeros()
            number = 0
            for line in sys.stdin:
                losses, start = [], time.perf_counter()
                for _ in range(int(line)):
                    state, sums, metrics = run_step(program.steps, state, sums, source[number])
                    losses.append(float(metrics["loss"]))
                    number += 1
                out.write(json.dumps({"seconds": time.perf_counter() - start, "losses": losses}) + "\n")
                out.flush()


class Contestant:
    """Some processes that wait for orders."""

    def __init__(self, processes: int, examples: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = f"--xla_force_host_platform_device_count={DEVICES // processes}"
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        environment["NPROC"] = str(2 * DEVICES // processes)  # as rcjax.host_devices has it
        command = [sys.executable, "-m", "benchmarks.processes", f"--work={processes}", f"--examples={examples}"]
        self.processes = [
            subprocess.Popen(
                [*command, f"--index={index}", f"--port={port}"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(processes)
        ]

    def __call__(self, steps: int) -> dict:
        """Seconds of the slowest process, and the losses."""
        for process in self.processes:
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for process in self.processes]
        return {"seconds": max(a["seconds"] for a in answers), "losses": answers[0]["losses"]}

    def close(self) -> None:
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of a turn (default 4)")
    parser.add_argument("--examples", type=int, default=32, help="of a step (default 32)")
    for hidden in ("--work", "--index", "--port"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.work:
        work(flags.work, flags.index, flags.port, flags.examples)
        return
    from benchmarks.harness import record

    contestants = {"1 process": Contestant(1, flags.examples), "2 processes": Contestant(2, flags.examples)}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    loads = []
    for number in range(1 + flags.rounds):  # the first compiles
        found = {name: run(flags.steps) for name, run in contestants.items()}
        one, two = (found[name]["losses"] for name in contestants)
        assert all(abs(a - b) <= 1e-5 * abs(a) for a, b in zip(one, two, strict=True)), (one, two)
        loads.append(os.getloadavg()[0])
        if number:
            for name, answer in found.items():
                seconds[name].append(answer["seconds"] / flags.steps)
    for contestant in contestants.values():
        contestant.close()
    ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    rows = [
        {"": f"{name}, {DEVICES // (1 + i)} devices each", "seconds a step": statistics.median(seconds[name])}
        for i, name in enumerate(seconds)
    ]
    rows[1]["times 1 process"] = ratio
    rows[1]["load average"] = statistics.median(loads)
    claim = "an optimizer step of the demo's model on 8 CPU devices, in one process and in two"
    record("processes", claim, rows, **{k: v for k, v in vars(flags).items() if k in ("rounds", "steps", "examples")})


if __name__ == "__main__":
    main()
