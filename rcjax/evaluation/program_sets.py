"""MultiPL-E, HumanEval-X, LiveCodeBench and BigCodeBench files as benchmarks whose programs are compiled and run.

All tasks here are of kind "program"; ``data["form"]`` says how a solution becomes a program (``programs.py``):

    main      tests with an entry of their own behind the solution: it must run to their end
    tests     Go and Rust tests, run by the language's own test harness
    asserts   Python tests
    stdio     pairs of standard input and expected output
    unittest  a unittest class behind the solution, with the packages of this Python
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_gen.isolated.messages import NotPlain, load_plain
from rcjax.evaluation.python_sets import HUMANEVAL_STOP
from rcjax.evaluation.tasks import Benchmark, BenchmarkError, Records, Task, field, read_records

# Languages by the names of the benchmarks' files.
MULTIPL_E = ("cpp", "java", "js", "ts", "php", "sh", "rs", "go", "pl", "rb", "lua", "r")
HUMANEVAL_X = ("cpp", "java", "js", "go", "rust", "python")
_X_IDS = {"cpp": "CPP", "java": "Java", "js": "JavaScript", "go": "Go", "rust": "Rust", "python": "Python"}
# HumanEval-X has no stop strings; a completion holds its closing brace, so it ends where something else begins.
_X_STOP = {
    "cpp": ("\nint main", "\n#include", "\n/*"),
    "java": ("\npublic class", "\nclass ", "\nimport "),
    "js": ("\nconst test", "\nconsole.", "\nmodule.", "\n/*"),
    "go": ("\nfunc Test", "\nfunc main", "\npackage ", "\nimport "),
    "rust": ("\nfn main", "\n#[cfg(test)]", "\n#[test]"),
    "python": HUMANEVAL_STOP,
}
# What its evaluation puts before every C++ solution (CodeGeeX, execution.py).
_X_HEADERS = ("stdlib.h", "algorithm", "math.h", "stdio.h", "vector", "string", "climits", "cstring", "iostream")
X_PREFIX = {"cpp": "".join(f"#include<{header}>\n" for header in _X_HEADERS)}
# SHA-256 of released files, unpacked.
RELEASES: dict[str, str] = {
    "af420b4b58c1b5e7f4cac9c1257daad7b20b5c77e88d59ccc120e63825f03325": "THUDM HumanEval-X cpp",
    "87aba5e8ab3be26aec48a355b77c73790900ebae3731c44ea9e3fdd5ea51f1fe": "THUDM HumanEval-X go",
    "2157a77a6ff808020adc20142228b4ff698048c0696b33110786400c47c5d79c": "THUDM HumanEval-X java",
    "da529500a73fcbc86bc8f6c7855c0f2c0fc7af1c4dc530e26a54bbfd17f97cef": "THUDM HumanEval-X js",
    "f0e21637407b08a725dbc5bfcc20f909049f73564dd0d55dcc11619fa0838849": "THUDM HumanEval-X python",
    "36938439d536c34418b582db82f7bfa5d0331990424fc69b1915c5067634b4e7": "THUDM HumanEval-X rust",
    "8717eabdf202137158c84506144b0fb1e73d5ecccbe5363ec79009ca014df629": "MultiPL-E humaneval cpp of DeepSeek-Coder",
    "b21b015763452ec4f9f4e0e6425148ec331ace4da1232c8b4d441186185f6265": "MultiPL-E humaneval java of DeepSeek-Coder",
    "634e2eee8d6e22de07c121b972207683dd96be76256bf44bdfc1a3386b739287": "MultiPL-E humaneval js of DeepSeek-Coder",
    "bebd86875b1d8e65a8b7e692ed7bdf64612b44aa388825ea4dab40c7047c786b": "MultiPL-E humaneval php of DeepSeek-Coder",
    "e33f562838e973b7e6b8d76dbc1fb84b076d7426629b4cdc624f12678778d2fa": "MultiPL-E humaneval rs of DeepSeek-Coder",
    "2f702106e9ce4aa7385de568d9248d6c57c90382d782b162cb9e072fbd01ccf8": "MultiPL-E humaneval sh of DeepSeek-Coder",
    "4b1af1050c9f226335d54a8c80553c39454a525cace3e67bdcfcc9092ba02637": "MultiPL-E humaneval ts of DeepSeek-Coder",
}
_LCB_STOP = ("\n```", "\n###")
_BCB_STOP = ("\n```", "\nif __name__", "\nclass TestCases", "\nimport unittest")


def read_multipl_e(name: str, path: Path | None) -> Benchmark:
    """``multipl-e-LANG``: a JSON-lines file with prompt, tests and stop_tokens, or the Hub's table.

    Raises:
      BenchmarkError: no such file, another language, or a field that is missing.
    """
    language = name.rsplit("-", 1)[1]
    records = _records(path, "nuprl/MultiPL-E", f"humaneval-{language}/*.parquet", f"humaneval-{language}.jsonl")

    def task(row: Mapping[str, Any], where: str) -> Task:
        written = field(row, where, "language").split("_")[0]  # Go's is "go_test.go"
        if written != language:
            raise BenchmarkError(
                f"{where}: language {written!r}, but {name} was asked for; give the file of {language}"
            )
        prompt, tests = field(row, where, "prompt"), field(row, where, "tests")
        return Task(
            id=field(row, where, "name"),
            prompt=prompt,
            language=language,
            entry_point="",
            stop=_strings(row, where, "stop_tokens"),
            canonical="",
            data={
                "form": "tests" if "testing.T)" in tests else "main",
                "tests": tests,
                "prefix": "",
                "set": "multipl-e",
            },
            kind="program",
        )

    return _benchmark(name, records, task)


def read_humaneval_x(name: str, path: Path | None) -> Benchmark:
    """``humaneval-x-LANG``: THUDM's JSON lines, with canonical solutions.

    Raises:
      BenchmarkError: no such file, another language, or a field that is missing.
    """
    language = name.rsplit("-", 1)[1]
    hub = ("THUDM/humaneval-x", f"data/{language}/data/humaneval.jsonl", f"humaneval_{language}.jsonl.gz")
    records = _records(path, *hub)

    def task(row: Mapping[str, Any], where: str) -> Task:
        identifier = field(row, where, "task_id")
        if identifier.split("/")[0] != _X_IDS[language]:
            raise BenchmarkError(f"{where}: task_id {identifier!r} is none of {name}; give the file of {language}")
        prompt, tests = field(row, where, "prompt"), field(row, where, "test")
        if language == "rust":  # the prompt is the comment alone
            prompt += field(row, where, "declaration")
        data: dict[str, Any] = {
            "form": "main",
            "tests": tests,
            "prefix": X_PREFIX.get(language, ""),
            "set": "humaneval-x",
        }
        if language == "python":
            data |= {"form": "asserts", "tests": (tests,)}
        elif language in ("go", "rust"):
            data |= {"form": "tests", "prefix": field(row, where, "test_setup") + "\n" if language == "go" else ""}
        return Task(
            id=identifier,
            prompt=prompt,
            language=language,
            entry_point="",
            stop=_X_STOP[language],
            canonical=prompt + field(row, where, "canonical_solution"),
            data=data,
            kind="program",
        )

    return _benchmark(name, records, task)


def read_livecodebench(name: str, path: Path | None) -> Benchmark:
    """``livecodebench``: programs that read standard input, and methods of a class ``Solution``, in Python.

    Raises:
      BenchmarkError: no such file, or a field that is missing or damaged.
    """
    records = _records(path, "livecodebench/code_generation_lite", "*.parquet", "test6.jsonl")

    def task(row: Mapping[str, Any], where: str) -> Task:
        cases = [
            *_cases(row.get("public_test_cases") or "[]", where, "public_test_cases"),
            *_cases(row.get("private_test_cases") or "[]", where, "private_test_cases"),
        ]
        if not cases:
            raise BenchmarkError(f"{where}: neither 'public_test_cases' nor 'private_test_cases' holds a test")
        starter, question = row.get("starter_code") or "", field(row, where, "question_content")
        metadata = _json(row.get("metadata") or "{}", where, "metadata")
        function = metadata.get("func_name") or ""
        called = any(case.get("testtype") == "functional" for case in cases)
        if called and not function:
            raise BenchmarkError(f"{where}: field 'metadata' names no 'func_name', and the tests call a function")
        data: dict[str, Any] = {"set": "livecodebench", "starter": starter}
        if called:
            data |= {"form": "asserts", "tests": tuple(_call(function, case, where) for case in cases)}
        else:
            data |= {"form": "stdio", "cases": tuple((str(case["input"]), str(case["output"])) for case in cases)}
        return Task(
            id=str(field(row, where, "question_id", (str, int))),
            prompt=question + (f"\n\n{starter}" if starter else ""),
            language="python",
            entry_point=function,
            stop=_LCB_STOP,
            canonical="",
            data=data,
            kind="program",
        )

    return _benchmark(name, records, task)


def read_bigcodebench(name: str, path: Path | None) -> Benchmark:
    """``bigcodebench``: functions that use packages, with a unittest class ``TestCases`` each.

    Raises:
      BenchmarkError: no such file, or a field that is missing.
    """
    records = _records(path, "bigcode/bigcodebench", "data/v0.1.4-*.parquet", "BigCodeBench.jsonl")

    def task(row: Mapping[str, Any], where: str) -> Task:
        prompt = field(row, where, "complete_prompt")
        tests = field(row, where, "test")
        if "class TestCases" not in tests:
            raise BenchmarkError(f"{where}: field 'test' holds no class TestCases")
        libraries = row.get("libs") or "[]"
        if isinstance(libraries, str):
            libraries = _json(libraries.replace("'", '"'), where, "libs")
        return Task(
            id=field(row, where, "task_id"),
            prompt=prompt,
            language="python",
            entry_point=field(row, where, "entry_point"),
            stop=_BCB_STOP,
            canonical=prompt + field(row, where, "canonical_solution"),
            data={"form": "unittest", "tests": tests, "libs": tuple(libraries), "set": "bigcodebench"},
            kind="program",
        )

    return _benchmark(name, records, task)


# ---- parts


def _records(path: Path | None, repository: str, pattern: str, otherwise: str) -> Records:
    if path is not None:
        return read_records(path)
    from rcjax.evaluation.hub_sets import fetch_records

    return fetch_records(repository, pattern, otherwise)


def _benchmark(name: str, records: Records, make: Callable[[Mapping[str, Any], str], Task]) -> Benchmark:
    tasks: dict[str, Task] = {}
    for where, row in records.rows:
        task = make(row, where)
        if task.id in tasks:
            raise BenchmarkError(f"{where}: task {task.id!r} comes twice; fetch the file again")
        tasks[task.id] = task
    version = f"{RELEASES.get(records.sha256, '')} sha256:{records.sha256}".strip()
    return Benchmark(name=name, version=version, tasks=tasks, has_plus=False)


def _strings(row: Mapping[str, Any], where: str, name: str) -> tuple[str, ...]:
    found = field(row, where, name, list)
    if not all(isinstance(text, str) for text in found):
        raise BenchmarkError(f"{where}: field '{name}' must be a list of strings")
    return tuple(found)


def _json(text: Any, where: str, name: str) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError as error:
        raise BenchmarkError(f"{where}: field '{name}' is no valid JSON ({error})") from None


def _cases(text: Any, where: str, name: str) -> list[Mapping[str, Any]]:
    """Test cases; the private ones may be JSON that was pickled, compressed and written in base 64."""
    if isinstance(text, str) and not text.lstrip().startswith("["):
        try:
            # A pickle of one string. Read by an unpickler that knows nothing else: data files run no code here.
            text = load_plain(zlib.decompress(base64.b64decode(text)))
        except (NotPlain, ValueError, zlib.error) as error:
            raise BenchmarkError(f"{where}: field '{name}' is neither JSON nor packed JSON ({error})") from None
    cases = _json(text, where, name)
    if not isinstance(cases, list) or not all(
        isinstance(case, dict) and {"input", "output"} <= set(case) for case in cases
    ):
        raise BenchmarkError(f"{where}: field '{name}' must be a list of objects with 'input' and 'output'")
    return cases


def _call(function: str, case: Mapping[str, Any], where: str) -> str:
    """One assertion on a method of ``Solution``; its arguments are JSON, a line each. Tuples count as lists."""
    try:
        arguments = [json.loads(line) for line in case["input"].split("\n") if line.strip()]
        expected = json.loads(case["output"])
    except (ValueError, AttributeError) as error:
        raise BenchmarkError(f"{where}: a test's input or output is no JSON ({error})") from None
    called = f"Solution().{function}({', '.join(map(repr, arguments))})"
    return f"assert (lambda found: list(found) if isinstance(found, tuple) else found)({called}) == {expected!r}"


PROGRAM_SETS: dict[str, Callable[[str, Path | None], Benchmark]] = {
    **{f"multipl-e-{language}": read_multipl_e for language in MULTIPL_E},
    **{f"humaneval-x-{language}": read_humaneval_x for language in HUMANEVAL_X},
    "livecodebench": read_livecodebench,
    "bigcodebench": read_bigcodebench,
}
