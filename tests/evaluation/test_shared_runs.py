"""Runs that take long are shared between threads, and base and plus inputs taken in one run: the verdicts stay."""

from __future__ import annotations

import pytest

from rcjax.evaluation import evalplus
from rcjax.evaluation.benchmarks import load_benchmark
from rcjax.evaluation.samples import CodeSample
from rcjax.evaluation.scoring import score_samples
from tests.evaluation.small_benchmarks import HUMANEVAL_PLUS, write_lines
from tests.evaluation.test_scoring import no_progress

LAST = 399
SLOW = "def double(x):\n    for _ in range(40_000):\n        pass\n    return {}\n"
STATE = "seen = []\ndef double(x):\n    seen.append(x)\n    for _ in range(40_000):\n        pass\n    return 2 * x\n"


@pytest.fixture
def many_inputs(tmp_path, monkeypatch):
    """HumanEval/0 of the small set, with 400 plus inputs."""
    monkeypatch.setenv("RCJAX_CACHE", str(tmp_path / "cache"))
    row = HUMANEVAL_PLUS[0] | {"plus_input": [[number] for number in range(10, 11 + LAST)]}
    return load_benchmark("humaneval+", write_lines(tmp_path / "many.jsonl", [row]))


@pytest.fixture
def parts(monkeypatch):
    """What was run: (suite, first input, suite that was to be taken in the same run)."""
    run, taken = evalplus.run_part, []

    def note(worker, judge, task, source, expected, part, work):
        taken.append((part.suite, part.first, part.then))
        return run(worker, judge, task, source, expected, part, work)

    monkeypatch.setattr(evalplus, "run_part", note)
    return taken


def statuses(benchmark, source, workers=3):
    score = score_samples(benchmark, [CodeSample("HumanEval/0", source)], workers=workers, progress=no_progress)
    ((verdict,),) = score.verdicts.values()
    return verdict.base, verdict.plus, verdict.failure


def test_a_long_run_is_shared(many_inputs, parts):
    assert statuses(many_inputs, SLOW.format("2 * x")) == ("pass", "pass", "")
    assert parts[0] == ("base", 0, "plus")
    assert {suite for suite, *_ in parts[1:]} == {"plus"}  # at least one was taken over
    assert all(first > 0 for _, first, _ in parts[1:])


@pytest.mark.parametrize("wrong", [10, 10 + LAST // 2, 10 + LAST])
def test_the_first_wrong_output_decides_wherever_it_lies(many_inputs, parts, wrong):
    base, plus, failure = statuses(many_inputs, SLOW.format(f"2 * x if x < {wrong} else x"))
    assert (base, plus) == ("pass", "fail")
    assert failure.startswith(f"double({wrong}): ")


def test_a_program_that_may_keep_a_state_is_not_shared(many_inputs, parts):
    assert statuses(many_inputs, STATE) == ("pass", "pass", "")
    assert sorted(parts) == [("base", 0, ""), ("plus", 0, "")]


def test_plus_inputs_are_run_alone_where_base_inputs_fail(many_inputs, parts):
    source = "def double(x):\n    return 2 * x if x >= 10 else 1 / 0\n"
    base, plus, failure = statuses(many_inputs, source, workers=1)
    assert (base, plus) == ("fail", "pass")
    assert "ZeroDivisionError" in failure
    assert parts == [("base", 0, "plus"), ("plus", 0, "")]


def test_time_is_counted_for_each_suite_and_over_shared_parts(many_inputs, monkeypatch):
    monkeypatch.setattr(evalplus, "MOST_SECONDS", 0.05)
    monkeypatch.setattr(evalplus, "MORE_SECONDS", 0.2)
    base, plus, failure = statuses(many_inputs, SLOW.format("2 * x"))
    assert (base, plus) == ("pass", "timeout")
    assert "no end within 0.25 s" in failure
