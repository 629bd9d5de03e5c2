"""Problem files: one reader a format, errors with file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_gen.problems import Problem, ProblemError

SCHEMA = """\
One JSON object a line:
  id           string, unique (default: the line's number)
  prompt       string, the statement; or prompts: list of strings, several phrasings
  solution     string, reference code
  tests        list of strings: asserts, and setup lines such as imports
  entry_point  string, the function that the tests call (default: the last function of the solution)
  task         string, problems of one task stay in one split (default: id)
  family       string, group of tasks that results are reported by (default: "problems")
"""


def read_problems(path: str | Path, form: str) -> list[Problem]:
    """The problems in a file.

    Args:
      path: the file.
      form: key of ``FORMATS``.

    Raises:
      ProblemError: the file can not be read, or a record in it is not of the form; names file, line and field.
    """
    if form not in FORMATS:
        raise ProblemError(f"--format={form} is unknown; there is {', '.join(FORMATS)}")
    problems = [FORMATS[form](record, where, number) for number, (where, record) in enumerate(_records(Path(path)), 1)]
    if not problems:
        raise ProblemError(f"{path} holds no problems")
    return problems


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place for the error text, object) of a JSON array or of JSON lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ProblemError(f"--problems: file {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(f"--problems: file {path} can not be read ({error})") from error
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except ValueError as error:
            raise ProblemError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error
        placed = [(f"{path}, record {number}", record) for number, record in enumerate(records, 1)]
    else:
        placed = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                placed.append((f"{path}, line {number}", json.loads(line)))
            except ValueError as error:
                raise ProblemError(f"{path}, line {number}: not valid JSON ({error.msg})") from error
    for where, record in placed:
        if not isinstance(record, dict):
            raise ProblemError(f"{where}: expected an object, found {type(record).__name__}")
        yield where, record


def _string(record: Mapping[str, Any], where: str, *names: str) -> str:
    """The first of the fields ``names`` that is there."""
    for name in names:
        if name in record:
            if not isinstance(record[name], str) or not record[name].strip():
                raise ProblemError(f"{where}: field '{name}' must be a string with text in it")
            return record[name]
    raise ProblemError(f"{where}: field '{names[0]}' is missing")


def _strings(record: Mapping[str, Any], where: str, name: str, default: list[str] | None = None) -> list[str]:
    value = record.get(name, default)
    if value is None:
        raise ProblemError(f"{where}: field '{name}' is missing")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ProblemError(f"{where}: field '{name}' must be a list of strings")
    return value


def _entry_point(solution: str, tests: list[str]) -> str:
    """The function of the solution that a test calls, else its last one."""
    names = re.findall(r"(?m)^def\s+(\w+)", solution)
    called = [name for name in names if any(re.search(rf"\b{name}\s*\(", test) for test in tests)]
    return (called or names or [""])[-1]


def _mbpp(record: Mapping[str, Any], where: str, number: int) -> Problem:
    """Sanitized and full MBPP: ``prompt``/``text``, ``code``, ``test_list``, ``test_imports``/``test_setup_code``."""
    statement = _string(record, where, "prompt", "text").strip()
    solution = _string(record, where, "code").replace("\r\n", "\n").replace("\r", "\n")
    tests = [test.strip() for test in _strings(record, where, "test_list")]
    if not tests:
        raise ProblemError(f"{where}: field 'test_list' is empty; a problem needs tests")
    setup = [line.strip() for line in _strings(record, where, "test_imports", [])]
    if isinstance(record.get("test_setup_code"), str) and record["test_setup_code"].strip():
        setup.append(record["test_setup_code"].replace("\r\n", "\n").strip())
    task = f"mbpp/{record.get('task_id', number)}"
    return Problem(
        id=task,
        task=task,
        family="mbpp",
        # The statement alone does not tell the function's name: as MBPP's authors do, one test stands behind it.
        prompts=(f"{statement}\nYour code should pass this test:\n{tests[0]}",),
        solution=solution,
        entry_point=_entry_point(solution, tests),
        tests=(*setup, *tests),
    )


def _jsonl(record: Mapping[str, Any], where: str, number: int) -> Problem:
    prompts = _strings(record, where, "prompts") if "prompts" in record else [_string(record, where, "prompt")]
    if not prompts:
        raise ProblemError(f"{where}: field 'prompts' is empty")
    solution = _string(record, where, "solution")
    tests = _strings(record, where, "tests")
    if not any(test.strip().startswith("assert") for test in tests):
        raise ProblemError(f"{where}: field 'tests' holds no assert; a problem needs tests")
    name = _string(record, where, "id") if "id" in record else str(number)
    return Problem(
        id=name,
        task=_string(record, where, "task") if "task" in record else name,
        family=_string(record, where, "family") if "family" in record else "problems",
        prompts=tuple(prompts),
        solution=solution,
        entry_point=(
            _string(record, where, "entry_point") if "entry_point" in record else _entry_point(solution, tests)
        ),
        tests=tuple(test.strip() for test in tests),
    )


FORMATS: dict[str, Callable[[Mapping[str, Any], str, int], Problem]] = {"mbpp": _mbpp, "jsonl": _jsonl}
