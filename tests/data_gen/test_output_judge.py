"""Most outputs are judged without numpy; what needs it gets it, and the same verdict."""

import pickle

import numpy
import pytest

from data_gen.call_sandbox import Judge, OutOfTime
from data_gen.isolated import outputs


@pytest.fixture
def judge():
    outputs.prepare()
    judge = Judge()
    yield judge
    judge.close()


def item(out, expected, atol=0.0, rule="equal"):
    return rule, pickle.dumps([]), outputs.encode(out), outputs.encode(expected), atol


def test_plain_values_need_no_numpy(judge):
    items = [item({1, 2}, {2, 1}), item([1], [2]), item("a", "a"), item(1.5, 1.5), item([2, 1], [1, 2], rule="set")]
    assert [right for right, _, _ in judge.compare(items, 10)] == [True, False, True, True, True]
    assert list(judge._processes) == ["plain"]


def test_tolerances_and_arrays_do(judge):
    items = [
        item(1.0, 1.0 + 1e-9),
        item([1.0, 2.0], [1.0, 2.1]),
        item(3, 3),
        item(numpy.float64(2.0), 2.0),
        item(numpy.arange(2), [0, 1]),
        item((1, 2), (1, 2.0000001), atol=1e-3),
    ]
    verdicts = judge.compare(items, 10)
    assert [right for right, _, _ in verdicts] == [True, False, True, True, False, True]
    assert [atol for _, atol, _ in verdicts] == [1e-6, 1e-6, 0.0, 1e-6, 0.0, 1e-3]
    assert "ValueError" in verdicts[4][2]  # no truth in an array of several
    assert set(judge._processes) == {"plain", "numpy"}


def test_a_judge_that_is_lost_is_replaced(judge):
    judge.compare([item(1, 1)], 10)
    judge._processes["plain"].kill()
    with pytest.raises(OutOfTime):
        judge.compare([item(1, 1)], 10)
    assert judge.compare([item(1, 1)], 10) == [(True, 0.0, "")]


def test_a_large_output_does_not_stay_in_memory():
    """A program has the memory for its next call."""
    outputs.encode(["x" * (4 << 20)])
    outputs.encode([1])
    large = outputs.encode(["y" * (4 << 20)])
    assert len(large) > 4 << 20
    assert len(outputs._kept[0][0].getvalue()) == 0
