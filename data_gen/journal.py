"""The journal of an unfinished build: one line a finished problem, so that a killed build goes on where it was.

It lies beside the output, ``.NAME-journal/``, and goes when the output is whole. A line counts once it ends: a kill in
the middle of a write costs that problem and no other. A lock keeps a second build out.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_gen.job import Done
from data_gen.statistics import BuildError

SYNC_SECONDS = 1.0  # a crash of the machine, not of the process, may cost the problems of this time


class Journal:
    """What is done of one build; a context manager that holds its lock."""

    def __init__(self, output: Path, settings: Mapping[str, Any]):
        """Opens or starts the journal for ``output``.

        Raises:
          BuildError: it belongs to a build of other settings, another process is at work in it, or the place can not
            be written.
        """
        output = output.absolute()
        self.directory = output.with_name(f".{output.name}-journal")
        self._spent = 0.0
        self._usage: dict[str, float] = {}
        self._places: dict[str, tuple[int, int]] = {}  # job -> (offset, length) of its line
        self._synced = time.monotonic()
        self._writing = threading.Lock()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.directory / "lock", "w")  # noqa: SIM115 - held until close()
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                raise BuildError(
                    f"another process is building {output}; wait for it or name another --output"
                ) from None
            self._check(settings, output)
            self._file = open(self.directory / "done.jsonl", "a+b", buffering=0)  # noqa: SIM115
            self._read()
        except OSError as error:
            raise BuildError(f"output {output} can not be written ({error.strerror}); name another --output") from error

    def _check(self, settings: Mapping[str, Any], output: Path) -> None:
        path, plain = self.directory / "settings.json", json.loads(json.dumps(settings))
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            aside = path.with_suffix(".new")
            aside.write_text(json.dumps(plain), encoding="utf-8")
            os.replace(aside, path)
            return
        refuse_other(f"the unfinished build of {output}", there, plain, f"remove {self.directory}")

    def _read(self) -> None:
        data = (self.directory / "done.jsonl").read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            self._file.truncate(end)
        start = 0
        while start < end:
            stop = data.index(b"\n", start) + 1
            try:
                line = json.loads(data[start:stop])
                if "usage" in line:
                    self._add(line["usage"])
                else:
                    self._places[line["job"]] = (start, stop - start)
            except (ValueError, KeyError, TypeError) as error:
                raise BuildError(
                    f"{self.directory / 'done.jsonl'} is damaged at byte {start} ({error}); remove the directory"
                ) from error
            start = stop
        self._end = end

    def __contains__(self, job: str) -> bool:
        return job in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, job: str, done: Done) -> None:
        """Notes a finished problem.

        Raises:
          BuildError: it is noted already, or the disk is full.
        """
        if job in self._places:
            raise BuildError(f"problem {job!r} was done twice; this is a fault of the build, not of the problem")
        line = (json.dumps({"job": job, **done.to_json()}, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        self._places[job] = (self._write(line), len(line))

    def spend(self, usage: Mapping[str, float]) -> None:
        """Notes what one request cost, whether or not its problem is ever done."""
        self._write((json.dumps({"usage": dict(usage)}) + "\n").encode())
        with self._writing:
            self._add(usage)

    def _add(self, usage: Mapping[str, float]) -> None:
        for name, number in usage.items():
            self._usage[name] = self._usage.get(name, 0) + number

    @property
    def usage(self) -> dict[str, float]:
        """The sum of all that was spent, in all runs of this build."""
        return dict(self._usage)

    def _write(self, line: bytes) -> int:
        """Where the line begins. Results and spending come from threads of their own."""
        with self._writing:
            start = self._end
            self._append(line)
            return start

    def _append(self, line: bytes) -> None:
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise BuildError(
                f"journal {self.directory} can not be written ({error.strerror}); free some space and run the same "
                "command again: nothing that it holds is lost"
            ) from error
        self._end += len(line)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def read(self, jobs: Sequence[str]) -> Iterator[Done]:
        """What came of ``jobs``, in their order; those not done are left out."""
        with open(self.directory / "done.jsonl", "rb") as file:
            for job in jobs:
                if job in self._places:
                    offset, length = self._places[job]
                    file.seek(offset)
                    values = json.loads(file.read(length).decode("utf-8", "surrogatepass"))
                    del values["job"]
                    yield Done.from_json(values)

    def finished(self) -> Iterator[Done]:
        """What came of all jobs that are done, in the order in which they were."""
        return self.read(list(self._places))

    def close(self) -> None:
        """Lets go of the lock."""
        self._file.close()
        self._lock.close()

    def remove(self) -> None:
        """Throws the journal away: its output is whole, or can not be made."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def refuse_other(what: str, there: Mapping[str, Any], asked: Mapping[str, Any], mend: str) -> None:
    """Raises ``BuildError`` for the first setting in which two builds differ."""
    for name in {**asked, **there}:
        old, new = there.get(name), asked.get(name)
        if old != new:
            if name in ("problems", "prompts", "decontaminate"):
                raise BuildError(f"{what} was built from other {name}; name another --output or {mend}")
            raise BuildError(
                f"{what} was built with {name}={old!r}, now it is {new!r}; name another --output or {mend}"
            )


class Split(Sequence[dict[str, Any]]):
    """The records of one split of a journal, read anew each time they are walked through."""

    def __init__(self, journal: Journal, jobs: Sequence[str], split: str, count: int):
        self._journal, self._jobs, self._split, self._count = journal, jobs, split, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for done in self._journal.read(self._jobs):
            yield from (record for split, record in done.records if split == self._split)

    def __getitem__(self, place: Any) -> Any:
        return list(self)[place]
