"""Verdicts can not be forged, nothing outside of the private directory changes, nothing survives, the pool goes on."""

import contextlib
import os
import random
import time

import pytest

from data_gen.isolated import messages
from data_gen.sandbox import Limits, Program, Sandbox, Verdict
from tests.data_gen.hostile import ESCAPES, FORGERIES

LIMITS = Limits(cpu_seconds=0.5, wall_seconds=1.5, memory_mb=256, output_bytes=2000)
TEST = ("assert solve(2) == 471147",)
HONEST = Program("def solve(x):\n    return 471145 + x\n", TEST)


@pytest.fixture(scope="module", params=["bwrap", "namespaces"])
def sandbox(request):
    os.environ["A_SECRET"] = "x"
    with Sandbox(1, LIMITS, means=[request.param, "limits"]) as pool:
        if pool._all[0].reached["means"] != request.param:
            pytest.skip(f"{request.param} can not isolate here")
        yield pool
    del os.environ["A_SECRET"]


@pytest.mark.parametrize("name", FORGERIES)
def test_verdict_can_not_be_forged(sandbox, name):
    outcome = sandbox.run(Program(FORGERIES[name], TEST))
    assert outcome.verdict != Verdict.PASSED, outcome
    assert sandbox.run(HONEST).verdict == Verdict.PASSED


@pytest.mark.parametrize("name", FORGERIES)
def test_verdict_of_a_check_function_can_not_be_forged(sandbox, name):
    check = ("def check(candidate):\n    assert candidate(2) == 471147, 'wrong'", "check(solve)")
    assert sandbox.run(Program(FORGERIES[name], check)).verdict != Verdict.PASSED


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize(
    "test",
    [
        "assert abs(solve(2) - 471147) < 1e-6",
        "assert solve(2) in (471147, 471148)",
        "assert 471147 in [solve(2)]",
        "assert not solve(2) != 471147",
        "import math\nassert math.isclose(solve(2), 471147)",
        "assert solve(2) == 471147 and solve(2) > 471146",
    ],
)
def test_other_forms_of_tests_can_not_be_fooled(sandbox, name, test):
    if "sleep" not in FORGERIES[name]:  # these take their whole wall time
        assert sandbox.run(Program(FORGERIES[name], (test,))).verdict != Verdict.PASSED


@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_gets_out(sandbox, name):
    before = _outside()
    outcome = sandbox.run(Program(ESCAPES[name]))  # it passes only where it succeeds
    assert outcome.verdict != Verdict.PASSED, outcome
    assert outcome.seconds < LIMITS.wall_seconds + 3
    deadline = time.monotonic() + 10  # what other tests lay there meanwhile goes; what got out of the sandbox stays
    while _outside() != before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _outside() == before
    after = sandbox.run(Program("import os\nassert os.listdir() == [] and os.listdir('/tmp') == ['attempt']\n"))
    assert after.verdict == Verdict.PASSED, after
    assert _left_over(sandbox) == []


def _outside():
    return [sorted(os.listdir(place)) for place in ("/usr/bin", "/", "/dev/shm", "/var/tmp")]


def _left_over(pool):
    """Processes of the users that the pool's programs run as, each worker's an own one, but for one a worker: the child
    that waits for the next program."""
    users = {worker.reached["uid"] for worker in pool._all} - {None}
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found += [pid] if os.stat(f"/proc/{pid}").st_uid in users else []
    return found[pool.workers :]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs it: as another user the kernel's own check is tested")
def test_the_limit_on_processes_binds_when_started_as_root(sandbox):
    outcome = sandbox.run(Program("import os\nfor _ in range(3):\n    os.fork()\n"))
    assert (outcome.verdict, outcome.error) == (Verdict.FAILED, "BlockingIOError")


def test_workers_do_not_share_the_limit_on_processes():
    # Two programs at a time, each the only process that it may be.
    with Sandbox(2, Limits(cpu_seconds=2, wall_seconds=5)) as pool:
        slow = Program(
            "import time\ntime.sleep(0.2)\nimport os\ntry:\n    os.fork()\nexcept BlockingIOError:\n    print('no')\n"
        )
        assert [outcome.feedback for outcome in pool.map([slow] * 4)] == ["no\n"] * 4


# Calls `look(bytes)` on all the memory that a program can read, by its addresses.
SEARCH = """
import ctypes
def search(look):
    for line in open("/proc/self/maps"):
        span, mode = line.split()[:2]
        if mode[:2] == "rw" and "[v" not in line:
            low, high = (int(part, 16) for part in span.split("-"))
            look(ctypes.string_at(low, high - low))
"""


def test_no_program_finds_anything_of_an_earlier_one(sandbox):
    word = f"word{random.SystemRandom().randrange(10**12)}"
    assert sandbox.run(Program(f"kept = '{word}'\n", (f"assert kept == '{word}'",))).verdict == Verdict.PASSED
    backwards = word[::-1]  # the search itself must not hold what it looks for
    search = f"{SEARCH}def look(data):\n    assert data.find(b'{backwards}'[::-1] + b'!') < 0\nkey = b'{backwards}'\n"
    look = search.replace("+ b'!'", "") + "search(look)\n"
    assert sandbox.run(Program(look)).verdict == Verdict.PASSED
    # Where the word is there, the search finds it.
    there = sandbox.run(Program(f"here = '{word}'\n{look}"))
    assert (there.verdict, there.error) == (Verdict.FAILED, "AssertionError"), there


def test_expected_values_are_not_in_the_process_of_the_program(sandbox):
    code = (
        f"{SEARCH}import re\ndef solve(x):\n    found = []\n    pattern = b'sol' + b've.2. == ([0-9]{{6}})'\n"
        "    search(lambda data: found.extend(re.findall(pattern, data)))\n    return int(found[0]) if found else 0\n"
    )
    unknown = sandbox.run(Program(code, TEST))
    assert "AssertionError: got 0, expected 471147" in unknown.feedback
    # Where it stands in the code, the search finds it.
    known = sandbox.run(Program(code + "# solve(2) == 471147\n", TEST))
    assert known.verdict == Verdict.PASSED, known


HONEST_TESTS = {
    "set-up lines and modules": (
        "import math\ndef half(x):\n    return x / 2\n",
        ("import math", "values = [1, 2]", "assert half(values[1]) == 1.0", "assert math.isclose(half(3), 1.5)"),
    ),
    "plain data of all kinds": (
        "def f(kind):\n    values = {'s': {1, 2}, 'c': 1 + 2j, 'n': None, 'r': range(3)}\n"
        "    return {**values, 't': (1, [b'x'], {'k': frozenset([1])})}[kind]\n",
        (
            "assert f('s') == {2, 1}",
            "assert f('c') == 1 + 2j",
            "assert f('n') is None",
            "assert f('t') == (1, [b'x'], {'k': frozenset([1])})",
            "assert f('r') == range(3) and len(f('s')) == 2",
            "assert not f('n') and f('r')[1] != 5 and sorted(f('s')) == [1, 2]",
        ),
    ),
    "objects": (
        "import collections, enum\nRow = collections.namedtuple('Row', 'a b')\n"
        "class Level(enum.IntEnum):\n    LOW = 1\nclass Point:\n    def __init__(self, *at):\n        self.at = at\n"
        "    def __eq__(self, other):\n"
        "        return self.at == (other.at if isinstance(other, Point) else other)\n"
        "def count(text):\n    return collections.Counter(text)\ndef numbers(n):\n    return (i for i in range(n))\n",
        (
            "assert Point(1, 2) == Point(1, 2)",
            "assert Point(1, 2) != Point(1, 3)",
            "assert Row(1, 2) == (1, 2) and Level.LOW == 1 and {1: 2}.keys() == {1}",
            "assert count('aab') == {'a': 2, 'b': 1}",
            "assert isinstance(count(''), dict)",
            "assert list(numbers(3)) == [0, 1, 2]",
            "assert sum(numbers(4)) == 6, 'sum'",
        ),
    ),
    "a function named like a builtin": ("def sum(a, b):\n    return a * b\n", ("assert sum(2, 5) == 10",)),
    "statements": (
        "def f(x):\n    return 1 / x\n",
        (
            "try:\n    f(0)\n    raise AssertionError\nexcept ZeroDivisionError:\n    pass",
            "for x in (1, 2):\n    assert f(x) * x == 1",
        ),
    ),
    "tests that only parse behind the code": ("if True:\n    x = 1\n", ("    assert x == 1",)),
}


@pytest.mark.parametrize("name", HONEST_TESTS)
def test_honest_programs_pass_whatever_the_tests_look_like(sandbox, name):
    code, tests = HONEST_TESTS[name]
    outcome = sandbox.run(Program(code, tests))
    assert outcome.verdict == Verdict.PASSED, outcome


def test_feedback_of_a_check_function_names_call_line_and_values(sandbox):
    tests = ("def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 5", "check(f)")
    outcome = sandbox.run(Program("def f(x):\n    return x + 1\n", tests))
    assert outcome.feedback == (
        'Traceback (most recent call last):\n  File "attempt.py", line 6, in <module>\n    check(f)\n'
        '  File "attempt.py", line 5, in check\n    assert candidate(2) == 5\nAssertionError: got 3, expected 5\n'
    )


def test_object_with_an_equality_of_its_own_is_not_equal_to_plain_data(sandbox):
    # The price of verdicts that can not be forged: such an `__eq__` would be the judge in its own case.
    code = "class V:\n    def __eq__(self, other):\n        return other == (1, 2)\ndef f():\n    return V()\n"
    outcome = sandbox.run(Program(code, ("assert f() == (1, 2)",)))
    assert outcome.verdict == Verdict.FAILED
    assert "AssertionError: got <__main__.V object at 0x...>, expected (1, 2)" in outcome.feedback


@pytest.mark.parametrize(
    "data", [b"cos\nsystem\n(S'true'\ntR.", b"\x80\x05\x8c\x08builtins\x8c\x04eval\x93.", b"junk", b""]
)
def test_bytes_that_are_no_plain_data_are_refused_without_running_anything(data):
    with pytest.raises(messages.NotPlain):
        messages.load_plain(data)


def test_the_pool_survives_a_storm_of_hostile_programs():
    programs = [Program(code, TEST) for code in FORGERIES.values()]
    random.Random(0).shuffle(programs)
    with Sandbox(2, Limits(cpu_seconds=0.2, wall_seconds=0.5, memory_mb=128)) as pool:
        verdicts = [outcome.verdict for outcome in pool.map([p for bad in programs for p in (bad, HONEST)])]
        assert _left_over(pool) == []
    assert Verdict.PASSED not in verdicts[::2]
    assert set(verdicts[1::2]) == {Verdict.PASSED}
