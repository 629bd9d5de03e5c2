"""The door itself, as a user types it: whole runs, resumed runs, and everything that a user can get wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import launcher
from tests.conftest import QUICK_TO_COMPILE

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    *("build.problems=60", "build.heldout=6", "build.instruction_share=0.8", "build.reflection_share=0.8"),
    *("tokenizer.vocab_size=400", "data.max_length=900", "packing.row_length=1800", "packing.rows_per_device=2"),
    *("model.hidden_size=32", "model.intermediate_size=48", "model.num_layers=2", "model.num_heads=2"),
    *("model.num_kv_heads=1", "model.head_dim=16", "train.batch_size=4", "train.steps=12", "train.log_every=1"),
    *("checkpoint.every=4", "evaluation.max_new_tokens=24"),
]


def command(*arguments, config="configs/tiny.py", fields=SMALL):
    return [
        f"--config={config}",
        *(f"--config.{field}" for field in fields),
        *map(str, arguments),
    ]


def environment(devices=1):
    flags = f"--xla_force_host_platform_device_count={devices} {QUICK_TO_COMPILE}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def launch(*arguments, check=True, devices=1, **keywords):
    done = launcher.run(command(*arguments, **keywords), environment(devices))
    if check:
        assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done


def metrics(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("examples_per_second", "tokens_per_second", "flops_per_second", "utilisation", "input_wait", "goodput")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished small pipeline."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    done = launch(f"--workdir={workdir}")
    return workdir, done.stdout


def test_pipeline_leaves_everything_that_the_readme_names(whole):
    workdir, said = whole
    for name in ("data/dataset_info.json", "tokenizer/tokenizer.json", "metrics.jsonl", "results.json", "report.html"):
        assert (workdir / name).stat().st_size > 0, name
    assert list(workdir.glob("events.out.tfevents.*"))
    results = json.loads((workdir / "results.json").read_text())
    assert {"pass@1", "num_problems", "interval", "export", "seconds"} <= results.keys()
    assert results["num_problems"] == 6
    assert {"build data", "tokenizer", "train", "evaluate", "export"} <= results["seconds"].keys()
    rows = metrics(workdir)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["mask_rate"] == 1.0
    assert rows[-1]["visible_tokens_per_example"] < rows[0]["visible_tokens_per_example"]
    assert "pass@1" in said


def test_second_call_skips_every_stage(whole):
    workdir, _ = whole
    before = {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").rglob("*")}
    started = time.monotonic()
    said = launch(f"--workdir={workdir}").stdout
    assert time.monotonic() - started < 60
    for stage in ("build data", "tokenizer", "evaluate", "export"):
        assert f"{stage}: already in" in said
    assert {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").rglob("*")} == before


def test_export_loads_in_transformers_and_generate_mode_writes_code(whole):
    import transformers

    workdir, _ = whole
    model = transformers.AutoModelForCausalLM.from_pretrained(workdir / "export")
    tokenizer = transformers.AutoTokenizer.from_pretrained(workdir / "export")
    prompt = "Return the largest number of xs."
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    generated = model.generate(**text, max_new_tokens=16, do_sample=False)[0, text["input_ids"].shape[1] :]
    theirs = tokenizer.decode(generated, skip_special_tokens=True)
    arguments = ("--mode=generate", f"--model={workdir / 'export'}", f"--prompt={prompt}", "--max_new_tokens=16")
    ours = subprocess.run(
        [sys.executable, "launch.py", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    from rcjax.evaluation.score import extract_code

    assert ours.stdout.strip() == extract_code(theirs).strip()


def test_generate_mode_draws_as_many_programs_as_asked_for(whole):
    export = whole[0] / "export"
    prompts = export.parent / "two_prompts"
    prompts.write_text("Return the largest number of xs.\n\nReturn the sum of xs.\n")

    def draw(*arguments):
        where = ("--mode=generate", f"--model={export}", f"--prompt_file={prompts}", "--max_new_tokens=12")
        done = launcher.run([*where, *arguments], environment())
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = ("--temperature=1.5", "--top_p=0.99", "--top_k=300", "--num_samples=3")
    drawn = draw(*options, "--seed=1")
    assert len(set(drawn.split("\n\n"))) > 3  # two prompts alone would be two programs
    assert drawn == draw(*options, "--seed=1")
    assert drawn != draw(*options, "--seed=2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temperature=-1"], "--temperature is -1.0; expected 0 (the most likely token) or more"),
        (["--temperature=1", "--top_p=1.5"], "--top_p is 1.5; expected above 0 and at most 1"),
        (["--temperature=1", "--top_k=-2"], "--top_k is -2; expected 0 (all tokens) or more"),
        (["--temperature=1", "--seed=-2"], "--seed is -2; expected 0 to 4294967295"),
        (["--num_samples=4"], "--num_samples=4 changes nothing without draws; add --temperature"),
        (["--top_p=0.9"], "--top_p=0.9 changes nothing without draws; add --temperature"),
    ],
)
def test_sampling_flags_that_can_not_be_meant_are_named(arguments, words):
    done = launcher.run(["--mode=generate", "--model=runs/none", "--prompt=x", *arguments], environment())
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_killed_while_building_data_builds_the_same_data(whole, tmp_path):
    reference, _ = whole
    workdir = tmp_path / "killed"
    for written_aside in (False, True):  # at once, and while the records are written
        process = launcher.start(command(f"--workdir={workdir}", "--mode=train"), environment())
        deadline = time.monotonic() + (60 if written_aside else 0.8)
        while not list(workdir.glob(".data.*")) and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (workdir / "data").exists()
    launch(f"--workdir={workdir}", "--mode=train")
    shards = sorted(path.name for path in (reference / "data").glob("*.tfrecord*"))
    assert len(shards) == 3
    for name in (*(f"data/{shard}" for shard in shards), "tokenizer/tokenizer.json"):
        assert (workdir / name).read_bytes() == (reference / name).read_bytes(), name
    assert metrics(workdir) == metrics(reference)
    assert [path.name for path in workdir.glob(".*") if path.name != ".lock"] == []


def test_a_run_goes_on_on_eight_devices_under_a_preset_to_the_same_losses(whole, tmp_path):
    reference, _ = whole
    workdir = tmp_path / "eight"
    shutil.copytree(reference, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")  # goes on from step 8
    fields = [*SMALL, "packing.rows_per_device=1", "sharding.preset=hybrid", "mesh.replica=2"]
    launch(f"--workdir={workdir}", "--mode=train", devices=8, fields=fields)
    rows = metrics(workdir)
    for ours, theirs in zip(rows, metrics(reference), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
    assert rows[8]["row_use"] < metrics(reference)[8]["row_use"]  # over more rows than one device has


def kill_at(line, workdir, **keywords):
    """Starts a run and kills it, as hard as can be, when ``line`` lines of metrics are there."""
    process = launcher.start(command(f"--workdir={workdir}", **keywords), environment())
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        file = workdir / "metrics.jsonl"
        if file.exists() and file.read_bytes().count(b"\n") >= line:
            break
        time.sleep(0.02)
    assert process.poll() is None, process.said()
    process.send_signal(signal.SIGKILL)
    process.wait()


def complaint(*arguments, **keywords):
    """Exit code and last words of a run that must fail in one sentence, without a traceback."""
    done = launch(*arguments, check=False, **keywords)
    assert done.returncode not in (0, -9)
    assert "Traceback" not in done.stderr
    return done.stderr


def test_workdir_of_another_config_is_refused_by_field(whole):
    workdir, _ = whole
    fields = [*SMALL, "optimizer.learning_rate=0.5"]
    assert "config.optimizer.learning_rate is 0.004 there and 0.5 now" in complaint(
        f"--workdir={workdir}", fields=fields
    )


def test_baseline_may_be_asked_for_afterwards(whole, tmp_path):
    workdir = tmp_path / "with_baseline"
    shutil.copytree(whole[0], workdir)
    said = launch(f"--workdir={workdir}", fields=[*SMALL, "baseline=true"]).stdout
    assert "baseline" in said
    baseline = json.loads((workdir / "results.json").read_text())["baseline"]
    assert 0 <= baseline["pass@1"] <= 1
    tokens = [metrics(place)[-1]["computed_tokens"] for place in (workdir, workdir / "baseline")]
    assert tokens[1] == pytest.approx(tokens[0], rel=0.1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (["optimizer.learning_rat=1"], "did you mean config.optimizer.learning_rate"),
        (["learning_rate=1"], "did you mean config.optimizer.learning_rate"),
        (["seed=many"], "config.seed"),
        (["curriculum.name=blok"], "config.curriculum.name is 'blok'"),
        (["objective.alpha=2.0"], "config.objective.alpha is 2.0"),
        (["data.train=/nowhere"], "/nowhere does not exist"),
        (["data.max_length=20"], "no example is left to train on"),
        (["packing.row_length=300"], "config.packing.row_length is 300, but the views of example '"),
        (["objective.name=table", "objective.distill={'NOISE': 1.0}"], "objective.distill: unknown region 'NOISE'"),
        (["profile.steps=5"], "config.profile.steps is '5'"),
        (["curriculum.name=slow"], "config.curriculum.name is 'slow'"),
        (["curriculum.block_order=('TEXT','CODE','NOISE')"], "unknown block type 'NOISE'"),
        (["mesh.data=3"], "config.mesh"),
        (["model.num_kv_heads=3"], "num_kv_heads"),
        (["objective.name=best"], "config.objective.name is 'best'"),
        (["data.sources=('slips',)"], "config.data.sources names 'slips', but "),
        (["train.compute_dtype=float7"], "config.train.compute_dtype"),
        (["packing.cuts=0"], "config.packing.cuts is 0; expected at least 1"),
        (["train.remat=some"], "config.train.remat is 'some'; expected one of none, dots, full, offload"),
    ],
)
def test_wrong_fields_are_answered_in_one_sentence(whole, tmp_path, fields, words):
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("data", "tokenizer"):
        shutil.copytree(whole[0] / name, workdir / name)
    assert words in complaint(f"--workdir={workdir}", fields=[*SMALL, *fields])


def test_what_training_would_refuse_is_refused_before_data_are_built(tmp_path):
    for number, (field, name) in enumerate(
        [
            ("packing.cuts=0", "packing.cuts"),
            ("train.remat=some", "train.remat"),
            ("curriculum.name=blok", "curriculum.name"),
            ("mesh.data=3", "mesh"),
        ]
    ):
        workdir = tmp_path / str(number)
        assert f"config.{name}" in complaint(f"--workdir={workdir}", fields=[*SMALL, field])
        assert not (workdir / "data").exists()


def test_truncated_record_file_is_named(whole, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    shutil.copytree(whole[0] / "data", workdir / "data")
    (shard,) = (workdir / "data").glob("*-reflection.tfrecord-*")
    shard.write_bytes(shard.read_bytes()[:-7])
    assert shard.name in complaint(f"--workdir={workdir}")


def test_missing_flags_and_files(tmp_path):
    assert "--workdir" in complaint()
    assert "no_such.py" in complaint(f"--workdir={tmp_path}/r", config="configs/no_such.py", fields=[])
    assert "no checkpoint" in complaint("--mode=evaluate", f"--workdir={tmp_path}/r2")
    assert "--top_k belongs to --mode=generate" in complaint(f"--workdir={tmp_path}/r", "--top_k=5")


def test_help_names_every_mode_quickly():
    started = time.monotonic()
    done = subprocess.run([sys.executable, "launch.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert time.monotonic() - started < 5
    for word in ("pipeline", "train", "evaluate", "export", "generate", "--workdir", "--config"):
        assert word in done.stdout
