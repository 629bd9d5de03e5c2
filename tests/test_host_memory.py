"""The program starts over once, with huge pages, as the same process and with the same arguments."""

import os
import platform
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
import os, sys
print(os.getpid(), flush=True)
from rcjax.host_memory import ask_for_huge_pages
ask_for_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""

LIBRARY, VERSION = platform.libc_ver()
if LIBRARY != "glibc" or tuple(map(int, VERSION.split(".")[:2])) < (2, 35):
    pytest.skip("glibc is older than 2.35 or absent", allow_module_level=True)


def lines_of(**environment):
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"} | environment
    command = [sys.executable, "-c", PROGRAM, "--flag=a b", "c"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("given", [None, "glibc.malloc.perturb=0"])
def test_it_starts_over_once(given):
    first, second, last = lines_of(**({"GLIBC_TUNABLES": given} if given else {}))
    assert first == second  # one process
    expected = "glibc.malloc.hugetlb=1" if given is None else f"{given}:glibc.malloc.hugetlb=1"
    assert last == f"{expected} ['--flag=a b', 'c']"


def test_what_the_environment_says_stands():
    assert lines_of(GLIBC_TUNABLES="glibc.malloc.hugetlb=0")[1:] == ["glibc.malloc.hugetlb=0 ['--flag=a b', 'c']"]


@pytest.mark.parametrize(("mode", "asks"), [("inspect", True), ("score", False)])
def test_modes_that_compute_ask_for_it(mode, asks):
    program = (
        "import launch; from absl import app; launch.ask_for_huge_pages = lambda: print('asked'); "
        f"app.run(launch.main, argv=['launch.py', '--mode={mode}'], flags_parser=launch.parse_flags)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert "UsageError" in done.stderr  # for what it lacks
    assert ("asked" in done.stdout) == asks
