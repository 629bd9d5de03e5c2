"""The loop: failed attempts really failed, feedback is real, the last program passes."""

import random
from collections import Counter

import pytest

from data_gen.families import family_problems
from data_gen.mutations import normalize
from data_gen.problems import Problem
from data_gen.reflection import SUCCESS, conversation, reflect
from data_gen.sandbox import Limits, Program, Sandbox, Verdict
from data_gen.teachers import Attempt
from data_gen.teachers.bugs import BugTeacher
from data_gen.teachers.code_blocks import fenced
from data_gen.templates import TemplateError, load_templates
from rcjax.blocks import BlockType

TEMPLATES = load_templates()


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(1, Limits(cpu_seconds=1.0)) as pool:
        yield pool


@pytest.fixture(scope="module")
def traces(sandbox):
    found = []
    for problem in family_problems(40, seed=9, workers=1):
        counts = Counter()
        trace = reflect(problem, BugTeacher(TEMPLATES), sandbox.run, random.Random(1), rounds=3, shown=1, counts=counts)
        if not isinstance(trace, str):
            found.append((problem, trace, counts))
    return found


def test_most_problems_give_a_trace_and_some_have_several_rounds(traces):
    assert len(traces) >= 36
    assert {trace.failed for _, trace, _ in traces} >= {1, 2}


def test_every_attempt_but_the_last_failed_and_the_last_is_the_reference(traces, sandbox):
    for problem, trace, _ in traces:
        assert all(made.outcome.verdict != Verdict.PASSED for made in trace.rounds[:-1])
        assert trace.rounds[-1].attempt.code == problem.solution
        assert sandbox.run(Program(trace.rounds[-1].attempt.code, problem.tests)).verdict == Verdict.PASSED


def test_blocks_hold_the_program_that_was_run_and_its_real_feedback(traces, sandbox):
    for problem, trace, _ in traces[:15]:
        example = conversation(
            "x", problem, problem.prompts[0], trace, fenced(problem.solution), TEMPLATES, random.Random(0)
        )
        assert [message.role for message in example.messages] == ["user", "assistant", "user", "assistant"]
        blocks = example.messages[1].blocks
        kinds = [BlockType.TEXT, BlockType.CODE, BlockType.EXECUTION]
        assert [block.type for block in blocks] == kinds * (trace.failed + 1)
        for code, feedback in zip(blocks[1::3], blocks[2::3], strict=True):
            again = sandbox.run(Program(code.content))
            assert (again.feedback.rstrip("\n") or SUCCESS) == feedback.content
        answer = example.messages[3].blocks[0].content
        assert answer == f"```python\n{problem.solution.rstrip()}\n```"
        assert problem.prompts[0] in example.messages[0].blocks[0].content
        assert problem.prompts[0] == example.messages[2].blocks[0].content


def test_reflections_speak_of_what_was_seen(traces):
    grounded = total = 0
    for _, trace, _ in traces:
        for made, after in zip(trace.rounds[:-1], trace.rounds[1:], strict=True):
            text, last = after.attempt.text, made.outcome.feedback.strip().split("\n")[-1]
            assert 4 <= len(text.split()) <= 40, text
            assert not any(mark in text for mark in ("{seen}", "{Seen}", "{fault}", "{mend}"))
            total += 1
            if made.outcome.error == "AssertionError":
                grounded += any(word in text.lower() for word in ("expected", "wants", "returned", "wrong", "failed"))
            elif made.outcome.error in ("SyntaxError", "IndentationError"):
                grounded += "syntax" in text or "parse" in text
            else:
                grounded += made.outcome.error in text or "time" in text or "end" in text or last in text
    assert grounded == total


def test_endless_attempt_becomes_ordinary_feedback(sandbox):
    class Endless:
        name = "endless"
        needs_reference = False
        tries = 1

        def attempt(self, problem, rng, rounds):
            return Attempt("try", "def f(n):\n    while True:\n        pass\n")

        def reflect_and_correct(self, problem, attempt, outcome, rng):
            return Attempt("it did not end", problem.solution)

    problem = Problem("p", "p", "p", ("p",), "def f(n):\n    return n\n", "f", ("assert f(1) == 1",))
    counts = Counter()
    trace = reflect(problem, Endless(), sandbox.run, random.Random(0), rounds=1, shown=1, counts=counts)
    assert trace.failed == 1
    assert trace.rounds[0].outcome.feedback == "TimeoutError: no result within 1 s\n"
    assert counts == {"failed: TimeoutError": 1}


def test_a_program_that_passes_with_a_known_fault_is_no_solution(sandbox):
    problem = Problem("p", "p", "p", ("p",), "def f(n):\n    return n + 1\n", "f", ("assert f(1) > -9",))
    counts = Counter()
    trace = reflect(problem, BugTeacher(TEMPLATES), sandbox.run, random.Random(2), rounds=1, shown=1, counts=counts)
    assert isinstance(trace, str) or trace.rounds[-1].attempt.code == normalize(problem.solution)
    assert any(name.startswith("passed: ") for name in counts)


def test_prompt_files_can_be_replaced_and_are_checked(tmp_path):
    (tmp_path / "thought.txt").write_text("Hm.\n---\nWell.\n")
    assert load_templates(tmp_path).texts["thought"] == ("Hm.", "Well.")
    assert load_templates(tmp_path).texts["problem"] == TEMPLATES.texts["problem"]
    (tmp_path / "problem.txt").write_text("Please.\n")
    with pytest.raises(TemplateError, match=r"problem.txt: every text in it must hold \{problem\}"):
        load_templates(tmp_path)
    (tmp_path / "problem.txt").write_text("{problem} {who}\n")
    with pytest.raises(TemplateError, match=r"\{who\} is unknown; it may hold \{problem\}"):
        load_templates(tmp_path)
    with pytest.raises(TemplateError, match="does not exist"):
        load_templates(tmp_path / "nowhere")


def test_braces_in_a_problem_stay_as_they_are():
    text = "Return {} or {'a': 1} or {problem}."
    assert TEMPLATES.fill("problem", random.Random(0), problem=text) == text
