"""The directory of an evaluation while it is at work: whose it is, and what is generated so far.

``evaluation.json`` says which model and settings the directory belongs to. ``journal/BENCHMARK.jsonl`` holds one line a
finished sample, handed to the operating system at once, so that a killed run loses at most what was being generated.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rcjax.workdir import read_json, write_json

IDENTITY_FILE = "evaluation.json"
JOURNALS = "journal"
_FORMAT = 1

Key = tuple[str, int, int]


class OutputError(ValueError):
    """An output directory that can not be used; the message names it, what differs, and the mend."""


class OutputDirectory:
    """An output directory, locked for this process until it is closed.

    Args:
      path: made if it is missing.
      identity: what every sample in it depends on, flat: name to JSON value.

    Raises:
      OutputError: it belongs to another model or other settings (names the first that differs), holds other files, is
        in use, or can not be written.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]):
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            owner = self.path / IDENTITY_FILE
            if not owner.exists() and any(entry.name != ".lock" for entry in self.path.iterdir()):
                raise OutputError(f"--output={path} holds other files and no evaluation; name a new directory")
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until it is closed
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                raise OutputError(
                    f"--output={path} is in use by another process; wait for it or name another"
                ) from None
            for left in self.path.glob(".*.*"):  # files are written aside under such names
                left.unlink()
            if owner.exists():
                self._check(read_json(owner), identity)
            else:
                write_json(owner, {"format": _FORMAT, **identity})
                (self.path / JOURNALS).mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"--output={path} can not be written ({error.strerror}); name another") from error
        except ValueError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{owner} can not be read ({error}); name another --output") from error

    def _check(self, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
        if theirs.get("fingerprint") != mine.get("fingerprint"):
            raise OutputError(
                f"--output={self.path} holds the evaluation of another model: {theirs.get('model')!r} with fingerprint "
                f"{_short(theirs.get('fingerprint'))} there, {mine.get('model')!r} with {_short(mine['fingerprint'])} "
                "now; name another --output"
            )
        for name in mine:
            if name != "model" and theirs.get(name) != mine[name]:
                raise OutputError(
                    f"--output={self.path} holds an evaluation with another {name}: {theirs.get(name)!r} there, "
                    f"{mine[name]!r} now; name another --output or give the old value"
                )

    def journal(self, benchmark: str, identity: Mapping[str, Any]) -> Journal:
        """The journal of a benchmark; see ``Journal``."""
        return Journal(self.path / JOURNALS / f"{benchmark}.jsonl", identity)

    def close(self) -> None:
        """Lets other processes at it."""
        self._lock.close()

    def __enter__(self) -> OutputDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Journal:
    """Finished samples of one benchmark by (task id, number of the sample, round).

    Args:
      path: read if it exists.
      identity: of the benchmark and its prompts.

    Raises:
      OutputError: the file is that of another benchmark version or of other prompts, or damaged elsewhere than in its
        last line, which a kill may have cut short.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]):
        self.entries: dict[Key, dict[str, Any]] = {}
        identity = {"format": _FORMAT, **identity}
        kept = 0
        if path.exists():
            content = path.read_bytes()
            kept = content.rfind(b"\n") + 1
            for number, line in enumerate(content[:kept].splitlines(), 1):
                try:
                    row = json.loads(line)
                    if number == 1:
                        self._check(path, row, identity)
                    else:
                        self.entries[row["task_id"], row["number"], row["round"]] = row
                except (ValueError, KeyError, TypeError) as error:
                    if isinstance(error, OutputError):
                        raise
                    raise OutputError(f"{path} line {number} is damaged; delete that line") from None
        self._file = open(path, "ab")  # noqa: SIM115 - lives as long as the journal
        self._file.truncate(kept)
        if not kept:
            self._write(identity)

    @staticmethod
    def _check(path: Path, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
        for name in mine:
            if theirs.get(name) != mine[name]:
                raise OutputError(
                    f"{path} was written with another {name}: {theirs.get(name)!r} there, {mine[name]!r} now; name "
                    "another --output"
                )

    def add(self, entry: Mapping[str, Any]) -> None:
        """Appends a finished sample: ``task_id``, ``number``, ``round`` and whatever else belongs to it."""
        self._write(entry)
        self.entries[entry["task_id"], entry["number"], entry["round"]] = dict(entry)

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _short(fingerprint: Any) -> str:
    return str(fingerprint)[:12]


def replace_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8", errors="replace")
    os.replace(aside, path)
