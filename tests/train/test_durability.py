"""Runs that are killed, told to stop, short of room or fed nonsense: nothing is lost, and what can not be is said."""

import json
import random
import resource
import shutil
import signal
import time

import pytest

from tests import launcher
from tests.test_launch import SMALL, command, environment, metrics
from tests.test_launch import complaint as complaint_of

# One width to compile; figures of held-out problems beside the steps.
FIELDS = [
    *(*SMALL, "packing.cuts=1", "train.steps=30", "checkpoint.every=3", "evaluation.every=7", "build.heldout=4"),
    *("evaluation.max_new_tokens=8", "guards.spike=0"),
]
KILLS = 20
ROOM = 40_000  # bytes of a file: less than a checkpoint's token table takes, more than metrics do until there is room
# Programs of any size are kept: a run is started often.
ENVIRONMENT = environment() | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def start(workdir, *arguments, fields=FIELDS):
    return launcher.start(command(f"--workdir={workdir}", *arguments, fields=fields), ENVIRONMENT)


def finish(workdir, *arguments, fields=FIELDS):
    done = launcher.run(command(f"--workdir={workdir}", *arguments, fields=fields), ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done.stdout


def complaint(workdir, *fields):
    return complaint_of(f"--workdir={workdir}", "--mode=train", fields=[*FIELDS, *fields])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished pipeline that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    finish(workdir)
    return workdir


@pytest.fixture
def workdir(whole, tmp_path):
    """One with data and tokenizer, where training is yet to come."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("data", "tokenizer"):
        shutil.copytree(whole / name, workdir / name)
    return workdir


def rows(workdir):
    """Metrics by step: training's, and evaluations', which may come late."""
    found = metrics(workdir)
    evaluated = {row["step"]: {**row, "heldout_seconds": 0} for row in found if "heldout_pass@1" in row}
    return [row for row in found if "loss" in row], evaluated


def lines(workdir):
    file = workdir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_for(process, condition, seconds=120, pause=0.02):
    """Until ``condition`` holds; False if the process ended before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, process.said()
        if process.poll() is not None:
            return condition()
        time.sleep(pause)
    return True


def test_a_run_killed_twenty_times_is_bit_identical(whole, workdir):
    """At random moments: before the first step, in steps, saves and evaluations, and right behind them."""
    chance = random.Random(5)
    kinds = {"start": 0, "save": 0, "step": 0}
    for number in range(KILLS):
        process = start(workdir)
        before = lines(workdir)
        kind = chance.choices(list(kinds), weights=(1, 3, 4))[0]
        if kind == "start":
            time.sleep(chance.uniform(0.2, 2.0))
        elif kind == "save":  # its directory is there and has not got its name yet; the first of this life, or a later
            seen, enough = set(), chance.randint(1, 3)

            def saving(seen=seen, enough=enough):
                now = {path.name for path in (workdir / "checkpoints").glob("*tmp*")}
                seen.update(now)
                return now and len(seen) >= enough

            wait_for(process, saving, pause=0.002)
        else:  # lines behind the checkpoint are written anew: so many came in this life
            wait_for(process, lambda before=before: lines(workdir) not in (0, before))
            time.sleep(chance.uniform(0, 0.15))
        if process.poll() is None:
            kinds[kind] += 1
        process.kill()
        process.wait()
        if number == KILLS // 2:  # what is made of the unfinished model must not pass for the finished one's
            finish(workdir, "--mode=export")
            early = (workdir / "export/model.safetensors").read_bytes()
    assert sum(kinds.values()) >= KILLS - 4, "most kills met a living run"
    assert min(kinds.values()) >= 1, kinds
    finish(workdir)
    assert early != (workdir / "export/model.safetensors").read_bytes()
    ours, theirs = rows(workdir), rows(whole)
    assert ours[0] == theirs[0]
    assert ours[1] == theirs[1]
    assert list(ours[1]) == [7, 14, 21, 28]
    assert (workdir / "export/model.safetensors").read_bytes() == (whole / "export/model.safetensors").read_bytes()
    results = [json.loads((place / "results.json").read_text()) | {"seconds": 0} for place in (workdir, whole)]
    assert results[0] == results[1]


def test_the_account_of_what_took_the_time_lies_in_the_checkpoints(whole):
    accounts = []
    for step in (27, 30):
        data = json.loads((whole / f"checkpoints/{step}/data/metadata").read_text())
        accounts.append(data["goodput"]["seconds"])
    for account in accounts:
        assert account.pop("restart") == 0, "nobody disturbed it"
        assert min(account.values()) > 0, account
    assert all(accounts[0][kind] <= accounts[1][kind] for kind in accounts[0])
    shares = [row["goodput"] for row in map(json.loads, (whole / "metrics.jsonl").open()) if "goodput" in row]
    assert 0 < shares[-1] < 1


def test_told_to_stop_it_saves_behind_the_step_and_the_same_command_goes_on(whole, workdir):
    process = start(workdir, "--mode=train")
    assert wait_for(process, lambda: lines(workdir) >= 4)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    complained = process.said()[1]
    assert "the same command goes on" in complained
    assert "Traceback" not in complained
    (step,) = (int(word) for word in complained.split() if word.isdigit() and int(word) != 30)
    assert (workdir / "checkpoints" / str(step)).is_dir()
    assert rows(workdir)[0][-1]["step"] == step, "the step was finished and written down"
    finish(workdir, "--mode=train")
    assert rows(workdir) == rows(whole)


def test_a_gradient_that_is_never_finite_ends_the_run_with_a_dump(workdir):
    fields = ["optimizer.learning_rate=1e38", "optimizer.warmup_ratio=0.0", "guards.skips=3", "evaluation.every=0"]
    said = complaint(workdir, *fields)
    assert "the last 3 steps had no finite update (config.guards.skips)" in said
    assert "config.optimizer.learning_rate" in said
    (dump,) = (workdir / "dumps").iterdir()
    assert str(dump) in said
    steps = json.loads(dump.read_text())
    numbers = [entry["step"] for entry in steps]
    assert numbers == list(range(numbers[0], numbers[0] + 3))
    assert {len(entry["examples"]) for entry in steps} == {4}
    norms = steps[-1]["gradient norms"]
    assert len(norms["layers/mlp/down/kernel"]) == 2, "a norm for each layer"
    assert any(value in ("nan", "inf") for values in norms.values() for value in values)
    # Not one of them has touched the parameters.
    skipped = [row["skipped"] for row in rows(workdir)[0]]
    assert skipped == sorted(skipped)
    assert skipped[-1] >= 2


def saved(workdir, step):
    """Bytes of a checkpoint's tensors by name; without the steps that were done and skipped."""
    state = workdir / "checkpoints" / str(step) / "state"
    tensors = [*state.glob("params.*/[0-9]*"), *state.glob("opt_state.*/[0-9]*")]
    return {path.relative_to(state): path.read_bytes() for path in tensors}


def test_a_loss_that_stays_high_sends_it_back_and_on_with_new_data(workdir):
    """Any loss above the mean of the last counts as a spike here: one step in two or so."""
    fields = [*FIELDS, "guards.spike=0.01", "guards.rollback=2", "evaluation.every=0", "optimizer.learning_rate=1e-6"]
    fields.append("checkpoint.keep=100")
    said = finish(workdir, "--mode=train", fields=fields)
    assert "loss spike: " in said
    back = [line.split() for line in said.splitlines() if line.startswith("back to the parameters of step ")]
    assert back, said
    target, now = int(back[0][6].rstrip(";")), int(back[0][-1])
    assert target < now <= 30
    before, behind = (saved(workdir, step) for step in (target, now))
    assert before == behind, "parameters and moments are those of the checkpoint, bit for bit"
    assert len(before) > 30
    assert before != saved(workdir, 3 if target != 3 else 6), "which is not true of any two"
    found, _ = rows(workdir)
    assert [row["step"] for row in found] == list(range(1, 31)), "no step's data come twice, none is left out"
    later = next(row for row in found if row["step"] == min(30, now + 1))
    assert later["skipped"] >= now - target - 1


def test_short_of_room_it_trains_on_and_saves_when_there_is_some(whole, workdir):
    fields = [*FIELDS, "train.steps=100", "checkpoint.every=10", "checkpoint.failures=1000", "evaluation.every=0"]
    process = start(workdir, "--mode=train", fields=fields)
    assert wait_for(process, lambda: (workdir / "checkpoints/10").is_dir())
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))
    assert wait_for(process, lambda: "TRAINING GOES ON WITHOUT IT" in process.said()[0]), process.said()
    at = lines(workdir)
    assert wait_for(process, lambda: lines(workdir) > at + 10)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert process.wait(200) == 0, process.said()
    assert (workdir / "checkpoints/100").is_dir()
    assert [row["step"] for row in rows(workdir)[0]] == list(range(1, 101))


def test_too_many_failures_in_a_row_end_it_in_one_sentence(workdir):
    fields = [*FIELDS, "train.steps=4000", "checkpoint.every=10", "checkpoint.failures=1", "evaluation.every=0"]
    process = start(workdir, "--mode=train", fields=fields)
    assert wait_for(process, lambda: (workdir / "checkpoints/10").is_dir())
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))
    assert process.wait(200) == 2, process.said()
    said, complained = process.said()
    assert said.count("TRAINING GOES ON WITHOUT IT") == 1
    assert "earlier ones are whole: mend that and give the same command again" in complained
    assert "Traceback" not in complained


def test_a_checkpoint_that_is_damaged_or_of_another_run_is_named(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    newest = workdir / "checkpoints/30"
    next((newest / "state/params.embed.embedding").glob("0.*")).unlink()
    said = complaint(workdir)
    assert f"checkpoint {newest} can not be restored" in said
    assert "delete it to go on from an earlier one" in said
    shutil.rmtree(newest)
    finish(workdir, "--mode=train")
    assert rows(workdir) == rows(whole)
    for field, name in (
        ("model.intermediate_size=64", "model.intermediate_size"),
        ("optimizer.b1=0.8", "optimizer.b1"),
    ):
        other = tmp_path / name
        other.mkdir()
        for part in ("data", "tokenizer", "checkpoints"):
            shutil.copytree(whole / part, other / part)
        assert f"was made with {name}" in complaint(other, field)
