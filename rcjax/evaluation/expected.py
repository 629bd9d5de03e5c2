"""Expected outputs of a benchmark: what its canonical programs return, and how long they take.

They are computed once, in the sandbox, and kept in a cache under the checksum of the data: RCJAX_CACHE, by default
``~/.cache/rcjax``. The file is the user's own (mode 600), lies where no program in the sandbox sees it, and is checked
against the digests in its head when it is read.
"""

from __future__ import annotations

import array
import dataclasses
import functools
import hashlib
import itertools
import json
import mmap
import os
import pickle
import queue
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from data_gen.call_frames import HEADER, OUTPUT, TRACEBACK, OutOfTime
from data_gen.call_sandbox import Call, CallWorker, Judge, packed
from data_gen.isolated.evalplus_rules import rule_of
from rcjax import progress as console
from rcjax.evaluation.tasks import Benchmark, BenchmarkError, Task

FORMAT = 3
MEMORY_MB = 8192
SECONDS = 1800.0  # for one canonical program on all its inputs
SUITES = ("base", "plus")
_MAGIC = b"rcjaxexp"
_COLUMNS = {"seconds": "d", "ends": "Q", "same": "B", "floats": "B"}  # codes of ``array``
_BATCH = 1024  # outputs that the judge is asked about at a time


@dataclasses.dataclass(frozen=True)
class SuiteOutputs:
    """Expected outputs on the base or plus inputs of a task.

    Attributes:
      seconds: what the canonical program took for each input.
      ends: where each output ends among the suite's frames.
      same: whether the same bytes are right: not so for an output that does not equal itself (nan).
      floats: whether the output is of floats, after which evalplus compares with a tolerance.
      offset: where the frames lie in the file.
      sha256: of their bytes.
    """

    seconds: Sequence[float]
    ends: Sequence[int]
    same: Sequence[int]
    floats: Sequence[int]
    offset: int
    sha256: str


class Expected:
    """A cache file: magic, length of the head, head (JSON), the columns of ``_COLUMNS`` for all inputs, and outputs as
    the frames in which programs send them (``data_gen/call_frames.py``)."""

    def __init__(self, path: Path):
        """Raises ValueError or OSError for a file that is none, or that was cut short."""
        self.path = path
        with open(path, "rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ValueError("another kind of file")
            size = struct.unpack("<I", file.read(4))[0]
            head = json.loads(file.read(size))
            columns = {name: array.array(code) for name, code in _COLUMNS.items()}
            for column in columns.values():
                column.frombytes(file.read(head["inputs"] * column.itemsize))
            if head["columns"] != _digest(columns):
                raise ValueError("altered")
            body = file.tell()
            if file.seek(0, os.SEEK_END) != body + head["bytes"]:
                raise ValueError("cut short")
            # Shared by all that score at the same time, and none of it copied.
            self._content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._checked: set[tuple[str, str]] = set()
        self._suites = {}
        for task_id, suites in head["tasks"].items():
            for suite, (first, count, offset, sha256) in suites.items():
                own = {name: column[first : first + count] for name, column in columns.items()}
                self._suites[task_id, suite] = SuiteOutputs(**own, offset=body + offset, sha256=sha256)

    def suite(self, task_id: str, suite: str) -> SuiteOutputs:
        """What is known of the outputs beside them."""
        return self._suites[task_id, suite]

    def frames(self, task_id: str, suite: str) -> memoryview:
        """All outputs of a suite, each in a frame, not checked: what equals them was not altered."""
        outputs = self._suites[task_id, suite]
        return self._content[outputs.offset : outputs.offset + (outputs.ends[-1] if outputs.ends else 0)]

    def content(self, task_id: str, suite: str, index: int) -> memoryview:
        """One output as bytes of ``data_gen.isolated.outputs``.

        Raises:
          BenchmarkError: the file was altered since it was written.
        """
        outputs, frames = self._suites[task_id, suite], self.frames(task_id, suite)
        if (task_id, suite) not in self._checked:
            if hashlib.sha256(frames).hexdigest() != outputs.sha256:
                raise BenchmarkError(
                    f"{self.path} was altered: outputs of {task_id} have another digest; delete the file"
                )
            self._checked.add((task_id, suite))
        start = outputs.ends[index - 1] if index else 0
        return frames[start + HEADER.size : outputs.ends[index]]


def _digest(columns: dict[str, array.array]) -> str:
    return hashlib.sha256(b"".join(column.tobytes() for column in columns.values())).hexdigest()


def inputs_of(task: Task) -> dict[str, Sequence[Any]]:
    """Suite to inputs."""
    return {suite: task.data[f"{suite}_input"] for suite in SUITES}


def cache_directory() -> Path:
    """Where expected outputs are kept."""
    root = os.environ.get("RCJAX_CACHE")
    return Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rcjax"


def expected_outputs(
    benchmark: Benchmark, workers: int | None = None, progress: Callable[..., Any] = console.progress
) -> Expected:
    """The expected outputs of all tasks of kind "evalplus", from the cache or computed now.

    Raises:
      BenchmarkError: a canonical program fails on an input, or the cache can not be written.
      SandboxError: the sandbox does not work here.
    """
    tasks = [task for task in benchmark.tasks.values() if task.kind == "evalplus"]
    key = json.dumps(
        [FORMAT, benchmark.name, benchmark.version, sys.version, metadata.version("numpy"), [t.id for t in tasks]]
    )
    path = cache_directory() / "expected" / f"{benchmark.name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.outputs"
    try:
        return _opened(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        path.unlink(missing_ok=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        body = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            _compute(tasks, body, path, workers or len(os.sched_getaffinity(0)), progress)
        finally:
            body.unlink(missing_ok=True)
        return Expected(path)
    except OSError as error:
        raise BenchmarkError(
            f"expected outputs can not be kept in {path.parent} ({error.strerror}); set RCJAX_CACHE to another place"
        ) from None


@functools.lru_cache(maxsize=4)
def _opened(path: Path, written: int) -> Expected:
    """The cache file as it was ``written``; asked for twice by every scoring."""
    return Expected(path)


def _compute(tasks: Sequence[Task], body: Path, path: Path, workers: int, progress: Callable[..., Any]) -> None:
    """Writes the outputs to ``body``, then the file whole to ``path``."""
    todo: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        todo.put(task)
    inputs = packed({task.id: inputs_of(task) for task in tasks})
    head: dict[str, dict[str, Any]] = {}
    columns = {name: array.array(code) for name, code in _COLUMNS.items()}
    lock, failures = threading.Lock(), []

    def work() -> None:
        worker, judge = CallWorker(inputs), Judge()
        try:
            while not failures:
                try:
                    task = todo.get_nowait()
                except queue.Empty:
                    return
                for suite in SUITES:
                    frames, fields = record(worker, judge, task, suite)
                    with lock:
                        place = len(columns["ends"]), len(frames), file.tell()
                        file.writelines(frames)
                        for name, column in columns.items():
                            column.extend(fields[name])
                        head.setdefault(task.id, {})[suite] = *place, fields["sha256"]
                with lock:
                    bar.advance(1)
        except BaseException as error:
            failures.append(error)
        finally:
            worker.close()
            judge.close()

    with (
        progress("computing expected outputs, once", total=len(tasks), unit="tasks") as bar,
        open(os.open(body, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w+b") as file,
    ):
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(tasks)))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:
            failures.append(error)
            raise
        if failures:
            raise failures[0]
        size = file.tell()
        file.seek(0)
        aside = path.with_name(f".{path.name}.{os.getpid()}.whole")
        counts = {"bytes": size, "inputs": len(columns["ends"]), "columns": _digest(columns)}
        text = json.dumps(counts | {"tasks": head}).encode()
        try:
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as whole:
                whole.write(_MAGIC + struct.pack("<I", len(text)) + text)
                whole.writelines(columns.values())
                while part := file.read(1 << 22):
                    whole.write(part)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def record(worker: CallWorker, judge: Judge, task: Task, suite: str) -> tuple[list[bytes], dict[str, Any]]:
    """Outputs of the canonical program as frames, and the fields of their ``SuiteOutputs``.

    Raises:
      BenchmarkError: the program fails.
    """
    inputs, rule = task.data[f"{suite}_input"], rule_of(task.data["family"], task.entry_point)
    call = Call(
        source=task.canonical,
        task=task.id,
        suites=(suite,),
        entry_point=task.entry_point,
        rule=rule,
        seconds=[SECONDS] * len(inputs),
        memory_mb=MEMORY_MB,
        record=True,
    )
    seconds, contents, failure = [], [], "it ended early"
    try:
        for kind, content in worker.run(call, SECONDS):
            if kind == OUTPUT:
                seconds.append(struct.unpack_from("<d", content)[0])
                contents.append(bytes(content[8:]))
            elif kind == TRACEBACK:
                failure = json.loads(content)["type"]
    except OutOfTime:
        failure = f"no result within {SECONDS:g} s"
    if len(contents) != len(inputs):
        raise BenchmarkError(
            f"the canonical program of {task.id} fails on {suite} input {len(contents) + 1} of {len(inputs)} "
            f"({failure}); the data file is damaged, or of a version for another Python"
        )
    same, floats = [], []
    for items in _batches(inputs, contents, rule, task.data["atol"]):
        for right, atol, _ in judge.compare(items, SECONDS):
            same.append(int(right and rule != "root"))
            floats.append(int(atol != task.data["atol"]))
    frames = [HEADER.pack(OUTPUT, len(content)) + content for content in contents]
    return frames, {
        "seconds": seconds,
        "ends": list(itertools.accumulate(map(len, frames))),
        "same": same,
        "floats": floats,
        "sha256": hashlib.sha256(b"".join(frames)).hexdigest(),
    }


def _batches(inputs: Sequence[Any], contents: Sequence[bytes], rule: str, atol: float) -> Iterator[list[tuple]]:
    for start in range(0, len(contents), _BATCH):
        pairs = zip(inputs[start : start + _BATCH], contents[start : start + _BATCH], strict=True)
        yield [(rule, pickle.dumps(list(arguments), 5), content, content, atol) for arguments, content in pairs]
