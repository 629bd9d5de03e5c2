"""Sample files as evalplus takes them, and the ones that must not pass in silence."""

from __future__ import annotations

import pytest

from rcjax.evaluation.benchmarks import load_benchmark
from rcjax.evaluation.samples import CodeSample, SamplesError, read_samples, write_samples
from tests.evaluation.small_benchmarks import HUMANEVAL_PLUS, write_lines

IDS = ("HumanEval/0", "HumanEval/4", "HumanEval/32")


@pytest.fixture
def benchmark(tmp_path):
    return load_benchmark("humaneval+", write_lines(tmp_path / "data.jsonl", HUMANEVAL_PLUS))


def rows(*ids, **more):
    return [{"task_id": task_id, "completion": "    return 1\n", **more} for task_id in ids]


@pytest.mark.parametrize("packed", [False, True])
def test_completion_goes_behind_the_prompt_and_solution_stands_alone(tmp_path, benchmark, packed):
    lines = [*rows(*IDS[:2]), {"task_id": IDS[2], "solution": "x = 1\n", "completion": "y"}]
    samples = read_samples(write_lines(tmp_path / "s", lines, packed), benchmark)
    assert samples[0] == CodeSample(IDS[0], benchmark.tasks[IDS[0]].prompt + "    return 1\n")
    assert samples[2].solution == "x = 1\n"
    assert not samples.unknown
    assert not samples.missing
    assert not samples.empty


def test_write_and_read_again(tmp_path, benchmark):
    samples = [CodeSample(task_id, f"# {task_id} \u00e9\n") for task_id in IDS]
    write_samples(tmp_path / "s.jsonl", samples)
    assert list(read_samples(tmp_path / "s.jsonl", benchmark)) == samples
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_missing_ids_need_the_flag(tmp_path, benchmark):
    file = write_lines(tmp_path / "s.jsonl", rows(IDS[0], "HumanEval/999"))
    with pytest.raises(SamplesError) as caught:
        read_samples(file, benchmark)
    for word in ("2 of 3", *IDS[1:], "HumanEval/999", "--allow_partial"):
        assert word in str(caught.value)
    samples = read_samples(file, benchmark, allow_partial=True)
    assert samples.missing == IDS[1:]
    assert samples.unknown == ("HumanEval/999",)
    assert len(samples) == 1


def test_unknown_ids_are_listed_and_left_out(tmp_path, benchmark):
    samples = read_samples(write_lines(tmp_path / "s.jsonl", rows(*IDS, "HumanEval/999")), benchmark)
    assert samples.unknown == ("HumanEval/999",)
    assert len(samples) == 3


def test_samples_of_another_benchmark_are_refused_even_in_part(tmp_path, benchmark):
    with pytest.raises(SamplesError, match="Mbpp/2"):
        read_samples(write_lines(tmp_path / "s.jsonl", rows("Mbpp/2")), benchmark, allow_partial=True)


def test_duplicated_ids(tmp_path, benchmark):
    file = write_lines(tmp_path / "s.jsonl", rows(*IDS, IDS[1]))
    with pytest.raises(SamplesError, match=r"duplicated ids: HumanEval/4 \(2 samples\)"):
        read_samples(file, benchmark)
    assert len(read_samples(file, benchmark, allow_partial=True)) == 4
    assert len(read_samples(write_lines(tmp_path / "t.jsonl", rows(*IDS, *IDS)), benchmark)) == 6


def test_empty_completions_are_told(tmp_path, benchmark):
    lines = [*rows(*IDS[:2]), {"task_id": IDS[2], "completion": " \n"}]
    samples = read_samples(write_lines(tmp_path / "s.jsonl", lines), benchmark)
    assert samples.empty == (IDS[2],)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"completion": "x"}, ["line 4", "task_id"]),
        ({"task_id": IDS[0]}, ["line 4", "solution", "completion"]),
        ({"task_id": IDS[0], "completion": ["a", "b"]}, ["line 4", "completion", "line each"]),
        ({"task_id": IDS[0], "solution": None}, ["line 4", "solution"]),
    ],
)
def test_a_line_of_another_form(tmp_path, benchmark, line, words):
    with pytest.raises(SamplesError) as caught:
        read_samples(write_lines(tmp_path / "s.jsonl", [*rows(*IDS), line]), benchmark)
    for word in words:
        assert word in str(caught.value)


def test_no_file(tmp_path, benchmark):
    with pytest.raises(SamplesError, match=r"--samples: .*does not exist"):
        read_samples(tmp_path / "none.jsonl", benchmark)
