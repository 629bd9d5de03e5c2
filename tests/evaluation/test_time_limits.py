"""The alarm of programs that can not get at it rings once a second, not once an input: the limits are the same."""

from __future__ import annotations

import gc
import pickle
import signal
import time

import pytest

from data_gen.isolated import calls
from rcjax.evaluation import evalplus
from rcjax.evaluation.benchmarks import load_benchmark
from rcjax.evaluation.stateless import is_stateless
from tests.evaluation.small_benchmarks import HUMANEVAL_PLUS, write_lines
from tests.evaluation.test_scoring import verdicts

WORK = "def work(rounds):\n    for _ in range(rounds):\n        pass\n"
KINDS = {"stateless": WORK, "with an alarm for each input": "import time\n" + WORK}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """HumanEval/0 of the small set with eight plus inputs, the fifth of which takes the canonical program long."""
    directory = tmp_path_factory.mktemp("eight")
    canonical = "    import time\n    time.sleep(1.5 * (x == 14))\n    return 2 * x\n"
    row = HUMANEVAL_PLUS[0] | {"plus_input": [[x] for x in range(10, 18)], "canonical_solution": canonical}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RCJAX_CACHE", str(directory / "cache"))
        yield load_benchmark("humaneval+", write_lines(directory / "eight.jsonl", [row]))


@pytest.fixture(scope="module")
def rounds():
    """So many take a second, about: the quickest of five, since a machine only ever gets slower."""
    names: dict = {}
    exec(WORK, names)

    def seconds():
        started = time.perf_counter()
        names["work"](1_000_000)
        return time.perf_counter() - started

    return int(1_000_000 / min(seconds() for _ in range(5)))


@pytest.mark.parametrize("kind", KINDS)
def test_each_input_has_its_own_time(benchmark, rounds, kind):
    """The alarm rings in the midst of an input, and again; none takes too long."""
    source = f"{KINDS[kind]}def double(x):\n    work({int(0.25 * rounds)})\n    return 2 * x\n"
    assert is_stateless(source) == (kind == "stateless")
    (found,) = verdicts(benchmark, "HumanEval/0", source)
    assert (found.base, found.plus) == ("pass", "pass")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("slow", "ends"), [(13, True), (14, False), (15, True)])
def test_a_late_input_ends_when_its_own_time_is_up(benchmark, rounds, kind, slow, ends):
    """Input 14 has six seconds, those beside it one; one that came before took a quarter of a second."""
    long = 2 if slow == 14 else 30
    source = (
        f"{KINDS[kind]}def double(x):\n    work(int({rounds} * (0.25 * (x == 11) + {long} * (x == {slow}))))\n"
        "    return 2 * x\n"
    )
    started = time.monotonic()
    (found,) = verdicts(benchmark, "HumanEval/0", source)
    assert time.monotonic() - started < 25
    assert (found.base, found.plus) == ("pass", "fail" if ends else "pass")
    if ends:
        assert found.failure == f"double({slow}): TimeoutError: no result within 1 s\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_that_catches_the_alarm_has_one_on_the_next_input(benchmark, rounds, kind, monkeypatch):
    catches = f"    try:\n        work({10 * rounds} * (x in (2, 12)))\n    except Exception:\n        pass\n"
    source = f"{KINDS[kind]}def double(x):\n{catches}    work({30 * rounds} * (x == 13))\n    return 2 * x\n"
    monkeypatch.setattr("rcjax.evaluation.parts.SHARE_SECONDS", 1e9)  # all inputs in one process
    (found,) = verdicts(benchmark, "HumanEval/0", source)
    assert (found.base, found.plus) == ("pass", "fail")
    assert found.failure == "double(13): TimeoutError: no result within 1 s\n"


def test_what_is_printed_is_not_kept(benchmark, monkeypatch):
    """440 MB in all, where a program may hold 150 at a time."""
    monkeypatch.setitem(evalplus.MEMORY_MB, "humaneval", 150)
    source = "def double(x):\n    print('x' * 40_000_000)\n    return 2 * x\n"
    (found,) = verdicts(benchmark, "HumanEval/0", source)
    assert (found.base, found.plus) == ("pass", "pass")


def test_nothing_rings_between_inputs(monkeypatch):
    """While an output is sent, which may take longer than an input."""
    sent = []

    class Slow(calls.Calls):
        def send(self, kind, content=b""):
            sent.append(kind)

        def send_output(self, out, arguments):
            time.sleep(0.05)  # the alarm of 0.01 s has rung by now
            sent.append(out)

    monkeypatch.setattr(calls, "INPUTS", {"task": {"base": pickle.dumps([[1], [2]])}})
    request = {"task": "task", "suites": ["base"], "first": 0, "count": 2, "rule": "equal", "record": False}
    request |= {"source": "def double(x):\n    return 2 * x\n", "entry_point": "double", "longer": {}}
    before = signal.getsignal(signal.SIGALRM)
    try:
        Slow(request | {"seconds": 0.01, "stateless": True}).run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.unfreeze()
    assert sent == [calls.LOADED, 2, 4]
