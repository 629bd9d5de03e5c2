"""An ordered map over worker processes.

The workers are started as plain ``python -m data_gen.parallel`` and not by ``multiprocessing``: a fork of a process
that holds jax's threads may hang, and a spawn imports the caller's main program again.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

SMALL = 24  # so few items are not worth a process of their own
CHUNK = 8


class WorkerError(RuntimeError):
    """A worker process ended; what it said stands on stderr."""


def usable_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def ordered_map(factory: str, setup: Any, items: Sequence[Any], workers: int | None = None) -> Iterator[Any]:
    """Results in the order of ``items``.

    Args:
      factory: "module:name" of a function ``setup -> context manager`` whose value is a function ``item -> result``.
        Both results and errors must pickle.
      setup: its argument, the same in every worker.
      items: what to map; results of a deterministic function do not depend on ``workers``.
      workers: number of processes, the number of usable CPUs if None, fewer for few items.

    Raises:
      WorkerError: a worker process died.
      Exception: whatever the function raises.
    """
    count = max(1, min(workers or usable_cpus(), -(-len(items) // SMALL)))
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    with contextlib.ExitStack() as stack:
        free: collections.deque[_Process] = collections.deque()
        for _ in range(count):
            process = _Process(factory, setup)
            stack.callback(process.close)
            free.append(process)

        def work(chunk: Sequence[Any]) -> list[Any]:
            process = free.popleft()
            try:
                return process.call(chunk)
            finally:
                free.append(process)

        pool = stack.enter_context(ThreadPoolExecutor(count))
        waiting: collections.deque[Future[list[Any]]] = collections.deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(work, chunk))
                if len(waiting) > 4 * count:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _load(name: str) -> Callable[[Any], Any]:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


class _Process:
    def __init__(self, factory: str, setup: Any):
        root = str(Path(__file__).resolve().parent.parent)
        paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "data_gen.parallel"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # The order of sets of strings follows the hash seed, and mutants may depend on it: fixed, so that
            # the same build gives the same records.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"},
        )
        pickle.dump((factory, setup), self._process.stdin)
        self._process.stdin.flush()

    def call(self, chunk: Sequence[Any]) -> list[Any]:
        try:
            pickle.dump(list(chunk), self._process.stdin)
            self._process.stdin.flush()
            error, results = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError) as lost:
            raise WorkerError(f"a worker process ended with status {self._process.wait()}") from lost
        if error is not None:
            raise error
        return results

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def main() -> None:
    """Serves one parent until its end of the pipe closes."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the function prints must not mix with the replies
    requests = sys.stdin.buffer
    factory, setup = pickle.load(requests)
    with _load(factory)(setup) as function:
        while True:
            try:
                chunk = pickle.load(requests)
            except EOFError:
                return
            try:
                reply = (None, [function(item) for item in chunk])
            except Exception as error:
                reply = (error, [])
            try:
                pickle.dump(reply, replies)
                replies.flush()
            except BrokenPipeError:  # the parent was killed
                os._exit(1)  # without a word: closing the pipe would complain once more


if __name__ == "__main__":
    main()
