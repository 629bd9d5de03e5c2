"""A killed build goes on where it was: no problem is done twice, the result is that of an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_gen.build import BuildError, build, family_problems
from data_gen.job import Done
from data_gen.journal import Journal
from data_gen.parallel import CHUNK
from tests.data_gen.test_build import records

ROOT = Path(__file__).parents[2]
COMMAND = ["build", "--problems=families", "--count=160", "--seed=3", "--heldout=10", "--workers=2"]


def start(output, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "data_gen", *COMMAND, f"--output={output}", *more],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_sigkill_at_any_time_loses_only_problems_in_flight(tmp_path):
    build(family_problems(160, 3), tmp_path / "whole", seed=3, heldout=10, workers=2)
    killed, log = tmp_path / "killed", tmp_path / ".killed-journal" / "done.jsonl"
    seen: list[str] = []
    for lines in (1, 25, 60, 110):
        process = start(killed)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_bytes().count(b"\n") >= lines:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = [json.loads(line)["job"] for line in log.read_bytes().split(b"\n")[:-1]]
        assert now[: len(seen)] == seen  # what was noted stays as it is
        assert max(Counter(now).values()) == 1
        seen = now
    assert len(seen) >= 110
    with log.open("ab") as file:
        file.write(b'{"job": "families/half a li')  # as if the kill had come in the middle of a write
    process = start(killed)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    done = [line for line in said.splitlines() if line.startswith("building traces")][-1]
    assert "160/160" in done
    executions = json.loads((killed / "statistics.json").read_text())["executions"]
    assert executions == json.loads((tmp_path / "whole" / "statistics.json").read_text())["executions"]
    for path in sorted((tmp_path / "whole").glob("*.tfrecord*")):
        assert path.read_bytes() == (killed / path.name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


def test_results_are_noted_one_by_one_and_not_a_chunk_at_a_time(tmp_path):
    """At a kill at most the problems that a worker holds are lost: two workers, a chunk each."""
    from data_gen import build as module

    problems, noted = family_problems(40, 3, workers=1), []

    class Stop(Exception):
        pass

    original = Journal.add

    def add(self, job, done):
        original(self, job, done)
        noted.append(job)
        if len(noted) == 3:
            raise Stop

    module.Journal.add = add
    try:
        with pytest.raises(Stop):
            build(problems, tmp_path / "out", seed=3, heldout=0, workers=1)
    finally:
        module.Journal.add = original
    assert len(noted) == 3 < CHUNK


def test_another_build_and_another_process_are_refused(tmp_path):
    settings = {"seed": 1, "problems": "x"}
    with Journal(tmp_path / "out", settings) as journal:
        journal.add("a", Done(executions=3))
        with pytest.raises(BuildError, match="another process is building"):
            Journal(tmp_path / "out", settings)
        with pytest.raises(BuildError, match="problem 'a' was done twice"):
            journal.add("a", Done())
    with pytest.raises(
        BuildError, match=r"unfinished build of .*out was built with seed=1, now it is 2; .*remove .*-journal"
    ):
        Journal(tmp_path / "out", {**settings, "seed": 2})
    with Journal(tmp_path / "out", settings) as journal:
        assert "a" in journal
        assert [done.executions for done in journal.read(["b", "a"])] == [3]
        journal.spend({"cost": 0.5, "requests": 1})
    with Journal(tmp_path / "out", settings) as journal:
        assert journal.usage == {"cost": 0.5, "requests": 1}
        journal.remove()
    assert not list(tmp_path.iterdir())


def test_a_damaged_journal_is_told(tmp_path):
    with Journal(tmp_path / "out", {}) as journal:
        journal.add("a", Done())
        path = journal.directory / "done.jsonl"
    path.write_bytes(b"{not json}\n" + path.read_bytes())
    with pytest.raises(BuildError, match=r"done.jsonl is damaged at byte 0"):
        Journal(tmp_path / "out", {})


def test_a_full_disk_is_one_sentence_and_costs_nothing_noted(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with Journal(tmp_path / "out", {}) as journal:
        journal.add("a", Done())
        real = journal._file
        journal._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 - a device that is always full
        with pytest.raises(BuildError, match=r"No space left on device.*run the same command again: nothing"):
            journal.add("b", Done())
        journal._file.close()
        journal._file = real
    with Journal(tmp_path / "out", {}) as journal:
        assert ("a" in journal, "b" in journal) == (True, False)


def test_a_place_that_can_not_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="can not be written"):
        build(family_problems(3, 0, workers=1), tmp_path / "file" / "out")


def test_records_come_back_as_they_were(tmp_path):
    output = tmp_path / "out"
    build(family_problems(12, 1, workers=1), output, heldout=0)
    assert len(records(output)["reflection"]) >= 10


def test_results_and_spending_from_many_threads_are_found_where_they_lie(tmp_path):
    """A model's requests are paid for in threads of their own, while results are noted."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with Journal(tmp_path / "out", {}) as journal, ThreadPoolExecutor(8) as pool:
            names = [f"p{number}" for number in range(400)]
            notes = [pool.submit(journal.add, name, Done(skipped=name)) for name in names]
            spends = [pool.submit(journal.spend, {"cost": 1.0}) for _ in range(400)]
            for future in (*notes, *spends):
                future.result()
            assert [done.skipped for done in journal.read(names)] == names
            assert journal.usage == {"cost": 400.0}
    finally:
        sys.setswitchinterval(interval)
    with Journal(tmp_path / "out", {}) as journal:
        assert [done.skipped for done in journal.read(names)] == names
        assert journal.usage == {"cost": 400.0}
