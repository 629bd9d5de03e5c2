"""Outputs that come as the same bytes are compared as blocks: what evalplus makes of them stays."""

from __future__ import annotations

import pytest

from rcjax.evaluation.benchmarks import load_benchmark
from tests.evaluation.small_benchmarks import HUMANEVAL_PLUS, write_lines
from tests.evaluation.test_scoring import statuses

# Between two outputs the reader has time to take in the first alone.
PAUSE = "def double(x):\n    for _ in range(3_000_000):\n        pass\n"


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """HumanEval/0 of the small set with other plus inputs and another canonical program."""

    def make(inputs, canonical):
        monkeypatch.setenv("RCJAX_CACHE", str(tmp_path / "cache"))
        row = HUMANEVAL_PLUS[0] | {"plus_input": [[x] for x in inputs], "canonical_solution": canonical}
        return load_benchmark("humaneval+", write_lines(tmp_path / "one.jsonl", [row]))

    return make


def test_the_same_bytes_of_nan_are_not_right(benchmark):
    canonical = "    return float('nan') if x == 11 else 2 * x\n"
    made = benchmark([10, 11, 12], canonical)
    assert statuses(made, "HumanEval/0", "def double(x):\n" + canonical) == [("pass", "fail")]


@pytest.mark.parametrize(("first", "plus"), [("0.5", "pass"), ("1", "fail")])
def test_after_an_output_of_floats_there_is_a_tolerance(benchmark, first, plus, monkeypatch):
    """Also where that output was told of by its number alone."""
    monkeypatch.setattr("rcjax.evaluation.parts.SHARE_SECONDS", 1e9)  # all inputs in one process
    canonical = f"    return {first} if x == 10 else [1, 2.5] if x == 11 else 2 * x\n"
    made = benchmark([10, 11, 12], canonical)
    near = PAUSE + canonical.replace("2.5]", "2.5 + 1e-9]")
    assert statuses(made, "HumanEval/0", near) == [("pass", plus)]
