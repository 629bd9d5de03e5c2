"""The directory of a run: where its parts lie, whose it is, and who is at work in it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


class WorkdirError(ValueError):
    """A working directory that belongs to another configuration, or that can not be written."""


class WorkdirBusyError(WorkdirError):
    """A working directory that another process is at work in."""


# Fields that may change between two calls in the same workdir: they decide what is done, not what comes out of it.
# Rows and groups of an ablation may come and go: each run has a workdir of its own that knows its config.
# Whatever the mesh, its rules and its rows, a step computes the same but for the rounding of sums.
FREE_FIELDS = re.compile(
    r"baseline|profile\.steps|wandb|checkpoint\..*|guards\.(skips|hang|divergence_every)|train\.log_every|data\.prefetch|"
    r"evaluation\.(every|data\..*)|(rows|groups)\..*|(mesh|sharding)\..*|packing\.rows_per_device"
)
EVALUATION_FILE = "evaluation.json"
METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"
SEEN_SECONDS = 5.0  # so long may what another host wrote take to be seen


@dataclasses.dataclass
class Workdir:
    """Paths of one run.

    Attributes:
      lock: keeps other runs out of it until it is closed; None in the processes that do not lead a run of several.
      mark: what the lock's file holds, by which those know it again.
    """

    path: Path
    lock: Any = None
    mark: str = ""

    def __enter__(self) -> Workdir:
        return self

    def __exit__(self, *error: object) -> None:
        if self.lock is not None:
            self.lock.close()

    def __getattr__(self, name: str) -> Path:
        places = {
            "data": "data",
            "tokenizer": "tokenizer",
            "evaluation": "evaluation",
            "baseline": "baseline",
            "baseline_evaluation": "baseline/evaluation",
            "export": "export",
            "seconds": "seconds.json",
            "made_from": "made_from.json",
            "config": CONFIG_FILE,
            "model": "model.json",
            "results": "results.json",
            "report": "report.html",
        }
        if name not in places:
            raise AttributeError(name)
        return self.path / places[name]


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(aside, path)


def read_json(path: Path) -> dict[str, Any]:
    """What ``write_json`` wrote; empty where nothing is there yet."""
    return json.loads(path.read_text()) if path.exists() else {}


def open_workdir(path: str | Path, config: ConfigDict, wait: bool = False) -> Workdir:
    """Creates the directory, or checks that it was made with this configuration; removes what a killed run left aside.

    Args:
      wait: until no other process is at work in it.

    Raises:
      WorkdirError: another configuration (names the first field that differs), or no permission.
      WorkdirBusyError: another process is at work in it.
    """
    workdir = Workdir(Path(path).absolute())
    try:
        workdir.path.mkdir(parents=True, exist_ok=True)
        workdir.lock = open(workdir.path / LOCK_FILE, "a")  # noqa: SIM115 - held until the process ends
        try:
            fcntl.flock(workdir.lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            workdir.lock.close()
            complaint = f"workdir {path} is in use by another process; wait for it or name another"
            raise WorkdirBusyError(complaint) from None
        workdir.mark = secrets.token_hex(8)
        workdir.lock.truncate(0)
        workdir.lock.write(workdir.mark)
        workdir.lock.flush()
        os.fsync(workdir.lock.fileno())
        for place in (workdir.path, workdir.baseline):
            for left in place.glob(".*.*"):  # stages write aside under such names
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        mine = flatten(json.loads(config.to_json_best_effort()))
        if workdir.config.exists():
            theirs = flatten(json.loads(workdir.config.read_text()))
            for field in sorted(mine.keys() | theirs.keys()):
                if FREE_FIELDS.fullmatch(field) or mine.get(field) == theirs.get(field):
                    continue
                raise WorkdirError(
                    f"workdir {path} belongs to another config: config.{field} is {theirs.get(field)!r} there and "
                    f"{mine.get(field)!r} now; name another --workdir or give the old value"
                )
        else:
            write_json(workdir.config, json.loads(config.to_json_best_effort()))
    except OSError as error:
        raise WorkdirError(f"workdir {path} can not be written: {error.strerror}; name another --workdir") from error
    return workdir


def see_workdir(path: str | Path, mark: str) -> Workdir:
    """The directory that another process of this run has opened, as this process sees it.

    Args:
      mark: that process's ``Workdir.mark``.

    Raises:
      WorkdirError: it is another directory.
    """
    workdir = Workdir(Path(path).absolute(), mark=mark)
    deadline = time.monotonic() + SEEN_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            os.listdir(workdir.path)  # a network's file system looks anew when a directory is opened
            if (workdir.path / LOCK_FILE).read_text() == mark:
                return workdir
        time.sleep(0.1)
    raise WorkdirError(
        f"workdir {path} is another directory here ({socket.gethostname()}:{workdir.path}) than that of process 0; "
        "name one with --workdir on a file system that all processes share"
    )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
