"""A map over worker processes.

The workers are started as plain ``python -m data_gen.parallel`` and not by ``multiprocessing``: a fork of a process
that holds jax's threads may hang, and a spawn imports the caller's main program again.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
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
    """As ``completed_map``, results alone and in the order of ``items``."""
    waiting: dict[int, Any] = {}
    following = 0
    for place, result in completed_map(factory, setup, items, workers):
        waiting[place] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def completed_map(
    factory: str, setup: Any, items: Sequence[Any], workers: int | None = None
) -> Iterator[tuple[int, Any]]:
    """(place in ``items``, result) of each item, as soon as it is there.

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
    # Some items at a time, so that a worker never waits for the parent; each result comes back on its own.
    starts = iter(range(0, len(items), CHUNK))
    lock = threading.Lock()
    ready: queue.SimpleQueue[tuple[int, Any] | BaseException | None] = queue.SimpleQueue()

    def feed(process: Process) -> None:
        try:
            while True:
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                for offset, result in enumerate(process.call(items[start : start + CHUNK])):
                    ready.put((start + offset, result))
        except BaseException as error:
            ready.put(error)
        finally:
            ready.put(None)

    with contextlib.ExitStack() as stack:
        threads = []
        for _ in range(count):
            process = Process(factory, setup)
            stack.callback(process.close)
            threads.append(threading.Thread(target=feed, args=(process,), daemon=True))
        for thread in threads:
            thread.start()
        running = count
        try:
            while running:
                result = ready.get()
                if isinstance(result, BaseException):
                    raise result
                if result is None:
                    running -= 1
                else:
                    yield result
        finally:
            with lock:
                starts = iter(())


def _load(name: str) -> Callable[[Any], Any]:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Process:
    """One worker process; see ``completed_map`` for ``factory`` and ``setup``."""

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

    def call(self, chunk: Sequence[Any]) -> Iterator[Any]:
        """The results of ``chunk``, each as soon as it is there; they must all be taken before the next call.

        Raises:
          WorkerError: the process died.
          Exception: what the function raised.
        """
        try:
            pickle.dump(list(chunk), self._process.stdin)
            self._process.stdin.flush()
            for _ in chunk:
                error, result = pickle.load(self._process.stdout)
                if error is not None:
                    raise error
                yield result
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as lost:
            raise WorkerError(f"a worker process ended with status {self._process.wait()}") from lost

    def close(self) -> None:
        """Ends the process, after the item that it is at."""
        with contextlib.suppress(BrokenPipeError, ValueError):
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
            for item in chunk:
                try:
                    reply = (None, function(item))
                except Exception as error:
                    reply = (error, None)
                try:
                    pickle.dump(reply, replies)
                    replies.flush()
                except BrokenPipeError:  # the parent was killed, or has stopped
                    os._exit(1)  # without a word: closing the pipe would complain once more
                if reply[0] is not None:
                    break


if __name__ == "__main__":
    main()
