"""Problem files: JSON lines or a JSON array, gzipped or not; one function a format in ``formats.py``."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_gen.formats import FORMATS, recognise
from data_gen.problems import Problem, ProblemError

SCHEMA = """\
One JSON object a line:
  id            string, unique (default: the line's number)
  prompt        string, the statement; or prompts: list of strings, several phrasings
  solution      string, reference code (the teacher `bugs` needs it)
  tests         list of strings: asserts, and setup lines such as imports; without them the teacher must write tests
  hidden_tests  list of strings: run as well, never shown (default: none)
  entry_point   string, the function that the tests call (default: the last function of the solution)
  task          string, problems of one task stay in one split (default: id)
  family        string, group of tasks that results are reported by (default: "problems")
  language      string (default: "python"); in other languages a test is a block of code behind the program
"""


def read_problems(path: str | Path, form: str = "auto", flag: str = "--problems") -> list[Problem]:
    """The problems in a file.

    Args:
      path: the file; ``.gz`` is unpacked.
      form: key of ``FORMATS``, or ``auto``: told by the first record's fields.
      flag: named in errors about the file itself.

    Raises:
      ProblemError: the file can not be read, or a record in it is not of the form; names file, line and field.
    """
    if form not in FORMATS and form != "auto":
        raise ProblemError(f"--format={form} is unknown; there is auto, {', '.join(FORMATS)}")
    problems = []
    for number, (where, record) in enumerate(read_records(path, flag), 1):
        if form == "auto":
            form = recognise(record)
        problems.append(FORMATS[form](record, where, number))
    if not problems:
        raise ProblemError(f"{path} holds no problems")
    return problems


def read_records(path: str | Path, flag: str = "--problems") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place for the error text, object) of a JSON array or of JSON lines.

    Raises:
      ProblemError: the file can not be read, or holds something else; names file and line.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except FileNotFoundError as error:
        raise ProblemError(f"{flag}: file {path} does not exist") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ProblemError(f"{flag}: file {path} can not be read ({error})") from error
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except ValueError as error:
            raise ProblemError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error
        placed = [(f"{path}, record {number}", record) for number, record in enumerate(records, 1)]
        for where, record in placed:
            yield where, _object(record, where)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ProblemError(f"{where}: not valid JSON ({error.msg})") from error
        yield where, _object(record, where)


def _object(record: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise ProblemError(f"{where}: expected an object, found {type(record).__name__}")
    return record
