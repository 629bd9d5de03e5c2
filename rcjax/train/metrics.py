"""The run's metrics on disk: ``metrics.jsonl`` and TensorBoard events beside it.

One flat JSON object a line, ``{"step": 40, "loss": 0.71, ...}``, strictly valid JSON: a value that is not finite is
written as ``null`` (TensorBoard's event keeps the NaN or infinity itself). Steps rise, but for lines of evaluations,
which are written when those are finished. Every line is handed to the operating system before ``write`` returns, so a
killed process leaves at most its last line cut short. On a full disk lines wait in memory.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import math
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rcjax.data.tfrecord import framed
from rcjax.progress import say

METRICS_FILE = "metrics.jsonl"


class MetricsError(ValueError):
    """A metrics file that can not be read; the message names file, line and mend."""


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of a metrics file in order; what was not finite is None. A missing file has no rows.

    Args:
      path: the file, or the workdir that holds it.

    Raises:
      MetricsError: a line other than an unfinished last one is not a JSON object with an integer ``step``.
    """
    path = Path(path)
    if path.is_dir():
        path = path / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise ValueError
        except ValueError:
            if number == len(lines):  # no newline behind it: the process was killed while it wrote
                break
            raise MetricsError(
                f"{path} line {number} is not a JSON object with an integer 'step'; delete that line"
            ) from None
        rows.append(row)
    return rows


class MetricsWriter:
    """Appends metrics of one run; use from one process of a multi-host run and close it in the end.

    Args:
      workdir: directory of ``metrics.jsonl`` and the event files; made if missing.
      resume_step: the last step that is kept of an earlier run in the same directory, the step of the
        checkpoint that training goes on from. None starts anew: earlier metrics are dropped.
      wandb: a run of Weights & Biases (``wandb_run``) that gets the same numbers.

    Raises:
      MetricsError: the earlier file is damaged elsewhere than in its last line.
    """

    def __init__(self, workdir: str | os.PathLike[str], resume_step: int | None = None, wandb: Any = None):
        # Late: it costs 0.3 s and is not needed to read metrics.
        from tensorboard.compat.proto import event_pb2, summary_pb2

        self._wandb = wandb
        self._event_pb2, self._summary_pb2 = event_pb2, summary_pb2
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / METRICS_FILE
        kept = [] if resume_step is None else [row for row in read_metrics(path) if row["step"] <= resume_step]
        aside = path.with_suffix(".jsonl.tmp")
        aside.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        os.replace(aside, path)
        self._last_step = max((row["step"] for row in kept), default=None)
        self._file = _Appended(path)
        resumed = _wait_to_sort_last(workdir)
        now = time.time()
        self._events = _Appended(workdir / f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}")
        self._add_event(event_pb2.Event(wall_time=now, file_version="brain.Event:2"))
        if resumed:
            # Readers drop what earlier event files say about this step and later ones.
            first = 0 if resume_step is None else resume_step + 1
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add_event(event_pb2.Event(wall_time=time.time(), step=first, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line and one TensorBoard event.

        Args:
          step: optimizer step; not before the last one written.
          values: name to host number (Python or numpy scalar). A device array works but waits for the device.

        Raises:
          ValueError: ``step`` goes back, or ``values`` holds the key ``step``.
          TypeError: a value is no number.
        """
        step = int(step)
        if self._last_step is not None and step < self._last_step:
            raise ValueError(f"metrics of step {step} come after those of step {self._last_step}")
        self.write_late(step, values)
        self._last_step = step

    def write_late(self, step: int, values: Mapping[str, float]) -> None:
        """As ``write``, for values that took longer to find: ``step`` may lie before the last one written."""
        if "step" in values:
            raise ValueError("metrics hold the key 'step'; the step is an argument of its own")
        numbers = {key: _number(key, value) for key, value in values.items()}
        self._file.add(_line({"step": step, **numbers}).encode())
        summary = self._summary_pb2.Summary(
            value=[
                self._summary_pb2.Summary.Value(tag=key, simple_value=_float32(value)) for key, value in numbers.items()
            ]
        )
        self._add_event(self._event_pb2.Event(wall_time=time.time(), step=step, summary=summary))
        if self._wandb is not None:
            self._wandb.log({"step": step, **numbers})

    def _add_event(self, event: Any) -> None:
        self._events.add(framed(event.SerializeToString()))

    def close(self) -> None:
        """Closes all files; may be called twice."""
        if not self._file.closed:
            self._file.close()
            self._events.close()
            if self._wandb is not None:
                self._wandb.finish()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NoMetrics:
    """A ``MetricsWriter`` of a process that does not lead: it writes nothing."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def write_late(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class _Appended:
    """A file to which whole lines or records are appended. Those that find no room wait for some."""

    def __init__(self, path: Path):
        self._path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the writer
        self._waiting: list[bytes] = []
        self._told = False

    @property
    def closed(self) -> bool:
        return self._file.closed

    def add(self, part: bytes) -> None:
        self._waiting.append(part)
        while self._waiting:
            end = os.fstat(self._file.fileno()).st_size
            try:
                written = self._file.write(self._waiting[0])
                if written < len(self._waiting[0]):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                os.ftruncate(self._file.fileno(), end)  # no half of it
                if not self._told:
                    say(f"WARNING: {self._path} can not be written ({error.strerror}); metrics wait for room")
                    self._told = True
                return
            del self._waiting[0]
        self._told = False

    def close(self) -> None:
        self._file.close()


def _wait_to_sort_last(workdir: Path) -> bool:
    """Whether ``workdir`` has event files; sleeps until a new one has a later name than they.

    Readers take event files by name, which holds the second they were made in and then the process id.
    """
    seconds = [int(path.name.split(".")[3]) for path in workdir.glob("events.out.tfevents.[0-9]*")]
    if seconds and max(seconds) == int(time.time()):
        time.sleep(1.001 - time.time() % 1)
    return bool(seconds)


def wandb_run(project: str, workdir: Path, config: Mapping[str, Any]) -> Any:
    """A run of Weights & Biases, the same one whenever the workdir is; None where ``project`` is empty.

    Raises:
      MetricsError: the package is not installed.
    """
    if not project:
        return None
    if importlib.util.find_spec("wandb") is None:
        raise MetricsError(f"config.wandb is {project!r}, but wandb is not installed: pip install wandb")
    import wandb

    # Its own step would refuse late lines of evaluations; ours travels as a value.
    name = re.sub(r"[^A-Za-z0-9_-]", "-", workdir.name)
    run = wandb.init(
        project=project,
        name=name,
        id=f"{name}-{hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:8]}",
        dir=str(workdir),
        config=dict(config),
        resume="allow",
    )
    run.define_metric("*", step_metric="step")
    return run


def _number(key: str, value: Any) -> int | float:
    """``value`` as a Python int or float."""
    if isinstance(value, bool | np.bool_ | str | bytes):
        raise TypeError(f"metric {key!r} is {value!r}, expected a number")
    if isinstance(value, int | np.integer):
        return int(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"metric {key!r} is {value!r}, expected a number") from None


def _float32(value: int | float) -> float:
    """Largest float32 for finite values beyond it: the protobuf field refuses none but would store infinity."""
    limit = float(np.finfo(np.float32).max)
    return max(-limit, min(limit, value)) if math.isfinite(value) else float(value)


def _line(row: Mapping[str, Any]) -> str:
    """One line of ``metrics.jsonl``."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
