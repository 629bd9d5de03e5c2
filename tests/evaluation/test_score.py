"""Scoring with the real sandbox, and the evaluation on disk."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen.sandbox import Limits, Verdict
from rcjax.evaluation.pass_at_k import wilson_interval
from rcjax.evaluation.problems import Problem
from rcjax.evaluation.score import (
    EVALUATION_FILE,
    SAMPLES_FILE,
    Evaluation,
    EvaluationError,
    evaluate,
    extract_code,
    score,
    write_results,
)

LIMITS = Limits(cpu_seconds=0.3, wall_seconds=3.0, memory_mb=256)


def problem(name: str, family: str = "numbers") -> Problem:
    return Problem(
        id=f"{name}/0",
        task=name,
        family=family,
        prompt=f"Write `{name}(x)` that doubles x.",
        tests=(f"assert {name}(2) == 4", f"assert {name}(-1) == -2"),
        entry_point=name,
        solution=f"def {name}(x):\n    return 2 * x\n",
    )


def fenced(code: str) -> str:
    return f"```python\n{code}```"


# name of the problem -> (family, generation, verdict, error)
CASES = {
    "right": ("numbers", fenced("def right(x):\n    return x + x\n"), Verdict.PASSED, ""),
    "wrong": ("numbers", fenced("def wrong(x):\n    return x * x\n"), Verdict.FAILED, "AssertionError"),
    "chatty": ("words", "Sure:\n" + fenced("def chatty(x):\n    return 2 * x\n") + "\nDone.", Verdict.PASSED, ""),
    "absent": ("words", "I can not.", Verdict.FAILED, "SyntaxError"),
    "endless": ("words", fenced("def endless(x):\n    while True:\n        pass\n"), Verdict.TIMEOUT, None),
    "empty": ("words", "", Verdict.FAILED, "NameError"),
    "quitter": ("exit", fenced("import os\nos._exit(0)\n"), Verdict.CRASHED, None),
}


@pytest.fixture(scope="module")
def evaluation():
    problems = [problem(name, family) for name, (family, *_) in CASES.items()]
    answers = {p.prompt: CASES[p.task][1] for p in problems}
    asked = []

    def generate(prompts):
        asked.append(prompts)
        return [answers[prompt] for prompt in prompts]

    result = evaluate(problems, generate, LIMITS)
    assert asked == [[p.prompt for p in problems]], "the model is asked once, for everything"
    return result


def test_every_sample_gets_the_verdict_of_its_run(evaluation):
    assert [sample.problem.task for sample in evaluation.samples] == list(CASES)
    for sample in evaluation.samples:
        _, generation, verdict, error = CASES[sample.problem.task]
        assert (sample.generation, sample.verdict) == (generation, verdict), sample
        assert error is None or sample.error == error
    wrong = evaluation.samples[1]
    assert "AssertionError" in wrong.feedback
    assert wrong.code == "def wrong(x):\n    return x * x\n"


def test_figures_follow_from_the_verdicts(evaluation):
    summary = evaluation.summary()
    assert summary["pass@1"] == pytest.approx(2 / 7) == evaluation.pass_at(1)
    assert (summary["passed"], summary["num_problems"], summary["num_samples"]) == (2, 7, 7)
    assert summary["interval"] == list(wilson_interval(2 / 7, 7))
    assert summary["verdicts"] == {"passed": 2, "failed": 3, "timeout": 1, "memory": 0, "crashed": 1}
    assert list(summary["by_family"]) == ["exit", "numbers", "words"]
    assert summary["by_family"]["numbers"]["pass@1"] == 0.5
    assert summary["by_family"]["words"]["num_problems"] == 4
    assert summary["errors"]["AssertionError"] == 1
    assert set(evaluation.seconds) == {"generate", "execute"}


def test_several_samples_of_a_problem_give_pass_at_k():
    right, wrong = CASES["right"][1], fenced("def right(x):\n    return 0\n")
    problems = [problem("right")] * 3 + [problem("chatty")] * 3
    result = score(problems, [right, wrong, wrong, "", "", ""], LIMITS)
    assert [sample.number for sample in result.samples] == [0, 1, 2, 0, 1, 2]
    assert result.num_problems == 2
    assert result.pass_at(1) == pytest.approx(1 / 6)
    assert result.pass_at(2) == pytest.approx((2 / 3 + 0) / 2)
    assert result.pass_at(3) == 0.5
    with pytest.raises(ValueError, match="draw more samples"):
        result.pass_at(4)


def test_evaluation_comes_back_from_disk(evaluation, tmp_path):
    directory = tmp_path / "stages" / "evaluation"
    evaluation.save(directory)
    assert Evaluation.load(directory) == evaluation
    assert sorted(os.listdir(directory)) == [EVALUATION_FILE, SAMPLES_FILE]
    assert os.listdir(directory.parent) == ["evaluation"], "nothing is left aside"
    rows = [json.loads(line) for line in (directory / SAMPLES_FILE).read_text().splitlines()]
    assert rows == evaluation.to_json()["samples"]
    assert rows[1]["verdict"] == "failed"
    evaluation.save(directory)  # an evaluation that runs again replaces the old one
    assert Evaluation.load(directory) == evaluation


@pytest.mark.parametrize(
    ("name", "content"),
    [(EVALUATION_FILE, "{"), (EVALUATION_FILE, "{}"), (SAMPLES_FILE, ""), (SAMPLES_FILE, "3\n"), (SAMPLES_FILE, None)],
)
def test_a_damaged_evaluation_is_named_with_its_mend(evaluation, tmp_path, name, content):
    evaluation.save(tmp_path / "e")
    path = tmp_path / "e" / name
    path.write_text(content) if content is not None else path.unlink()
    with pytest.raises(EvaluationError, match=rf"{name} can not be read .*evaluate again"):
        Evaluation.load(tmp_path / "e")


def test_results_file_has_the_agreed_form(evaluation, tmp_path):
    seconds = {"data": 1.23456, "train": 60.0}
    path = tmp_path / "results.json"
    written = write_results(path, evaluation, baseline=evaluation, export=tmp_path / "export", seconds=seconds)
    results = json.loads(path.read_text())
    assert results == written
    assert results["pass@1"] == results["baseline"]["pass@1"] == evaluation.pass_at(1)
    assert results["num_problems"] == 7
    assert len(results["interval"]) == 2
    assert results["export"] == str(tmp_path / "export")
    assert results["seconds"] == {"data": 1.235, "train": 60.0}
    assert "baseline" not in write_results(path, evaluation)


@pytest.mark.parametrize(
    ("generation", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Here:\n```python\nx = 1\n```\n```python\nx = 2\n```", "x = 1\n"),
        ("```text\nhello\n```\n```py \nx = 1\n```", "x = 1\n"),
        ("```Python\r\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\ny = ", "x = 1\ny = "),  # cut short
        ("```python\nreturn x```", "return x"),
        ("```python\n```", ""),
        (
            '```python\ndef f():\n    """\n    ```\n    f()\n    ```\n    """\n```\n',
            'def f():\n    """\n    ```\n    f()\n    ```\n    """\n',
        ),
        ("x = 1", "x = 1"),
        ("", ""),
    ],
)
def test_code_is_cut_out_of_the_first_python_fence(generation, code):
    assert extract_code(generation) == code


@given(st.text(), st.text())
def test_code_without_fences_survives_being_fenced(before, code):
    code = code.replace("```", "")
    before = before.replace("```", "").replace("\r", "")
    assert extract_code(f"{before}\n```python\n{code}\n```\nrest") == code + "\n"
    assert extract_code(code) == code


def test_mismatches_are_refused():
    with pytest.raises(EvaluationError, match="no problems"):
        evaluate([], lambda prompts: [])
    with pytest.raises(EvaluationError, match="1 generations for 2 problems"):
        evaluate([problem("a"), problem("b")], lambda prompts: ["x"])
