"""Questions of many threads, put to a model a batch at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

PAUSE = 0.05  # seconds that a batch waits for one more question


class Batcher:
    """A context manager; its thread is the only one that runs the model."""

    def __init__(self, run: Callable[[Sequence[Any]], Sequence[Any]], size: int):
        """``run``: questions -> answers in their order, at most ``size`` at a time."""
        self._run, self._size = run, size
        self._waiting: queue.Queue[tuple[Any, Future[Any]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._serve, name="batches", daemon=True)
        self.batches: list[int] = []  # sizes, for those who want to know

    def ask(self, question: Any) -> Any:
        """The answer; raises what ``run`` raised for its batch."""
        future: Future[Any] = Future()
        self._waiting.put((question, future))
        return future.result()

    def _serve(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < self._size:
                try:
                    following = self._waiting.get(timeout=PAUSE)
                except queue.Empty:
                    break
                if following is None:
                    self._waiting.put(None)
                    break
                batch.append(following)
            self.batches.append(len(batch))
            try:
                answers = self._run([question for question, _ in batch])
            except BaseException as error:
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)

    def __enter__(self) -> Batcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()
