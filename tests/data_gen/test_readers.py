"""Problem files of every form become problems whose own references pass; errors name file, line and field."""

import gzip
import json
import os
from pathlib import Path

import pytest

from data_gen.formats import doctest_asserts, instruction_pair, recognise, spoken
from data_gen.problems import ProblemError
from data_gen.readers import read_problems
from data_gen.sandbox import Limits, Program, Sandbox, Verdict

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("RCJAX_SHARED", ROOT.parent / "shared")) / "data"
GOOD = {"prompt": "Add.", "solution": "def f(n):\n    return n\n", "tests": ["assert f(1) == 1"]}
HUMANEVAL = {
    "task_id": "HumanEval/900",
    "prompt": 'def twice(x):\n    """ Twice x.\n    >>> twice(2)\n    4\n    """\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate(1) == 2, 'no'\n    assert True\n",
    "entry_point": "twice",
}


def shared(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not at hand; set RCJAX_SHARED to run this")
    return path


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_problem_files_say_file_line_and_field(tmp_path):
    path = write(tmp_path / "p.jsonl", GOOD)
    (problem,) = read_problems(path, "jsonl")
    assert (problem.id, problem.task, problem.entry_point, problem.family) == ("1", "1", "f", "problems")
    for form, wrong, message in (
        ("jsonl", {**GOOD, "solution": 3}, r"p\.jsonl, line 2: field 'solution' must be a string"),
        ("jsonl", {**GOOD, "tests": ["f(1)"]}, "line 2: field 'tests' holds no assert"),
        ("jsonl", {"solution": "x = 1"}, "line 2: field 'prompt' is missing"),
        ("jsonl", [], "line 2: expected an object, found list"),
        ("humaneval", {**HUMANEVAL, "test": "def check(:"}, "line 2: field 'test' does not parse"),
        ("humaneval", {**HUMANEVAL, "test": "x = 1"}, r"line 2: field 'test' must define check\(candidate\)"),
        ("humaneval", {"prompt": "x", "entry_point": "f", "base_input": []}, "take the file whose name ends in -Orig"),
        ("humaneval-x", {"task_id": "Cobol/1"}, "field 'task_id' is 'Cobol/1'; it must begin with one of python"),
        ("multipl-e", {"name": "HumanEval_1_f"}, "line 2: field 'language' is missing"),
        ("mbpp", {"prompt": "x", "code": "y = 1", "test_list": []}, "line 2: field 'test_list' is empty"),
        ("instructions", {"instruction": "x", "input": 3, "output": "y"}, "line 2: field 'input' must be a string"),
        ("instructions", {"messages": [{"role": "user", "content": "x"}]}, "must begin with a user's and an assist"),
    ):
        first = {"jsonl": GOOD, "humaneval": HUMANEVAL}.get(form)
        path.write_text(f"{json.dumps(first) if first else ''}\n{json.dumps(wrong)}\n")
        with pytest.raises(ProblemError, match=message):
            read_problems(path, form)
    path.write_text("{}\n{bad\n")
    with pytest.raises(ProblemError, match="line 1: field 'prompt' is missing"):
        read_problems(path)
    write(path, GOOD).open("a").write("{bad\n")
    with pytest.raises(ProblemError, match="line 2: not valid JSON"):
        read_problems(path)
    path.write_text("")
    with pytest.raises(ProblemError, match="holds no problems"):
        read_problems(path)
    with pytest.raises(ProblemError, match="does not exist"):
        read_problems(tmp_path / "nowhere")
    (tmp_path / "p.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ProblemError, match="can not be read"):
        read_problems(tmp_path / "p.jsonl.gz")


def test_the_schema_s_other_fields(tmp_path):
    record = {**GOOD, "id": "a", "language": "C++", "tests": ["int main() {}"], "hidden_tests": ["x"], "task": "t"}
    (problem,) = read_problems(write(tmp_path / "p.jsonl", record))
    assert (problem.language, problem.hidden, problem.task) == ("cpp", ("x",), "t")
    assert problem.all_tests == ("int main() {}", "x")
    (bare,) = read_problems(write(tmp_path / "p.jsonl", {"prompt": "Do it."}))
    assert (bare.tests, bare.solution) == ((), "")


def test_humaneval_checks_become_assert_lines(tmp_path):
    path = tmp_path / "h.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode()))
    (problem,) = read_problems(path)
    assert problem.tests == ("assert twice(1) == 2",)
    assert problem.solution == HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"]
    loop = {
        **HUMANEVAL,
        "test": "def check(candidate):\n    for n in range(9):\n        assert candidate(n) == 2 * n\n",
    }
    (problem,) = read_problems(write(tmp_path / "h.jsonl", loop))
    assert problem.tests == ("assert twice(2) == 4",)  # the doctest
    assert problem.hidden[0].endswith("check(twice)")
    lists = (
        "def check(candidate):\n    inputs = [[1], [3]]\n    results = [2, 6]\n    for i, r in zip(inputs, results):\n"
    )
    plus = {**HUMANEVAL, "test": lists + "        assert candidate(*i) == r\n"}
    (problem,) = read_problems(write(tmp_path / "h.jsonl", plus))
    assert problem.tests == ("assert twice(1) == 2", "assert twice(3) == 6")


def test_doctests_that_compare_nothing_are_left_out():
    text = ">>> f(1)\n2\n>>> f(2)\nTraceback (most recent call last):\nValueError\n>>> x = f(3)\n>>> g(1)\n3\n"
    assert doctest_asserts(text, "f") == ("assert f(1) == 2",)


def test_multipl_e_tests_follow_a_whole_program(tmp_path):
    record = {"name": "HumanEval_23_strlen", "stop_tokens": [], "language": "java"}
    record["prompt"] = "import java.util.*;\nclass Problem {\n    public static long strlen(String s) {\n"
    record["tests"] = '    }\n    public static void main(String[] args) {\n    assert(strlen("x") == 1);\n    }\n\n}\n'
    (java,) = read_problems(write(tmp_path / "m.jsonl", record))
    assert java.tests[0].startswith("public class Main extends Problem {\n    public static void main")
    assert (java.task, java.entry_point, java.language) == ("humaneval/23", "strlen", "java")
    record |= {"language": "rs", "prompt": "fn f() {\n", "tests": "}\n\nfn main() {\n}\n"}
    (rust,) = read_problems(write(tmp_path / "m.jsonl", record))
    assert rust.tests == ("fn main() {\n}",)


def test_instruction_forms():
    assert instruction_pair({"instruction": "a", "input": "b", "output": "c"}, "") == ("a\nb", "c")
    assert instruction_pair({"query": "a", "answer": "c"}, "") == ("a", "c")
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]
    assert instruction_pair({"messages": chat}, "") == ("a", "c")
    with pytest.raises(ProblemError, match="line 3: field 'output' is missing"):
        instruction_pair({"instruction": "a"}, "line 3")
    assert recognise({"instruction": "a", "output": "b"}) == "instructions"
    assert spoken("Write a Rust function") == "rust"
    assert spoken("Write it", "```js\nx\n```") == "javascript"
    assert spoken("Javanese poems") == "python"


@pytest.mark.parametrize(
    ("name", "count", "language"),
    [
        ("mbpp/sanitized-mbpp.json", 427, "python"),
        ("mbpp/mbpp.jsonl", 974, "python"),
        ("mbpp_plus/MbppPlus-OriginFmt.jsonl.gz", 378, "python"),
        ("humaneval/HumanEval.jsonl.gz", 164, "python"),
        ("humaneval_x/humaneval_python.jsonl.gz", 164, "python"),
        ("humaneval_x/humaneval_cpp.jsonl.gz", 164, "cpp"),
        ("humaneval_x/humaneval_java.jsonl.gz", 164, "java"),
        ("humaneval_x/humaneval_js.jsonl.gz", 164, "javascript"),
        ("humaneval_x/humaneval_go.jsonl.gz", 164, "go"),
        ("humaneval_x/humaneval_rust.jsonl.gz", 164, "rust"),
        ("multipl_e/humaneval-cpp.jsonl", 161, "cpp"),
        ("multipl_e/humaneval-java.jsonl", 158, "java"),
        ("multipl_e/humaneval-ts.jsonl", 159, "typescript"),
        ("multipl_e/humaneval-sh.jsonl", 158, "bash"),
        ("code_instructions/code_alpaca_2k.json", 2017, None),
    ],
)
def test_published_files_are_recognised_and_read(name, count, language):
    problems = read_problems(shared(name))
    assert len(problems) == count
    assert len({problem.id for problem in problems}) == count
    if language is None:
        assert not any(problem.tests for problem in problems)
        return
    assert all(problem.language == language and problem.entry_point and problem.all_tests for problem in problems)
    assert not any("\r" in problem.solution for problem in problems)
    assert max(sum(map(len, problem.tests)) for problem in problems) < 6000  # what CODE blocks may have to show


@pytest.mark.parametrize("name", ["humaneval/HumanEval.jsonl.gz", "humaneval_x/humaneval_python.jsonl.gz"])
def test_published_references_pass_our_form_of_their_tests(name):
    with Sandbox(2, Limits(cpu_seconds=3)) as sandbox:
        problems = read_problems(shared(name))
        for problem, outcome in zip(
            problems, sandbox.map(Program(p.solution, p.all_tests) for p in problems), strict=True
        ):
            assert outcome.verdict == Verdict.PASSED, (problem.id, outcome.feedback)
            wrong = sandbox.run(Program(f"def {problem.entry_point}(*_):\n    return 'x'\n", problem.all_tests))
            assert wrong.verdict == Verdict.FAILED, problem.id
