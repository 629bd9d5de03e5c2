"""Runs that take long are shared between threads, and base and plus inputs taken in one run: the verdicts stay."""

from __future__ import annotations

import resource

import pytest

from data_gen.call_sandbox import CallsLost
from rcjax.evaluation import evalplus
from rcjax.evaluation.benchmarks import load_benchmark
from rcjax.evaluation.parts import Part, SuiteVerdict, Work
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

    def note(worker, judge, task, source, expected, part, *rest):
        taken.append((part.suite, part.first, part.then))
        return run(worker, judge, task, source, expected, part, *rest)

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


def test_outputs_larger_than_the_pipe_come_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("RCJAX_CACHE", str(tmp_path / "cache"))
    texts = ["".join(map(str, range(first, first + 300_000))) for first in (0, 500_000)]  # of 1.7 and 1.8 MB
    row = HUMANEVAL_PLUS[0] | {"plus_input": [[text] for text in texts] + [[3]]}
    benchmark = load_benchmark("humaneval+", write_lines(tmp_path / "large.jsonl", [row]))
    assert statuses(benchmark, "def double(x):\n    return 2 * x\n") == ("pass", "pass", "")
    other = (
        "def double(x):\n    y = 2 * x\n    return y if isinstance(x, int) else y[:1_200_000] + 'z' + y[1_200_001:]\n"
    )
    assert statuses(benchmark, other)[:2] == ("pass", "fail")


def test_an_error_in_one_thread_ends_all(many_inputs, monkeypatch):
    """Also while another thread is in the middle of a run that nobody shares."""
    run = evalplus.run_part

    def fail(worker, judge, task, source, *rest):
        if "fail" in source:
            raise RuntimeError("no more")
        return run(worker, judge, task, source, *rest)

    monkeypatch.setattr(evalplus, "run_part", fail)
    samples = [CodeSample("HumanEval/0", source) for source in (STATE, STATE + "# fail\n", SLOW.format("2 * x"))]
    with pytest.raises(RuntimeError, match="no more"):
        score_samples(many_inputs, samples, workers=3, progress=no_progress)


@pytest.mark.parametrize(("losses", "plus"), [(1, "pass"), (2, "timeout")])
def test_a_worker_lost_among_the_plus_inputs_leaves_the_base_inputs_passed(many_inputs, monkeypatch, losses, plus):
    verdict, lost = evalplus._Run.verdict, []

    def lose(run, frames, seconds):
        if run.suite == "plus" and len(lost) < losses:
            lost.append(run)
            raise CallsLost("gone")
        return verdict(run, frames, seconds)

    monkeypatch.setattr(evalplus._Run, "verdict", lose)
    base, found, failure = statuses(many_inputs, "def double(x):\n    return 2 * x\n", workers=1)
    assert (base, found) == ("pass", plus)
    assert ("Crashed" in failure) == (plus == "timeout")
    assert len(lost) == losses


def test_the_half_that_is_taken_over_is_never_empty_nor_taken_twice():
    """However far the run has come while its inputs are being divided."""

    class Running:
        number, suite, first, seconds = 0, "plus", 0, 10.0

        def __init__(self, at, last):
            self.places, self.last = iter(range(at, at + 100)), last

        @property
        def at(self):  # moves on whenever it is looked at
            return next(self.places)

        def seconds_left(self, at):
            return self.seconds

    for left in range(1, 8):
        work = Work()
        work.add(0, {"plus": [Part(0.0, 0, "plus", 0, 20), Part(0.0, 0, "plus", 20, 40)]}, True)
        assert [work.take().first, work.take().first] == [0, 20]
        run = Running(20 - left, 20)
        with work.divided(run):
            part = work._half_of_a_run()
        assert (part is None) == (left < 2)
        if part is not None:
            assert 20 - left < part.first < part.last == 20
            assert run.last == part.first


SEND = """import os, struct, time
def send(kind, content):
    os.write(4, struct.pack('<BI', kind, len(content)) + content)
"""
FRAMES = {
    "nobody takes what is expected": "send(1, b'')\n    os._exit(0)",
    "a comparison of another form": "send(1, b'')\n    send(2, b'1')\n    time.sleep(9)",
    "an infinite tolerance": "send(1, b'')\n    send(2, b'[true, Infinity, \"\"]')\n    time.sleep(9)",
    "an error too deep to read": "send(3, b'')\n    send(4, b'[' * 100000)\n    time.sleep(9)",
    "a kind that the reader alone tells": "send(7, b'1234')\n    time.sleep(9)",
    "a header that promises much": "os.write(4, struct.pack('<BI', 0, 250 << 20))\n    time.sleep(9)",
}


@pytest.mark.parametrize("what", FRAMES)
def test_frames_that_a_program_writes_itself_end_its_own_run_alone(many_inputs, monkeypatch, what):
    monkeypatch.setattr(evalplus, "MOST_SECONDS", 1.0)
    monkeypatch.setattr(evalplus, "MORE_SECONDS", 0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    base, plus, _ = statuses(many_inputs, f"{SEND}def double(x):\n    {FRAMES[what]}\n", workers=1)
    assert {base, plus} <= {"fail", "timeout"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_the_first_part_goes_before_the_others_where_there_is_else_to_do():
    parts = {number: [Part(-10.0, number, "plus", first, first + 10) for first in (0, 10, 20)] for number in (0, 1)}
    short = [Part(-1.0, 2, "plus", 0, 5)]
    work = Work()
    for number, own in (*parts.items(), (2, short)):
        work.add(number, {"plus": own}, True)
    first, other, last = work.take(), work.take(), work.take()
    assert [(part.number, part.first) for part in (first, other, last)] == [(0, 0), (1, 0), (2, 0)]
    assert work.finish(other, [SuiteVerdict("fail")]) is None
    rest = [work.take(), work.take()]
    assert {(part.number, part.first) for part in rest} == {(1, 10), (1, 20)}
    assert all(map(work.is_decided, rest))
    assert work.take().number == 0  # nothing else is left: they wait no longer
