"""The forms of problem files: a record and its place in, a ``Problem`` out.

Every function here raises ``ProblemError`` with the place and the field that is wrong.
"""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Callable, Mapping
from typing import Any

from data_gen.problems import Problem, ProblemError

# Spellings of languages in the files -> our names.
LANGUAGE_NAMES = {
    "py": "python", "python3": "python", "c++": "cpp", "cc": "cpp", "js": "javascript", "node": "javascript",
    "ts": "typescript", "rs": "rust", "sh": "bash", "shell": "bash", "golang": "go", "cs": "csharp", "c#": "csharp",
    "rb": "ruby", "pl": "perl",
}  # fmt: skip
TITLES = {"cpp": "C++", "csharp": "C#", "javascript": "JavaScript", "typescript": "TypeScript", "php": "PHP"}
LISTED = 7  # of evalplus's inputs, asserts that may be shown
LONG = 600  # characters of test code that are too many to be shown in every CODE block

# evalplus's tests ask numpy for one comparison; the sandbox's interpreter has the standard library alone.
NUMPY_STAND_IN = """\
class np:
    class ndarray:
        dtype = None
    float64 = float32 = float
    @staticmethod
    def allclose(a, b, rtol=1e-05, atol=1e-08):
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
            return len(a) == len(b) and all(np.allclose(x, y, rtol, atol) for x, y in zip(a, b))
        return a == b or abs(a - b) <= atol + rtol * abs(b)
"""


def title(language: str) -> str:
    """The language's name in a sentence."""
    return TITLES.get(language, language.capitalize())


def language_name(text: str) -> str:
    """Our name for a language that a file spells its own way."""
    text = text.strip().lower()
    return LANGUAGE_NAMES.get(text, text)


# ---- fields


def string(record: Mapping[str, Any], where: str, *names: str) -> str:
    """The first of the fields ``names`` that is there."""
    for name in names:
        if name in record:
            if not isinstance(record[name], str) or not record[name].strip():
                raise ProblemError(f"{where}: field '{name}' must be a string with text in it")
            return record[name]
    raise ProblemError(f"{where}: field '{names[0]}' is missing")


def strings(record: Mapping[str, Any], where: str, name: str, default: list[str] | None = None) -> list[str]:
    """A field that is a list of strings."""
    value = record.get(name, default)
    if value is None:
        raise ProblemError(f"{where}: field '{name}' is missing")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ProblemError(f"{where}: field '{name}' must be a list of strings")
    return value


def _optional(record: Mapping[str, Any], where: str, name: str, default: str) -> str:
    return string(record, where, name) if name in record else default


def _entry_point(solution: str, tests: list[str]) -> str:
    """The function of the solution that a test calls, else its last one."""
    names = re.findall(r"(?m)^def\s+(\w+)", solution)
    called = [name for name in names if any(re.search(rf"\b{name}\s*\(", test) for test in tests)]
    return (called or names or [""])[-1]


def _complete(prompt: str, language: str) -> str:
    return f"Complete this {title(language)} function.\n```{language}\n{prompt.strip()}\n```"


# ---- formats


def _mbpp(record: Mapping[str, Any], where: str, number: int) -> Problem:
    """MBPP, sanitized or full, and MBPP+ in its original form: ``prompt``/``text``, ``code``, ``test_list`` ..."""
    statement = string(record, where, "prompt", "text").strip()
    solution = string(record, where, "code").replace("\r\n", "\n").replace("\r", "\n")
    tests = [test.strip() for test in strings(record, where, "test_list")]
    if not tests:
        raise ProblemError(f"{where}: field 'test_list' is empty; a problem needs tests")
    setup = [line.strip() for line in strings(record, where, "test_imports", [])]
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
        hidden=(_without_numpy(string(record, where, "test")),) if "test" in record else (),
    )


def _jsonl(record: Mapping[str, Any], where: str, number: int) -> Problem:
    """Our own schema, ``readers.SCHEMA``."""
    prompts = strings(record, where, "prompts") if "prompts" in record else [string(record, where, "prompt")]
    if not prompts:
        raise ProblemError(f"{where}: field 'prompts' is empty")
    language = language_name(_optional(record, where, "language", "python"))
    solution = _optional(record, where, "solution", "")
    tests = strings(record, where, "tests", [])
    if "tests" in record and language == "python" and not any(test.strip().startswith("assert") for test in tests):
        raise ProblemError(f"{where}: field 'tests' holds no assert; a problem needs tests")
    name = _optional(record, where, "id", str(number))
    return Problem(
        id=name,
        task=_optional(record, where, "task", name),
        family=_optional(record, where, "family", "problems"),
        prompts=tuple(prompts),
        solution=solution,
        entry_point=_optional(record, where, "entry_point", _entry_point(solution, tests)),
        tests=tuple(test.strip() for test in tests),
        language=language,
        hidden=tuple(strings(record, where, "hidden_tests", [])),
    )


def _humaneval(record: Mapping[str, Any], where: str, number: int) -> Problem:
    """HumanEval and HumanEval+ in its original form: ``prompt``, ``canonical_solution``, ``test``, ``entry_point``."""
    if "test" not in record and "base_input" in record:
        raise ProblemError(f"{where}: field 'test' is missing; take the file whose name ends in -OriginFmt")
    prompt, entry = string(record, where, "prompt"), string(record, where, "entry_point")
    tests, hidden = _check_function(string(record, where, "test"), entry, prompt, where)
    name = _optional(record, where, "task_id", f"HumanEval/{number}")
    return Problem(
        id=name,
        task=name,
        family="humaneval",
        prompts=(_complete(prompt, "python"),),
        solution=prompt + record["canonical_solution"] if "canonical_solution" in record else "",
        entry_point=entry,
        tests=tests,
        hidden=hidden,
    )


def _humaneval_x(record: Mapping[str, Any], where: str, number: int) -> Problem:
    """HumanEval-X: ``declaration``, ``canonical_solution`` and ``test`` of six languages, told by ``task_id``."""
    name = string(record, where, "task_id")
    language = language_name(name.partition("/")[0])
    if language not in _X_TESTS:
        raise ProblemError(f"{where}: field 'task_id' is {name!r}; it must begin with one of {', '.join(_X_TESTS)}")
    prompt, declaration = string(record, where, "prompt"), string(record, where, "declaration")
    head = prompt
    if language == "rust":  # the statement is a comment; crates that are not the standard library's are left out
        declaration = re.sub(r"(?m)^use (rand|regex|md5)\b.*\n", "", declaration)
        declaration = declaration.replace(", ascii::AsciiExt", "")
        head = prompt + declaration
    solution = head + string(record, where, "canonical_solution")
    if language == "go":
        solution = "package main\n\n" + solution
    entry = _declared(declaration, language)
    tests = _X_TESTS[language](string(record, where, "test"), record)
    hidden: tuple[str, ...] = ()
    if language == "python":
        tests, hidden = _check_function(record["test"], entry, prompt, where)
    return Problem(
        id=name,
        task=f"humaneval/{name.partition('/')[2]}",  # one task in all languages
        family=f"humaneval-{language}",
        prompts=(_complete(head, language),),
        solution=solution,
        entry_point=entry,
        tests=tests,
        language=language,
        hidden=hidden,
    )


def _declared(declaration: str, language: str) -> str:
    """The function whose head ends ``declaration``."""
    pattern = r"\bdef (\w+)" if language == "python" else r"(\w+)(?:<[^>]*>)?\s*(?:=\s*)?\("
    lines = [line for line in declaration.split("\n") if re.search(pattern, line)]
    return re.findall(pattern, lines[-1])[0] if lines else ""


def _multipl_e(record: Mapping[str, Any], where: str, number: int) -> Problem:
    """MultiPL-E: ``name``, ``language``, ``prompt``, ``tests``. There is no reference solution in it.

    The published tests go on where a body ends: they close the function, and in Java the class. Ours follow a whole
    program, which a teacher writes.
    """
    name = string(record, where, "name")
    language = language_name(string(record, where, "language"))
    prompt, tests = string(record, where, "prompt"), string(record, where, "tests", "test")
    body = re.sub(r"\A\s*\}[ \t]*\n", "", tests)
    if language in ("java", "csharp") and (owner := re.search(r"\bclass (\w+)", prompt)):
        # What is left opens inside the class: it becomes the body of one that inherits the static methods.
        head = f"public class Main extends {owner[1]}" if language == "java" else f"class Program : {owner[1]}"
        body = f"{head} {{\n{body}"
    task = re.match(r"(HumanEval|mbpp)_(\d+)_(\w+)", name)
    return Problem(
        id=f"{name}/{language}",
        task=f"{task[1].lower()}/{task[2]}" if task else name,
        family=f"multipl-e-{language}",
        prompts=(_complete(prompt, language),),
        solution="",
        entry_point=task[3] if task else "",
        tests=(body.strip("\n"),),
        language=language,
    )


def _instructions(record: Mapping[str, Any], where: str, number: int) -> Problem:
    """A plain instruction without tests: CodeAlpaca, Evol-CodeAlpaca, CodeFeedback, chat messages."""
    prompt, answer = instruction_pair(record, where, answered=False)
    name = str(record.get("id", f"instruction/{number}"))
    declared = record.get("lang", record.get("language"))
    return Problem(
        id=name,
        task=name,
        family="instructions",
        prompts=(prompt,),
        solution="",
        entry_point="",
        tests=(),
        language=language_name(declared) if isinstance(declared, str) and declared.strip() else spoken(prompt, answer),
    )


def instruction_pair(record: Mapping[str, Any], where: str, answered: bool = True) -> tuple[str, str]:
    """(instruction, answer) of a record of a code-instruction set; the answer may be "" unless ``answered``.

    The forms: ``instruction``, ``input``, ``output`` (CodeAlpaca), ``instruction`` and ``output`` or ``response``
    (Evol-CodeAlpaca), ``query`` and ``answer`` (CodeFeedback), ``messages`` of role and content (first exchange).
    """
    if "messages" in record:
        messages = record["messages"]
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise ProblemError(f"{where}: field 'messages' must be a list of objects with role and content")
        turns = [message for message in messages if message.get("role") != "system"]
        if [turn.get("role") for turn in turns[:2]] != ["user", "assistant"]:
            raise ProblemError(f"{where}: field 'messages' must begin with a user's and an assistant's message")
        for place, turn in enumerate(turns[:2]):
            if not isinstance(turn.get("content"), str) or not turn["content"].strip():
                raise ProblemError(f"{where}: field 'messages[{place}].content' must be a string with text in it")
        return turns[0]["content"].strip(), turns[1]["content"].strip()
    prompt = string(record, where, "instruction", "query", "problem", "prompt").strip()
    given = record.get("input", "")
    if not isinstance(given, str):
        raise ProblemError(f"{where}: field 'input' must be a string")
    if given.strip():
        prompt = f"{prompt}\n{given.strip()}"
    names = ("output", "response", "answer", "solution")
    if not answered and not any(isinstance(record.get(name), str) and record[name].strip() for name in names):
        return prompt, ""
    return prompt, string(record, where, *names).strip()


def spoken(prompt: str, answer: str = "") -> str:
    """The language that an instruction speaks of: its answer's first fence, else its words, else Python."""
    fence = re.search(r"(?m)^```(\S+)[ \t]*$", answer)
    if fence:
        return language_name(fence[1])
    words = {"c++": "cpp", "javascript": "javascript", "typescript": "typescript", "java": "java", "rust": "rust",
             "golang": "go", "bash": "bash", "php": "php", "c#": "csharp", "ruby": "ruby"}  # fmt: skip
    said = set(re.findall(r"[a-z+#]+", prompt.lower()))
    return next((name for word, name in words.items() if word in said), "python")


# ---- tests


def _without_numpy(test: str) -> str:
    return re.sub(r"(?m)^import numpy as np$", lambda _: NUMPY_STAND_IN.rstrip(), test)


def _check_function(test: str, entry: str, prompt: str, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(shown, hidden) tests of HumanEval's ``def check(candidate)``.

    A body of asserts becomes assert lines of our own; another one stays whole, hidden behind the prompt's doctests
    where there are some or it is long.
    """
    try:
        tree = ast.parse(test)
    except SyntaxError as error:
        raise ProblemError(f"{where}: field 'test' does not parse ({error.msg}, its line {error.lineno})") from error
    checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if len(checks) != 1 or len(checks[0].args.args) != 1:
        raise ProblemError(f"{where}: field 'test' must define check(candidate)")
    called = checks[0].args.args[0].arg
    setup, asserts = [], []
    for node in tree.body:
        call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        metadata = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "METADATA"
        if node is not checks[0] and not call and not metadata:
            setup.append(ast.unparse(node))
    for node in checks[0].body:
        if isinstance(node, ast.Assert):
            node.msg = None  # "got ..., expected ..." tells more than "Test 1"
            true = isinstance(node.test, ast.Constant) and node.test.value is True
            if not true:
                asserts.append(re.sub(rf"\b{called}\b", entry, ast.unparse(node)))
        elif not (isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))):
            break
    else:
        if asserts and sum(map(len, setup)) < LONG:
            return (*setup, *asserts), ()
    whole = f"{_without_numpy(test).strip()}\ncheck({entry})"
    shown = _listed_asserts(checks[0], entry) or doctest_asserts(prompt, entry)
    return (shown, (whole,)) if shown or len(whole) > LONG else ((whole,), ())


def _listed_asserts(check: ast.FunctionDef, entry: str) -> tuple[str, ...]:
    """evalplus's form, literal lists ``inputs`` and ``results``: the first few as asserts."""
    lists = {}
    for node in check.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                lists[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                return ()
    pairs = zip(lists.get("inputs", ()), lists.get("results", ()), strict=False)
    asserts = (f"assert {entry}({', '.join(map(repr, given))}) == {wanted!r}" for given, wanted in pairs)
    return tuple(line for line in asserts if len(line) <= LONG // 3)[:LISTED]


def doctest_asserts(text: str, entry: str) -> tuple[str, ...]:
    """The examples of a docstring as asserts; those that do not compare a call with a literal are left out."""
    try:
        examples = doctest.DocTestParser().get_examples(re.sub(r"\"\"\"|'''", "\n\n", text))
    except ValueError:
        return ()
    asserts = []
    for example in examples:
        source, want = example.source.strip(), example.want.strip()
        try:
            ast.literal_eval(want)
            ast.parse(source, mode="eval")
        except (SyntaxError, ValueError):
            continue
        if f"{entry}(" in source:
            asserts.append(f"assert {source} == {want}")
    return tuple(asserts)


def _javascript_tests(test: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    # console.assert only prints; a test must fail.
    throws = 'console.assert = (holds, ...what) => { if (!holds) throw new Error(["check failed", ...what].join(" ")) }'
    return (f"{throws}\n{test.strip()}",)


def _rust_tests(test: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    """A module for ``cargo test`` -> the same functions called by ``main``."""
    names = re.findall(r"#\[test\]\s*fn (\w+)", test)
    body = re.sub(r"#\[test\]\s*fn ", "pub fn ", test.replace("#[cfg(test)]", ""))
    calls = "".join(f"    tests::{name}();\n" for name in names)
    return (f"{body.strip()}\n\nfn main() {{\n{calls}}}",)


def _go_tests(test: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    """A function for ``go test`` with testify -> ``main`` with a comparison of its own, standard library only."""
    names = re.findall(r"func (Test\w+)\(", test)
    body = re.sub(r"func (Test\w+)\(t \*testing\.T\)", r"func \1()", test)
    body = re.sub(r"(?m)^\s*assert := assert\.New\(t\)\n", "", body).replace("assert.Equal(", "assertEqual(")
    helper = (
        "func assertEqual(expected, got interface{}, _ ...interface{}) {\n"
        '\tif e, g := checkfmt.Sprintf("%#v", expected), checkfmt.Sprintf("%#v", got); e != g {\n'
        '\t\tpanic("got " + g + ", expected " + e)\n\t}\n}\n'
    )
    calls = "".join(f"\t{name}()\n" for name in names)
    return (f'import checkfmt "fmt"\n\n{helper}\n{body.strip()}\n\nfunc main() {{\n{calls}}}',)


def _same_tests(test: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    return (test.strip("\n"),)


_X_TESTS: dict[str, Callable[[str, Mapping[str, Any]], tuple[str, ...]]] = {
    "python": _same_tests,
    "cpp": _same_tests,
    "java": _same_tests,
    "javascript": _javascript_tests,
    "go": _go_tests,
    "rust": _rust_tests,
}

FORMATS: dict[str, Callable[[Mapping[str, Any], str, int], Problem]] = {
    "mbpp": _mbpp,
    "jsonl": _jsonl,
    "humaneval": _humaneval,
    "humaneval-x": _humaneval_x,
    "multipl-e": _multipl_e,
    "instructions": _instructions,
}


def recognise(record: Mapping[str, Any]) -> str:
    """The format that a record's fields speak of; ``jsonl`` where they speak of no other."""
    fields = record.keys()
    if "test_list" in fields:
        return "mbpp"
    if {"declaration", "canonical_solution"} <= fields:
        return "humaneval-x"
    if {"prompt", "entry_point"} <= fields and fields & {"test", "canonical_solution", "base_input"}:
        return "humaneval"
    if {"prompt", "language", "stop_tokens"} <= fields:
        return "multipl-e"
    if fields & {"instruction", "query", "messages"}:
        return "instructions"
    return "jsonl"
