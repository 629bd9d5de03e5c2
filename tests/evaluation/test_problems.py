"""Records of the held-out split as problems."""

import json

import pytest

from rcjax.evaluation.problems import Problem, ProblemError, read_problems


def record(**changes):
    fields = {
        "id": "lists-7/0",
        "task": "lists-7",
        "family": "lists",
        "type": "generation",
        "prompt": "Write `double(x)`.",
        "tests": json.dumps(["import math", "assert double(2) == 4"]),
        "entry_point": "double",
        "solution": "def double(x):\n    return 2 * x\n",
        "rounds": 0,
    }
    return {**fields, **changes}


def test_records_become_problems_in_their_order():
    records = [record(id=name) for name in ("b", "a", "c")]
    problems = read_problems(records)
    assert [problem.id for problem in problems] == ["b", "a", "c"]
    assert problems[0] == Problem(
        id="b",
        task="lists-7",
        family="lists",
        prompt="Write `double(x)`.",
        tests=("import math", "assert double(2) == 4"),
        entry_point="double",
        solution="def double(x):\n    return 2 * x\n",
    )


def test_bytes_are_read_as_utf8():
    fields = {key: value.encode() if isinstance(value, str) else value for key, value in record(prompt="Größe").items()}
    assert read_problems([fields]) == read_problems([record(prompt="Größe")])


def test_limit_takes_the_first_and_reads_no_further():
    def records():
        yield record(id="a")
        yield record(id="b")
        raise AssertionError("read on")

    assert [problem.id for problem in read_problems(records(), limit=2)] == ["a", "b"]


@pytest.mark.parametrize(
    ("records", "limit", "message"),
    [
        ([], None, "heldout split has no records"),
        ([record()], 0, "limit of held-out problems is 0"),
        ([record(), record()], None, "'lists-7/0' comes twice"),
        ([record(family=None)], None, "field 'family' is missing"),
        ([record(entry_point=3)], None, "field 'entry_point' is 3"),
        ([record(prompt=" \n")], None, "'prompt' is empty"),
        ([record(tests="assert True")], None, "'tests' must be a JSON list"),
        ([record(tests="[]")], None, "at least one string"),
        ([record(tests="[1]")], None, "at least one string"),
    ],
)
def test_what_is_no_problem_is_named(records, limit, message):
    with pytest.raises(ProblemError, match=message):
        read_problems(records, limit)
