"""Several real processes are one run: the same numbers as one process, one log, and an end for all."""

import json
import re
import resource
import shutil
import signal
import sys
import time

import numpy as np
import pytest

from tests import launcher
from tests.processes import ended, environment, free_port, launched, places, start
from tests.train.several_worker import STEPS, small_training

DEVICES = 8  # of all processes together
WORKER = [sys.executable, "-m", "tests.train.several_worker"]


def rows(workdir):
    """Lines of metrics."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def half_way(source, name):
    """A workdir like ``source`` when two steps were done."""
    workdir = source.parent / name
    workdir.mkdir()
    shutil.copytree(source / "checkpoints" / "2", workdir / "checkpoints" / "2")
    lines = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[:2]))
    return workdir


def check_equal(workdir, params, reference, theirs):
    """Each step once and the same examples; losses and parameters to what the order of sums allows."""
    ours = rows(workdir)
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    for row, other in zip(ours, rows(reference), strict=True):
        for name in ("loss", "ce", "kl", "grad_norm"):  # a small divergence is the difference of large numbers
            assert row[name] == pytest.approx(other[name], rel=2e-6, abs=1e-7), (row["step"], name)
        for name in ("computed_tokens", "mask_rate", "row_use", "visible_tokens_per_example", "learning_rate"):
            assert row[name] == other[name], (row["step"], name)
    assert params.keys() == theirs.keys()
    for name, numbers in theirs.items():
        np.testing.assert_allclose(params[name], numbers, rtol=1e-4, atol=2e-6, err_msg=name)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process with all devices makes: its workdir, and the parameters."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    return workdir, small_training(workdir)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_train_as_one_and_go_on_where_one_stopped(one, count, tmp_path):
    reference, params = one
    fresh = tmp_path / "fresh"
    workdirs = [fresh, half_way(reference, "one, then two")] if count == 2 else [fresh]
    port = free_port()
    results = ended(
        start(
            [[*WORKER, f"127.0.0.1:{port}", str(count), str(i), *map(str, workdirs)] for i in range(count)],
            [environment(DEVICES // count, tmp_path / "compiled")] * count,
        )
    )
    assert [code for code, *_ in results] == [0] * count, [text[-3000:] for _, *text in results]
    assert [out for _, out, _ in results[1:]] == [""] * (count - 1)
    assert results[0][1].count("train: 4/4 steps") == len(workdirs)
    for workdir in workdirs:
        check_equal(workdir, np.load(workdir / "params.npz"), reference, params)
        assert len(list(workdir.glob("events.out.tfevents.*"))) == 1
    assert {path.name for path in fresh.iterdir() if path.is_dir()} == {"checkpoints"}
    if count == 2:
        back = half_way(fresh, "two, then one")
        check_equal(back, small_training(back), reference, params)


# ---- the door


SMALL = [
    *("build.problems=24", "build.heldout=2", "build.instruction_share=0.8", "build.reflection_share=0.8"),
    *("tokenizer.vocab_size=320", "data.max_length=900", "packing.row_length=1800", "packing.cuts=1"),
    *("model.hidden_size=16", "model.intermediate_size=32", "model.num_layers=1", "model.num_heads=1"),
    *("model.num_kv_heads=1", "model.head_dim=16", "train.batch_size=4", "train.steps=8", "train.log_every=1"),
    *("checkpoint.every=2", "evaluation.max_new_tokens=4", "mesh.data=2"),
]


ROOM = 15_000  # bytes of a file that a process may write: less than its half of the token table, more than metrics


def wait_for(processes, condition, seconds=200):
    """Until something is so; the processes must live on."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, [process.said() for process in processes]
        assert all(process.poll() is None for process in processes), [process.said() for process in processes]
        time.sleep(0.02)


def launch(workdirs, kind="flags", fields=(), mode="train", join=60, count=2, only=None, everyone=()):
    """Starts ``launch.py`` in each process of a run; ``fields``: what the last process has besides."""
    processes = []
    for index, (flags, variables) in list(enumerate(places(kind, count)))[:only]:
        own = fields if index == count - 1 else ()
        arguments = [
            *("--config=configs/tiny.py", f"--mode={mode}"),
            *(f"--config.{field}" for field in (*SMALL, *everyone, *own)),
            *(f"--workdir={workdirs[index]}", f"--join_timeout={join}", *flags),
        ]
        processes.append(launcher.start(arguments, environment(1) | variables))
    return processes


def test_a_killed_process_ends_the_other_and_the_same_command_goes_on(tmp_path):
    """SLURM starts the first run, from nothing; Open MPI the second, which ends the whole pipeline."""
    workdir = tmp_path / "run"
    processes = launch([workdir] * 2, "slurm", mode="pipeline")
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        if (workdir / "metrics.jsonl").exists() and len(rows(workdir)) >= 3:
            break
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    (code, said, errors), (other, nothing, _) = launched(processes, 60)
    assert time.monotonic() - killed < 30
    assert (code, other) == (1, -signal.SIGKILL), errors[-2000:]
    assert said.count("build data: done") == 1
    assert nothing == ""
    assert "another process ended without a word" in errors
    assert "Traceback" not in errors

    before = rows(workdir)
    results = launched(launch([workdir] * 2, "ompi", mode="pipeline"))
    assert [code for code, *_ in results] == [0, 0], [text[-3000:] for _, *text in results]
    assert results[1][1] == ""
    assert "build data: already in" in results[0][1]
    after = rows(workdir)
    assert [row["step"] for row in after] == list(range(1, 9))
    for row, other in zip(before, after, strict=False):
        assert row["loss"] == pytest.approx(other["loss"], rel=2e-6)
    for name in ("results.json", "report.html", "export/model.safetensors", "evaluation/evaluation.json"):
        assert (workdir / name).stat().st_size > 0, name


def test_a_checkpoint_that_one_process_can_not_write_is_done_without_by_all(tmp_path):
    """One lacks room, then the directory is away, then the other lacks room until there were too many in a row."""
    workdir = tmp_path / "run"
    fields = ["train.steps=40000", "train.log_every=5", "checkpoint.every=10", "checkpoint.failures=8"]
    fields += ["model.hidden_size=32", "mesh.data=1", "mesh.fsdp=2"]
    processes = launch([workdir] * 2, mode="train", everyone=fields)
    checkpoints, away = workdir / "checkpoints", workdir / "away"

    def warnings():
        return [line for line in processes[0].said()[0].splitlines() if "TRAINING GOES ON WITHOUT IT" in line]

    def saved():
        return max((int(path.name) for path in checkpoints.glob("[0-9]*") if path.name.isdigit()), default=0)

    wait_for(processes, lambda: saved() >= 10)
    resource.prlimit(processes[1].pid, resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))
    wait_for(processes, warnings)
    resource.prlimit(processes[1].pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert "can not be written (process 1: " in warnings()[0]
    last = saved()
    wait_for(processes, lambda: saved() > last)

    seen = len(warnings())
    checkpoints.rename(away)
    wait_for(processes, lambda: len(warnings()) > seen)
    away.rename(checkpoints)
    last = saved()
    wait_for(processes, lambda: saved() > last)

    resource.prlimit(processes[0].pid, resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))
    (code, said, complained), (other, nothing, alike) = launched(processes)
    assert (code, other, nothing) == (2, 2, ""), (said, complained, alike)
    assert "the next failure ends the run" in said
    assert "another process failed" not in said, "the reason is that of the process that failed"
    assert (complained + alike).count("mend that and give the same command again") == 1
    assert "Traceback" not in complained + alike
    logged = [row["step"] for row in rows(workdir)]
    assert logged == [1, *range(5, logged[-1] + 1, 5)]


def test_one_process_is_told_to_stop_and_all_save_and_end_with_the_code_that_says_so(tmp_path):
    workdir = tmp_path / "run"
    fields = ["train.steps=300", "evaluation.max_new_tokens=1"]
    processes = launch([workdir] * 2, mode="train", everyone=fields)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        if (workdir / "metrics.jsonl").exists() and len(rows(workdir)) >= 3:
            break
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    results = launched(processes, 60)
    assert [code for code, *_ in results] == [75, 75], results
    step = int(re.search(r"told to stop: saved behind step (\d+) of 300", results[0][2])[1])
    assert [row["step"] for row in rows(workdir)] == list(range(1, step + 1))
    assert (workdir / "checkpoints" / str(step)).is_dir()
    assert results[1][1] == ""
    assert "Traceback" not in results[0][2] + results[1][2]


def test_configs_that_differ_are_refused_by_every_process(tmp_path):
    results = launched(launch([tmp_path / "run"] * 2, fields=["optimizer.learning_rate=0.5"]))
    for code, said, errors in results:
        assert (code, said) == (2, "")
        assert re.search(
            r"config.optimizer.learning_rate is 0.5 for process 1 \(.*\) and 0.004 for process 0 \(.*\); give all",
            errors,
        )
        assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_not_shared_is_refused_once(tmp_path):
    results = launched(launch([tmp_path / "run", tmp_path / "other"]))
    assert [(code, said) for code, said, _ in results] == [(2, "")] * 2, results
    assert results[0][2].count(f"process 1: workdir {tmp_path}/other is another directory here (") == 1
    assert "workdir" not in results[1][2]
    assert not (tmp_path / "other").exists()


def test_a_process_that_never_joins_is_named(tmp_path):
    ((code, said, errors),) = launched(launch([tmp_path / "run"] * 2, join=1, only=1))
    assert (code, said) == (2, "")
    assert "process 1 did not join within 1 s" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()
