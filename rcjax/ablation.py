"""Ablations: one base config, many rows that change a little in it, several seeds of each; and what came of them.

    W/data, W/tokenizer         made once and shared
    W/runs/ROW/seed_K           a workdir as any other: config, checkpoint, metrics, evaluation; seed_0 has a profile
    W/ablations.{md,json}, W/pass_at_1.svg, W/cost.svg

A run that is finished is not made again, and one that was stopped goes on. Several processes may be given the same
command at once: each takes a run that no other is at.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rcjax.evaluation.comparison import Result, Row, compare_rows, cost_plot, markdown, rate_plot, table
from rcjax.evaluation.score import Evaluation
from rcjax.pipeline import Pipeline, last_metrics, versions
from rcjax.progress import say
from rcjax.workdir import EVALUATION_FILE, Workdir, WorkdirBusyError, open_workdir, read_json, write_json

PROFILED_STEPS = "5:8"
MEANING = "mean ± 95 % interval over seeds; differences in points, seed by seed."
REFERENCE_ROWS = ("full", "instructions")  # every other row is compared with these
POLL_SECONDS = 5.0


class AblationError(ValueError):
    """A row that does not exist or that does not go with the base; one sentence with the mend."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One row with one seed."""

    row: str
    seed: int  # 0, 1, ...: added to the base's
    directory: Path

    @property
    def done(self) -> bool:
        return (self.directory / "evaluation" / EVALUATION_FILE).exists()


def select(config: ConfigDict, wanted: Sequence[str]) -> list[str]:
    """Rows by the names of groups and rows, each once.

    Raises:
      AblationError: neither a group nor a row.
    """
    chosen: list[str] = []
    for name in wanted:
        if name in config.groups:
            chosen += config.groups[name]
        elif name in config.rows:
            chosen.append(name)
        else:
            groups = ", ".join(config.groups)
            raise AblationError(f"--rows: {name!r} is neither a group ({groups}) nor a row ({', '.join(config.rows)})")
    return list(dict.fromkeys(chosen))


def row_config(config: ConfigDict, row: str, seed: int = 0, profile_steps: str = "") -> ConfigDict:
    """The base with a row's changes.

    Args:
      config: of ``configs/ablations.py``.
      row: a key of ``config.rows``.
      seed: added to the base's seed, so that it decides parameters, batches and masks, but not the shared data.
      profile_steps: as ``config.profile.steps``.

    Raises:
      AblationError: no such row, or it changes a field that the base does not have.
    """
    if row not in config.rows:
        raise AblationError(f"there is no row {row!r}; there are {', '.join(config.rows)}")
    made = config.base.copy_and_resolve_references()
    _apply(made, config.rows[row], f"row {row}: config")
    made.seed += seed
    made.profile.steps = profile_steps
    return made


def _apply(config: ConfigDict, changes: ConfigDict, where: str) -> None:
    for field, value in changes.items():
        if field not in config:
            raise AblationError(f"{where} has no field {field!r}; there are {', '.join(config)}")
        if isinstance(value, ConfigDict) and isinstance(config[field], ConfigDict):
            _apply(config[field], value, f"{where}.{field}")
        else:
            config[field] = value.to_dict() if isinstance(value, ConfigDict) else value


def ablate(config: ConfigDict, path: str | Path, wanted: Sequence[str], seeds: int) -> dict[str, Any]:
    """Makes the missing runs and writes the comparison of all that there are; returns what ``ablations.json`` holds.

    Args:
      config: of ``configs/ablations.py``.
      path: the workdir.
      wanted: names of groups and rows.
      seeds: runs of each row.

    Raises:
      AblationError, WorkdirError, and whatever a run may raise.
    """
    rows = select(config, wanted)
    for row in rows:
        row_config(config, row)  # a mistake in the last row shows before the first is trained
    root = Path(path).absolute()
    # Seed by seed, so that a table can be made early.
    runs = [Run(row, seed, root / "runs" / row / f"seed_{seed}") for seed in range(seeds) for row in rows]
    _prepare(config, root)
    waiting = False
    while left := [run for run in runs if not run.done]:
        made = False
        for run in left:
            made |= _make(config, root, run, f"{runs.index(run) + 1} of {len(runs)}")
        if not made and not waiting:
            waiting = True
            say(f"{len(left)} runs are at work in other processes; waiting for them")
        if not made:
            time.sleep(POLL_SECONDS)
    with open_workdir(root, config, wait=True):
        return compare(root, config)


def _prepare(config: ConfigDict, root: Path) -> None:
    """Data and tokenizer, once for all rows."""
    with open_workdir(root, config, wait=True) as workdir:
        base = Pipeline(config.base, workdir)
        base.check()
        base.build_data()
        base.make_tokenizer()


def _make(config: ConfigDict, root: Path, run: Run, place: str) -> bool:
    """Trains and evaluates; False where the run is done, or another process is at it."""
    import jax

    if run.done:
        return False
    settings = row_config(config, run.row, run.seed, "" if run.seed else PROFILED_STEPS)
    try:
        workdir = open_workdir(run.directory, settings)
    except WorkdirBusyError:
        return False
    with workdir:
        if run.done:  # by another process, a moment ago
            return False
        say(f"--- run {place}: {run.row}, seed {run.seed}")
        _share(root, workdir)
        pipeline = Pipeline(settings, workdir)
        params, step = pipeline.train()
        pipeline.evaluate(params, step)
        pipeline.say_evaluation()
    jax.clear_caches()  # the next run compiles its own; these would stay in memory
    return True


def _share(root: Path, workdir: Workdir) -> None:
    """Links the data and the tokenizer of ``root``; relative, so that the whole can be moved."""
    for name in ("data", "tokenizer"):
        place = workdir.path / name
        if (root / name).exists() and not place.is_symlink():
            place.symlink_to(os.path.relpath(root / name, workdir.path))


# ---- what came of it


def compare(root: Path, config: ConfigDict) -> dict[str, Any]:
    """Writes table and plots of every finished run below ``root``; returns what ``ablations.json`` holds."""
    names = [name for group in ("paper", *config.groups) for name in config.groups[group]]
    rows = [row for row in (_read(root, name) for name in dict.fromkeys(names)) if row.results]
    there = [name for name in REFERENCE_ROWS if any(row.name == name for row in rows)]
    compared = compare_rows(rows, there)
    profiles = {row.name: root / "runs" / row.name / "seed_0" / "profile" for row in rows}
    result = {
        "num_problems": max((len(one.passed) for row in rows for one in row.results.values()), default=0),
        "rows": compared,
        "profiles": {name: os.path.relpath(place, root) for name, place in profiles.items() if place.exists()},
        "versions": versions(),
    }
    write_json(root / "ablations.json", result)
    for name, text in (("pass_at_1", rate_plot(compared)), ("cost", cost_plot(compared))):
        _write(root / f"{name}.svg", text)
    _write(root / "ablations.md", _page(result))
    return result


def _read(root: Path, name: str) -> Row:
    results = {}
    for directory in (root / "runs" / name).glob("seed_*"):
        run = Run(name, int(directory.name.removeprefix("seed_")), directory)
        if not run.done:
            continue
        last = last_metrics(directory)
        results[run.seed] = Result(
            passed={sample.problem.id: sample.passed for sample in Evaluation.load(directory / "evaluation").samples},
            tokens=int(last["computed_tokens"]),
            steps=last["step"],
            seconds=read_json(directory / "seconds.json").get("train", 0.0),
        )
    return Row(name, dict(sorted(results.items())))


def _page(result: dict[str, Any]) -> str:
    profiles = "".join(f"- {name}: `{place}`\n" for name, place in result["profiles"].items())
    return (
        f"# Ablations\n\npass@1 on {result['num_problems']} held-out problems, greedy: {MEANING}\n\n"
        f"{markdown(result['rows'])}\n![pass@1 of every row](pass_at_1.svg)\n\n![pass@1 against cost](cost.svg)\n\n"
        f"XLA profiles of steps {PROFILED_STEPS} (`pip install xprof; xprof DIRECTORY`):\n\n{profiles}"
    )


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def print_table(result: dict[str, Any]) -> None:
    """The comparison on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 140, highlight=False)
    head, *lines = table(result["rows"])
    shown = Table(*head, title=f"pass@1 on {result['num_problems']} held-out problems", caption=MEANING)
    for cells in lines:
        shown.add_row(*cells)
    console.print(shown)
