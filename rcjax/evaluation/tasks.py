"""Benchmark tasks in one form for all sets, and the files that they come in."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_GZIP = b"\x1f\x8b"


class BenchmarkError(ValueError):
    """A benchmark that is unknown, not at hand or damaged; the message names the file and the mend."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of a benchmark.

    Attributes:
      id: as in the samples: "HumanEval/0", "Mbpp/2", "HumanEval_0_has_close_elements".
      prompt: what the model is given: a function head to complete, or the statement.
      language: "python", "cpp", "java", "js", "ts", "php", "sh", "rs", "go".
      entry_point: name of the function that is called, "" where there is none.
      stop: strings that end a completion.
      canonical: a whole program that solves the task, "" where none is known.
      data: what its scorer needs besides.
      kind: which scorer, a key of ``scoring.SCORERS``.
    """

    id: str
    prompt: str
    language: str
    entry_point: str
    stop: tuple[str, ...]
    canonical: str
    data: Mapping[str, Any]
    kind: str = "evalplus"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A set of tasks.

    Attributes:
      name: "humaneval", "humaneval+", "mbpp", "mbpp+", "multipl-e-cpp", ...
      version: the publisher's version where the content is known, and the SHA-256 of the content.
      tasks: id to task, in the order of the file.
      has_plus: whether there are further tests, scored apart.
    """

    name: str
    version: str
    tasks: Mapping[str, Task]
    has_plus: bool


@dataclasses.dataclass(frozen=True)
class Records:
    """The objects of a data file.

    Attributes:
      path: the file.
      rows: (place for an error text, object), in order.
      sha256: of the file's content, unpacked where it was gzipped.
    """

    path: Path
    rows: tuple[tuple[str, Mapping[str, Any]], ...]
    sha256: str


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """No garbage collection while plain values are made by the million: walking them again and again takes as long as
    reading them from JSON."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read_records(path: str | Path) -> Records:
    """Reads JSON lines or a JSON array, gzipped or not.

    Raises:
      BenchmarkError: the file is missing, damaged, empty, or holds something else; names file and line.
    """
    path = Path(path)
    content = read_content(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise BenchmarkError(f"{path} is not UTF-8 text; give the .jsonl or .jsonl.gz file of the benchmark") from None
    rows: list[tuple[str, Any]] = []
    if text.lstrip().startswith("["):
        try:
            rows = [(f"{path}, record {number}", row) for number, row in enumerate(json.loads(text), 1)]
        except ValueError as error:
            raise BenchmarkError(f"{path} is no valid JSON ({error}); fetch it again") from None
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    rows.append((f"{path}, line {number}", json.loads(line)))
                except ValueError as error:
                    raise BenchmarkError(f"{path}, line {number}: no valid JSON ({error}); fetch it again") from None
    for where, row in rows:
        if not isinstance(row, dict):
            raise BenchmarkError(f"{where}: expected an object, found {type(row).__name__}")
    if not rows:
        raise BenchmarkError(f"{path} holds no records")
    return Records(path, tuple(rows), hashlib.sha256(content).hexdigest())


def read_content(path: Path) -> bytes:
    """The bytes of a file, unpacked if they are gzipped, whatever its name.

    Raises:
      BenchmarkError: missing, unreadable, or cut short.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BenchmarkError(f"file {path} does not exist") from None
    except OSError as error:
        raise BenchmarkError(f"file {path} can not be read ({error.strerror})") from None
    if not content.startswith(_GZIP):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise BenchmarkError(f"{path} is gzipped and damaged ({error}); fetch it again") from None


def field(row: Mapping[str, Any], where: str, name: str, kind: type | tuple[type, ...] = str) -> Any:
    """``row[name]``, which must be of type ``kind``.

    Raises:
      BenchmarkError: it is missing or of another type.
    """
    if name not in row:
        raise BenchmarkError(f"{where}: field '{name}' is missing")
    value = row[name]
    if not isinstance(value, kind):
        wanted = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise BenchmarkError(f"{where}: field '{name}' is {type(value).__name__}, expected {wanted}")
    return value
