"""Near duplicates, overlap with benchmarks, traces of machines: found, told, and nothing else touched."""

import dataclasses
import json
import random

import pytest

from data_gen.build import BuildError, build
from data_gen.contamination import Benchmarks
from data_gen.duplicates import near_duplicates, shingles
from data_gen.problems import Problem, ProblemError
from data_gen.scrub import scrub
from tests.data_gen.test_build import records

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "ru", "se", "to") for b in ("ba", "di", "fo", "gu", "ne", "pi")]
CLONE = "Write a function that adds the two given whole numbers and returns the sum of them as a whole number."


def text(seed, length=60):
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(length))


def test_duplicates_are_those_that_all_pairs_would_find():
    """Against the exact index of every pair, on texts of every likeness."""
    rng = random.Random(0)
    texts = []
    for base in range(25):
        words = text(base).split()
        for changes in (0, 1, 2, 4, 8, 20):
            copy = list(words)
            for place in rng.sample(range(len(copy)), changes):
                copy[place] = "xx"
            texts.append(" ".join(copy))
    threshold = 0.6
    kept, expected = [], {}
    for place, pieces in enumerate(map(shingles, texts)):
        likeness = max(((len(pieces & k) / len(pieces | k), -other) for other, k in kept), default=(0, 0))
        if likeness[0] >= threshold:
            expected[place] = -likeness[1]
        else:
            kept.append((place, pieces))
    found = near_duplicates(texts, threshold)
    assert len(expected) > 50
    assert {place: other for place, (other, _) in found.items()} == expected
    assert near_duplicates(["a b", "a b", "c"], 1.0) == {1: (0, 1.0)}
    assert near_duplicates([], 0.8) == {}


def test_overlap_of_ten_words_is_found_and_nine_are_not(tmp_path):
    path = tmp_path / "bench.jsonl"
    path.write_text(json.dumps({"task_id": "B/1", "prompt": text(1, 30), "canonical_solution": "return 1"}) + "\n")
    known = Benchmarks([path])
    words = text(1, 30).split()
    found = known.overlap(["free text", " other ".join(["x", " ".join(words[5:15]).upper() + ","])])
    assert (found.file, found.task, found.ngram) == ("bench.jsonl", "B/1", " ".join(words[5:15]))
    assert known.overlap([" ".join(words[5:14]) + " other words here"]) is None
    assert known.overlap(["return 1"]) is None  # too short to tell a task by
    path.write_text(json.dumps({"prompt": "1 2 3 4 5 6 7 8 9 10 11 12"}) + "\n")
    assert Benchmarks([path]).overlap(["[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"]) is None
    path.write_text(json.dumps({"prompt": "Sort the list of words by length."}) + "\n")  # shorter than ten: as a whole
    assert Benchmarks([path]).overlap(["Please: sort the list of words by length. Thanks."]).task == "1"
    path.write_text(json.dumps({"x": 1}) + "\n")
    with pytest.raises(ProblemError, match="has no text in any of the fields"):
        Benchmarks([path])
    with pytest.raises(ProblemError, match=r"--decontaminate: file .* does not exist"):
        Benchmarks([tmp_path / "no"])


def test_a_build_leaves_them_out_and_says_so(tmp_path):
    solution = "def f(a, b):\n    return a + b\n"
    make = lambda name, prompt: Problem(name, name, "x", (prompt,), solution, "f", ("assert f(1, 2) == 3",))  # noqa: E731
    problems = [make("one", CLONE), make("twin", CLONE + " Please."), make("bench", text(5)), make("free", text(6))]
    path = tmp_path / "bench.jsonl"
    path.write_text(json.dumps({"task_id": "B/7", "prompt": text(5)}) + "\n")
    output = tmp_path / "out"
    arguments = dict(heldout=0, near_duplicates=0.7, decontaminate=[path])
    statistics = build(problems, output, **arguments)
    assert {record["task"] for record in records(output)["instruction"]} == {"one", "free"}
    assert statistics.problems["read"] == 4
    assert (
        statistics.problems["removed: near duplicate"] == statistics.problems["removed: overlaps with bench.jsonl"] == 1
    )
    lines = [json.loads(line) for line in (output / "removed.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["bench", "twin"]
    assert (lines[0]["task"], lines[0]["file"]) == ("B/7", "bench.jsonl")
    assert lines[1]["of"] == "one"
    assert 0.7 <= lines[1]["jaccard"] < 1
    assert "removed: near duplicate" in (output / "README.md").read_text()
    assert build(problems, output, **arguments) == statistics
    with pytest.raises(BuildError, match=r"near_duplicates=0.7, now it is None"):
        build(problems, output, heldout=0, decontaminate=[path])
    path.write_text(json.dumps({"prompt": text(6)}) + "\n")
    with pytest.raises(BuildError, match="built from other decontaminate"):
        build(problems, output, **arguments)


def test_problems_without_tests_need_a_teacher_that_writes_them(tmp_path):
    bare = Problem("bare", "bare", "x", ("p",), "def f():\n    return 1\n", "f", ())
    with pytest.raises(BuildError, match=r"problem 'bare' has no tests, .* take --teacher=openai or checkpoint"):
        build([bare], tmp_path / "out", heldout=0)
    good = dataclasses.replace(bare, id="good", task="good", tests=("assert f() == 1",))
    statistics = build([bare, good], tmp_path / "out", heldout=0)
    assert statistics.problems["skipped: no tests, which teacher bugs needs"] == 1
    cpp = dataclasses.replace(good, language="cpp")
    with pytest.raises(BuildError, match="1 dropped: not Python, which teacher bugs needs"):
        build([cpp], tmp_path / "cpp", heldout=0)


def test_lengths_are_indexed_by_block_type(tmp_path):
    import numpy as np

    good = Problem("good", "good", "x", ("Add one.",), "def f(n):\n    return n + 1\n", "f", ("assert f(1) == 2",))
    build([good], tmp_path / "out", heldout=0)
    index = np.load(tmp_path / "out" / "lengths.npz")
    kinds = list(index["kinds"])
    (record,) = records(tmp_path / "out")["reflection"]
    turns = json.loads(record["messages"])
    code = sum(len(block["content"]) for block in turns[1]["content"] if block["type"] == "code")
    assert index["reflection"][0, kinds.index("code")] == code
    assert index["reflection"][0, kinds.index("answer")] == len(turns[3]["content"][0]["content"])
    assert index["instruction"].shape == (1, 5)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('  File "/home/ann/work/x.py", line 3, in f', '  File "x.py", line 3, in f'),
        ('  File "/tmp/tmpab12/cell_1.py", line 3', '  File "cell_1.py", line 3'),
        ('File "C:\\Users\\Ann\\x.py", line 1', 'File "x.py", line 1'),
        ('File "/opt/conda/lib/python3.10/json/decoder.py"', 'File "<python>/json/decoder.py"'),
        ('"/home/a/.local/lib/python3.11/site-packages/numpy/core.py"', '"<python>/numpy/core.py"'),
        ("<object at 0x7f3a2b4c5d60>", "<object at 0x...>"),
        ("cd /home/ann", "cd ~"),
        ("connect to 10.1.2.3:8080 failed", "connect to <address> failed"),
        ("1/2/3 and a/b and http://x.org/home/y", "1/2/3 and a/b and http://x.org/home/y"),
        ("AssertionError: got [1, 2], expected [2]", "AssertionError: got [1, 2], expected [2]"),
    ],
)
def test_machine_traces_are_scrubbed(before, after):
    assert scrub(before) == after
    assert scrub(after) == after
