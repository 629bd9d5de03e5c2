"""Ablations: rows change what they say and nothing else, runs are shared between processes and survive a kill."""

import json
import re
import signal
import time
from xml.etree import ElementTree

import pytest

from configs import ablations
from rcjax.ablation import AblationError, row_config, select
from rcjax.train.program import average_of, make_curriculum, objective_of
from rcjax.workdir import WorkdirError, flatten, open_workdir
from tests import launcher
from tests.test_launch import SMALL, command, environment, launch

CONFIG = "configs/ablations.py:tiny"
FIELDS = [f"base.{field}" for field in SMALL]
CHOSEN = ("--mode=ablate", "--rows=instructions,full")


@pytest.mark.parametrize("base", ["tiny", "ds67b", "smollm2_135m"])
@pytest.mark.parametrize("row", ablations.get_config().rows)
def test_a_row_is_the_base_with_its_changes_and_can_be_trained(base, row):
    config = ablations.get_config(base)
    made = flatten(row_config(config, row, seed=2).to_dict())
    plain = flatten(config.base.copy_and_resolve_references().to_dict())
    changes = flatten(config.rows[row].to_dict())
    told = {field: value for field, value in made.items() if plain.get(field) != value}
    assert told.pop("seed") == plain["seed"] + 2
    assert told == {field: value for field, value in changes.items() if plain.get(field) != value}
    assert bool(told) or row == "full" or base != "tiny"
    settings = ablations.get_config(f"{base}/{row}")
    objective = objective_of(settings.objective)
    make_curriculum(settings.curriculum, objective)
    average_of(settings.teacher)


def test_groups_name_every_row_once():
    config = ablations.get_config()
    assert sorted(row for rows in config.groups.values() for row in rows) == sorted(config.rows)
    assert select(config, ["jsd", "paper", "full"])[:3] == ["jsd", "instructions", "reflection_ce"]
    assert len(select(config, ["paper", "full"])) == 6
    assert ablations.get_config("ds67b/full_second_source").data.sources == ("ReflectionSeq-DS",)


def test_mistakes_are_named():
    config = ablations.get_config()
    with pytest.raises(AblationError, match="'best' is neither a group"):
        select(config, ["paper", "best"])
    config.rows.full = {"curriculum": {"speed": 2}}
    with pytest.raises(AblationError, match=r"row full: config.curriculum has no field 'speed'"):
        row_config(config, "full")
    with pytest.raises(ValueError, match=r"there is no configs/huge.py"):
        ablations.get_config("huge")


def complaint(*arguments, config=CONFIG):
    done = launch(*arguments, config=config, fields=[], check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr


def test_modes_and_configs_that_do_not_go_together(tmp_path):
    workdir = f"--workdir={tmp_path}/w"
    assert "configs/ablations.py:BASE/ROW" in complaint(workdir, "--mode=train")
    assert "configs/ablations.py:BASE" in complaint(workdir, "--mode=ablate", config="configs/tiny.py")
    assert "--seeds belongs to --mode=ablate" in complaint(workdir, "--seeds=2", config="configs/tiny.py")
    assert "there is no configs/huge.py" in complaint(workdir, "--mode=ablate", config="configs/ablations.py:huge")
    assert "'best' is neither" in complaint(workdir, "--mode=ablate", "--rows=best")
    assert not (tmp_path / "w" / "runs").exists()


def start(workdir, *arguments):
    return launcher.start(
        command(f"--workdir={workdir}", *CHOSEN, *arguments, config=CONFIG, fields=FIELDS), environment()
    )


def test_killed_shared_and_continued(tmp_path):
    """One process is killed in its first run; two others share what is left; a later call adds a seed."""
    workdir = tmp_path / "w"
    killed = start(workdir, "--seeds=2")
    metrics = workdir / "runs/instructions/seed_0/metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_bytes().count(b"\n") > 5):
        assert killed.poll() is None, killed.said()
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    processes = [start(workdir, "--seeds=2") for _ in range(2)]
    codes = [process.wait(400) for process in processes]
    outputs = [process.said() for process in processes]
    assert codes == [0, 0], outputs
    runs = [re.findall(r"^--- run \d of 4: (\w+), seed (\d)$", said, re.MULTILINE) for said, _ in outputs]
    assert sorted(runs[0] + runs[1]) == sorted((row, seed) for row in ("instructions", "full") for seed in "01")
    assert runs[0]
    assert runs[1]

    table = json.loads((workdir / "ablations.json").read_text())
    assert table["num_problems"] == 6
    assert [row["row"] for row in table["rows"]] == ["instructions", "full"]
    for row in table["rows"]:
        stored = {}
        for seed in "01":
            run = workdir / "runs" / row["row"] / f"seed_{seed}"
            stored[seed] = json.loads((run / "evaluation/evaluation.json").read_text())["pass@1"]
            assert (run / "profile").exists() == (seed == "0")
            assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()] == list(range(1, 13))
        assert row["values"] == stored
        assert row["steps"] == 12
        assert list((workdir / table["profiles"][row["row"]]).glob("plugins/profile/*/*.xplane.pb"))
    seeds = [json.loads((workdir / f"runs/full/seed_{seed}/config.json").read_text())["seed"] for seed in "01"]
    assert seeds[1] == seeds[0] + 1
    assert table["rows"][0]["tokens"] < table["rows"][1]["tokens"]
    for name in ("pass_at_1.svg", "cost.svg"):
        ElementTree.parse(workdir / name)
    assert "| full | 2 |" in (workdir / "ablations.md").read_text()

    more = launch(f"--workdir={workdir}", *CHOSEN, "--seeds=3", config=CONFIG, fields=FIELDS).stdout
    assert re.findall(r"^--- run \d of 6: (\w+), seed (\d)$", more, re.MULTILINE) == [
        ("instructions", "2"),
        ("full", "2"),
    ]
    assert re.search(r"full +│ 3 ", more)


def test_rows_may_come_and_go_but_the_base_may_not(tmp_path):
    config = ablations.get_config()
    with open_workdir(tmp_path / "w", config):
        pass
    config.rows.mine = {"objective": {"alpha": 0.3}}
    config.groups.mine = ("mine",)
    with open_workdir(tmp_path / "w", config):
        pass
    config.base.train.batch_size += 1
    with pytest.raises(WorkdirError, match=r"config.base.train.batch_size is 16 there and 17 now"):
        open_workdir(tmp_path / "w", config)
