"""Problems in other languages: published references pass, and a chat teacher's traces of them hold."""

import dataclasses
import json

import pytest

pytest.importorskip("data_gen.languages", reason="this version runs Python only")

from data_gen.build import build
from data_gen.checking import LanguageError, assembled, run_language
from data_gen.problems import Problem
from data_gen.readers import read_problems
from data_gen.sandbox import Limits, Program, Verdict
from data_gen.teachers.choice import TeacherOptions
from data_gen.validate import validate
from tests.data_gen.chat_server import ChatServer
from tests.data_gen.test_build import records
from tests.data_gen.test_readers import shared


def need(language):
    try:
        run_language(language, "", Limits())
    except LanguageError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["cpp", "java", "js", "rust", "go"])
def test_references_of_humaneval_x_pass_our_form_of_their_tests(name):
    problems = read_problems(shared(f"humaneval_x/humaneval_{name}.jsonl.gz"))
    need(problems[0].language)
    for problem in problems[:3]:
        source = assembled(Program(problem.solution, problem.all_tests), problem.language)
        outcome = run_language(problem.language, source, Limits())
        assert outcome.verdict == Verdict.PASSED, (problem.id, outcome.feedback)


def test_traces_in_another_language_hold(tmp_path):
    need("bash")
    test = '[[ $(add 1 2) = "3" ]] || exit 1\n[[ $(add 5 5) = "10" ]] || exit 1'
    problem = Problem("sh/1", "sh/1", "x", ("Add two numbers in bash.",), "", "add", (test,), "bash")
    right, wrong = (f"add() {{\n  echo $(($1 {sign} $2))\n}}\n" for sign in "+-")

    def script(number, body):
        users = [message for message in body["messages"] if message["role"] == "user"]
        return f"So.\n```bash\n{wrong if len(users) == 1 else right}```"

    with ChatServer(script) as server:
        options = TeacherOptions(model="m", base_url=server.url)
        statistics = build([problem], tmp_path / "out", teacher="openai", heldout=0, options=options, workers=1)
    assert statistics.languages == {"bash": 2}
    (record,) = records(tmp_path / "out")["reflection"]
    assert record["language"] == "bash"
    assert record["solution"] == right
    assert json.loads(record["messages"])[1]["content"][1]["content"].endswith(test)
    report = validate(tmp_path / "out", 0, workers=1)
    assert report.failures == []
    assert report.counts["rounds with the same feedback"] == 2


def test_a_language_that_is_not_here_is_counted(tmp_path):
    problem = Problem("x", "x", "x", ("p",), "", "f", ("t",), "brainfuck")
    known = dataclasses.replace(problem, id="y", task="y", language="python", tests=("assert f(1, 2) == 3",))
    with ChatServer() as server:
        options = TeacherOptions(model="m", base_url=server.url)
        script = server.script
        server.script = lambda number, body: script(number, body).replace(
            "```python", "```brainfuck" if "brainfuck" in str(body) else "```python"
        )
        statistics = build([problem, known], tmp_path / "out", teacher="openai", heldout=0, options=options, workers=1)
    assert any("brainfuck" in reason for reason in statistics.problems)
