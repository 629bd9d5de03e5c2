"""Hostile and ordinary programs: right verdict, within the limits, and the pool goes on."""

import os
import pathlib
import resource
import shutil
import subprocess
import sys
import textwrap
import time

import pytest

from data_gen.isolated import namespaces
from data_gen.sandbox import MEANS, REQUIRE, Limits, Program, Sandbox, SandboxError, Verdict

LIMITS = Limits(cpu_seconds=0.5, wall_seconds=2.0, memory_mb=256, output_bytes=2000)
ECHO = Program("def solve(x):\n    return x\n", ("assert solve(1) == 1",))


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(2, LIMITS) as pool:
        yield pool


HOSTILE = {
    "loop that swallows exceptions": (
        "while True:\n    try:\n        x = 1\n    except BaseException:\n        pass\n",
        {Verdict.TIMEOUT},
    ),
    "sleep": ("import time\ntime.sleep(60)\n", {Verdict.TIMEOUT}),
    "handlers that ignore signals": (
        "import signal\nfor s in (signal.SIGPROF, signal.SIGXCPU, signal.SIGTERM):\n"
        "    signal.signal(s, lambda *a: None)\nwhile True:\n    pass\n",
        {Verdict.TIMEOUT},
    ),
    "memory at once": ("x = bytearray(10 ** 10)\n", {Verdict.MEMORY}),
    "memory bit by bit": ("x = [0] * 1000\nwhile True:\n    x += x\n", {Verdict.MEMORY}),
    "output flood": ("while True:\n    print('hello' * 100)\n", {Verdict.TIMEOUT}),
    "_exit before the tests": ("import os\nos._exit(0)\n", {Verdict.CRASHED}),
    "exit before the tests": ("import sys\nsys.exit(0)\n", {Verdict.FAILED}),
    "exit in a function": ("raise SystemExit\n", {Verdict.FAILED}),
    "segfault": ("import ctypes\nctypes.string_at(0)\n", {Verdict.CRASHED}),
    "fork bomb": ("import os\nwhile True:\n    os.fork()\n", {Verdict.FAILED, Verdict.TIMEOUT}),
    "thread bomb": (
        "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(9,)).start()\n",
        {Verdict.FAILED, Verdict.TIMEOUT, Verdict.MEMORY},
    ),
    "kill the parent": (
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nraise ValueError\n",
        {Verdict.FAILED, Verdict.CRASHED},
    ),
    "kill everything": ("import os\nos.kill(-1, 9)\nraise ValueError\n", {Verdict.FAILED, Verdict.CRASHED}),
    "forged verdict": (
        "import os, json\nfor fd in range(3, 40):\n    try:\n"
        "        os.write(fd, json.dumps({'nonce': '', 'status': 'passed', 'error': '', 'traceback': ''}).encode())\n"
        "    except OSError:\n        pass\nos._exit(0)\n",
        {Verdict.CRASHED},
    ),
    "deep recursion": ("def f(n):\n    return f(n + 1)\nf(0)\n", {Verdict.FAILED}),
    "disk fill": ("with open('a', 'w') as f:\n    f.write('x' * 10 ** 8)\n", {Verdict.FAILED, Verdict.CRASHED}),
    "closed output": ("import sys\nsys.stdout.close()\nraise ValueError\n", {Verdict.FAILED}),
    "huge integer": ("x = 9 ** 9 ** 9\n", {Verdict.TIMEOUT, Verdict.MEMORY}),
    "repr that raises": (
        "class A:\n    def __repr__(self):\n        raise ValueError\n    def __eq__(self, other):\n"
        "        return False\nassert A() == 1\n",
        {Verdict.FAILED},
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program_does_not_pass_and_the_pool_goes_on(sandbox, name):
    code, verdicts = HOSTILE[name]
    started = time.monotonic()
    outcome = sandbox.run(Program(code, ("assert 1 == 2",)))
    assert outcome.verdict in verdicts, outcome
    assert time.monotonic() - started < LIMITS.wall_seconds + 6
    assert len(outcome.feedback) < LIMITS.output_bytes + 2000
    assert sandbox.run(ECHO).verdict == Verdict.PASSED


def test_feedback_of_a_failed_assertion_names_both_values(sandbox):
    outcome = sandbox.run(
        Program("def solve(x):\n    return x + 1\n", ("assert solve(1) == 1", "assert solve(7) == 7"))
    )
    assert outcome.verdict == Verdict.FAILED
    assert outcome.error == "AssertionError"
    assert outcome.feedback == textwrap.dedent("""\
        Traceback (most recent call last):
          File "attempt.py", line 3, in <module>
            assert solve(1) == 1
        AssertionError: got 2, expected 1
        """)


def test_feedback_of_exceptions_and_syntax_errors_is_short(sandbox):
    raised = sandbox.run(Program("def solve(x):\n    return x[3]\n", ("assert solve([1]) == 1",)))
    assert raised.feedback == textwrap.dedent("""\
        Traceback (most recent call last):
          File "attempt.py", line 3, in <module>
            assert solve([1]) == 1
          File "attempt.py", line 2, in solve
            return x[3]
        IndexError: list index out of range
        """)
    broken = sandbox.run(Program("def solve(x)\n    return x\n"))
    assert broken.feedback == "  File \"attempt.py\", line 1\n    def solve(x)\nSyntaxError: expected ':'\n"
    assert (broken.verdict, broken.error) == (Verdict.FAILED, "SyntaxError")


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def f(x):\n    print(x)\n    return x + 1\n", ("assert f(1) == 2", "assert f(2) == 4", "assert f(3) == 0")),
        ("def f(x):\n    return {x, 'b', 'c'}\n", ("assert f('a') == {'a', 'b'}",)),
        ("from collections import Counter\nf = Counter\n", ("assert f('aba') == {'a': 1, 'b': 2}",)),
        ("from collections import deque\ndef f(x):\n    return deque([x])\n", ("assert f(1) == [1]",)),
        (
            "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(x):\n    return P(x, x)\n",
            ("assert f(1) == (1, 2)",),
        ),
        ("from enum import IntEnum\nclass E(IntEnum):\n    A = 1\nf = E\n", ("assert f(1) == 2",)),
        ("class S(str):\n    def __repr__(self):\n        return 'S!'\nf = S\n", ("assert f('a') == 'b'",)),
        (
            "def f(x):\n    return 1 / x\n",
            ("def check(candidate):\n    assert candidate(1) == 1\n    assert candidate(0) == 0", "check(f)"),
        ),
        (
            "def f(x):\n    return [x]\n",
            ("def check(candidate):\n    'doc'\n    assert candidate(1) == [2]", "check(f)"),
        ),
        ("def f(x):\n    return f(x + 1)\n", ("assert f(1) == 1",)),
        ("def f(x):\n    return f(x + 1)\n", ("def check(candidate):\n    assert candidate(1) == 1", "check(f)")),
        ("def f(x):\n    return x\n", ("assert f(1) > 2, f'no {f(1)}'",)),
        ("def f(x):\n    return x\n", ("assert f(1) and f(0)",)),
        ("def f(x)\n    return x\n", ("assert f(1) == 1",)),
        ("def f(x):\n", ("assert f(1) == 1",)),
        ("def f(x):\n    return undefined\n", ("import math", "assert math.isclose(f(1), 1)")),
    ],
)
def test_feedback_is_the_same_whether_the_tests_are_judged_outside_or_stand_in_the_code(sandbox, code, tests):
    judged = sandbox.run(Program(code, tests))
    inside = sandbox.run(Program(Program(code, tests).source))
    assert judged.verdict == inside.verdict == Verdict.FAILED
    assert judged.feedback == inside.feedback
    assert judged.error == inside.error


def test_feedback_is_free_of_addresses_and_paths(sandbox):
    outcome = sandbox.run(Program("import os\nprint(object(), os.getcwd())\nraise ValueError(object())\n"))
    assert "0x7" not in outcome.feedback
    assert "attempts-" not in outcome.feedback
    assert outcome.feedback.count("0x...") == 2


def test_nothing_passes_from_one_program_to_the_next(sandbox):
    for _ in range(4):
        spoil = "import builtins, math\nbuiltins.len = None\nmath.pi = 3\nopen('left.txt', 'w').write('x')\n"
        assert sandbox.run(Program(spoil)).verdict == Verdict.PASSED
    look = "import math, os\nassert len('ab') == 2\nassert math.pi > 3.1\nassert os.listdir() == []\n"
    for _ in range(4):
        outcome = sandbox.run(Program(look))
        assert outcome.verdict == Verdict.PASSED, outcome


def test_sets_and_random_numbers_are_the_same_in_every_run(sandbox):
    program = Program("import random\nprint(set('abcdefgh'), random.random())\n")
    assert len({sandbox.run(program).feedback for _ in range(4)}) == 1


def test_processes_of_a_program_draw_other_numbers_than_it_does():
    code = """
import os, random
source, target = os.pipe()
if not os.fork():
    os.write(target, str(random.random()).encode())
    os._exit(0)
os.wait()
other = float(os.read(source, 100))
print(other == random.random())
"""
    with Sandbox(1, Limits(processes=8)) as sandbox:
        assert sandbox.run(Program(code)).feedback == "False\n"


def test_a_test_that_fails_is_told_though_the_next_one_hangs(sandbox):
    code = "def solve(x):\n    while x > 1:\n        pass\n    return x\n"
    started = time.monotonic()
    outcome = sandbox.run(Program(code, ("assert solve(1) == 2", "assert solve(2) == 2")))
    assert (outcome.verdict, time.monotonic() - started < 0.4) == (Verdict.FAILED, True)
    assert "got 1, expected 2" in outcome.feedback


def test_answers_that_a_pipe_does_not_hold_are_read(sandbox):
    code = "def solve(n):\n    return 'x' * n\n"
    tests = tuple(f"assert len(solve({size})) == {size}" for size in (1_000_000, 70_000, 10, 65_536))
    assert sandbox.run(Program(code, tests)).verdict == Verdict.PASSED


@pytest.mark.parametrize(
    ("closed", "verdict"),
    [
        ("3", Verdict.PASSED),
        ("4", Verdict.CRASHED),
        ("0, 1, 2, 3, 4", Verdict.CRASHED),
        ("*range(64)", Verdict.CRASHED),
    ],
)
def test_a_program_that_closes_descriptors_of_its_harness_spoils_its_own_answers_alone(sandbox, closed, verdict):
    """Without 3 it can not be asked anything, but what it was told to answer beforehand comes, and is right."""
    code = f"import os\nfor fd in [{closed}]:\n    try:\n        os.close(fd)\n    except OSError:\n        pass\n"
    code += "def solve(x):\n    return x\n"
    for _ in range(20):
        assert sandbox.run(Program(code, ("assert solve(1) == 1", "assert solve(2) == 2"))).verdict == verdict
        assert sandbox.run(Program(code, ("assert solve(1) == 1", "assert solve(2) == 3"))).verdict != Verdict.PASSED
    assert sandbox.run(ECHO).verdict == Verdict.PASSED


def test_a_flood_of_answers_is_not_kept():
    """The program speaks in the place of its harness so that the supervisor only waits for its end, and reads on."""
    code = """
import json, os, struct
for answer in ({"done": True}, {"first": 0, "values": [None]}):
    body = json.dumps(answer).encode()
    os.write(4, struct.pack("<I", len(body)) + body)
os.close(3)
while True:
    os.write(4, bytes(1 << 16))
"""
    with Sandbox(1, Limits(cpu_seconds=3, wall_seconds=6)) as sandbox:
        outcome = sandbox.run(Program(code, ("assert solve(1) == 1",)))
        assert outcome.verdict == Verdict.TIMEOUT
        status = pathlib.Path(f"/proc/{sandbox._all[0]._process.pid}/status").read_text()
        assert int(status.split("VmHWM:")[1].split()[0]) < 300 << 10, "KiB of the supervisor"
        assert sandbox.run(ECHO).verdict == Verdict.PASSED


@pytest.mark.parametrize("means", MEANS)
def test_what_one_program_leaves_in_its_directories_no_other_finds(means):
    leave = [
        "open('left', 'w').write('x')",
        "import os\nos.mkdir('left')",
        "import os\nos.chmod('.', 0o500)",
        "import os, shutil\nshutil.rmtree(os.getcwd())\nos.symlink('/etc', os.path.join(os.environ['HOME']))",
        "open(__import__('os').environ['TMPDIR'] + '/../left', 'w').write('x')",
        "import os\nos.setxattr('.', 'user.left', b'x')",
    ]
    look = "import os\nhere = os.getcwd()\nprint(os.listdir('.'), oct(os.stat('.').st_mode), os.listxattr('.'))"
    if means != "limits":
        look += "\nprint(os.listdir('/tmp'))"
    with Sandbox(1, means=[means]) as sandbox:
        clean = sandbox.run(Program(look)).feedback
        assert clean.startswith("[] 0o40700 []\n")
        for code in leave:
            sandbox.run(Program(code))
            assert sandbox.run(Program(look)).feedback == clean, code


def test_modules_that_the_zygote_did_not_load_can_be_imported(sandbox):
    outcome = sandbox.run(Program("import statistics, fractions, encodings.idna\nprint(statistics.mean([1, 3]))\n"))
    assert outcome.feedback == "2\n"


def test_map_keeps_the_order_and_takes_programs_lazily(sandbox):
    taken = []

    def programs():
        for number in range(40):
            taken.append(number)
            yield Program(f"print({number})\n")

    results = sandbox.map(programs())
    assert next(results).feedback == "0\n"
    assert len(taken) < 20
    assert [outcome.feedback for outcome in results] == [f"{number}\n" for number in range(1, 40)]


def test_directories_of_programs_are_gone_after_close(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Sandbox(1, LIMITS) as pool:
        pool.run(Program("import os\nos.makedirs('a/b/c')\n"))
        assert os.listdir(tmp_path)
    assert not os.listdir(tmp_path)


def test_killed_parent_leaves_no_directory_and_no_process(tmp_path):
    script = (
        "import os, signal, tempfile\ntempfile.tempdir = os.environ['PLACE']\nfrom data_gen.sandbox import *\n"
        "pool = Sandbox(1)\nprint(pool.run(Program('print(1)')).feedback)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = pathlib.Path(__file__).parents[2]
    environment = os.environ | {"PLACE": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    deadline = time.monotonic() + 10
    while os.listdir(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.listdir(tmp_path)


def test_lost_worker_is_replaced_and_the_program_run_again(sandbox):
    with Sandbox(1, LIMITS) as pool:
        pool._all[0]._process.kill()
        pool._all[0]._process.wait()
        assert pool.run(ECHO).verdict == Verdict.PASSED
        assert list(pool.map([ECHO] * 3))[2].verdict == Verdict.PASSED


def test_isolation_is_told(sandbox):
    assert "limits" in sandbox.isolation


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv to become a user")
def test_works_as_an_ordinary_user(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    script = textwrap.dedent("""\
        import os
        from data_gen.sandbox import Sandbox, Program, Limits
        assert os.getuid() == 65534
        with Sandbox(1, Limits(cpu_seconds=0.5)) as pool:
            print(pool.run(Program("x = 1\\n")).verdict, pool.run(Program("while True: pass\\n")).verdict)
        """)
    # The capability lets the user read an interpreter that lies in root's home directory, nothing else.
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    user += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    if subprocess.run([*user, sys.executable, "-c", ""], capture_output=True).returncode != 0:
        pytest.skip("setpriv can not keep the capability here")
    environment = {"PYTHONPATH": str(root), "PATH": os.defpath}
    done = subprocess.run([*user, sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["passed", "timeout"], done.stderr


def test_works_where_namespaces_are_not_to_be_had():
    with Sandbox(1, LIMITS, means=["limits"]) as pool:
        assert "lacks" in pool.isolation
        assert "network namespace" in pool.isolation
        assert pool.run(ECHO).verdict == Verdict.PASSED
        assert pool.run(Program("while True: pass\n")).verdict == Verdict.TIMEOUT
        killer = pool.run(Program("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nassert 0\n"))
        assert killer.verdict in (Verdict.FAILED, Verdict.CRASHED)
        assert pool.run(ECHO).verdict == Verdict.PASSED


def test_isolation_that_is_required_and_lacking_is_refused_in_one_sentence():
    with pytest.raises(
        SandboxError, match=r"isolation is required and this machine lacks .*network namespace"
    ) as raised:
        Sandbox(1, LIMITS, require_isolation=True, means=["limits"])
    assert "\n" not in str(raised.value)


def test_flag_of_the_command_requires_isolation_in_all_processes(monkeypatch, capsys):
    from data_gen import __main__ as command

    monkeypatch.setenv(REQUIRE, "")
    monkeypatch.setattr(Sandbox.__init__, "__kwdefaults__", Sandbox.__init__.__kwdefaults__ | {"means": ("limits",)})
    assert command.main(["languages"]) == 0
    assert command.main(["languages", "--require_isolation"]) == 1
    assert "error: isolation is required and this machine lacks" in capsys.readouterr().err


def test_a_limit_that_can_not_be_set_is_no_limit_of_another_size():
    before = resource.getrlimit(resource.RLIMIT_CPU)
    if before[1] != resource.RLIM_INFINITY:
        pytest.skip("this process has a limit on CPU time, below which any other can be set")
    with pytest.raises(ValueError, match="limit"):
        namespaces.limit([(resource.RLIMIT_CPU, 10, 5)])
    assert resource.getrlimit(resource.RLIMIT_CPU) == before


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="memory_mb is 0; it must be above 0"):
        Limits(memory_mb=0)
