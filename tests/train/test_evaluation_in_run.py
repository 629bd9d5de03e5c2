"""Evaluation beside a real training: it changes no weight, and finds what an evaluation after the fact finds."""

import json
import shutil

import pytest

from tests import launcher
from tests.test_launch import SMALL, environment, launch, metrics

# Of its own head and taught little: it writes something, and something else at each step.
UNTIED = ("model.tie_embeddings=false", "optimizer.learning_rate=1e-3")
FIELDS = [*SMALL, *UNTIED, "build.heldout=4", "evaluation.max_new_tokens=12"]


def rows(workdir):
    """Rows of training, and figures of evaluations by step."""
    found = metrics(workdir)
    evaluated = {
        row["step"]: {name: value for name, value in row.items() if name not in ("step", "heldout_seconds")}
        for row in found
        if "heldout_pass@1" in row
    }
    return [row for row in found if "loss" in row], evaluated


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A pipeline without evaluation beside it."""
    workdir = tmp_path_factory.mktemp("runs") / "plain"
    launch(f"--workdir={workdir}", fields=FIELDS)
    return workdir


def beside(workdir, source):
    workdir.mkdir()
    for name in ("data", "tokenizer"):
        shutil.copytree(source / name, workdir / name)
    return [*FIELDS, "evaluation.every=3"]


@pytest.fixture(scope="module")
def evaluated(plain):
    workdir = plain.parent / "evaluated"
    launch(f"--workdir={workdir}", fields=beside(workdir, plain))
    return workdir


def test_training_is_bit_identical_with_and_without_it(plain, evaluated):
    assert rows(plain)[0] == rows(evaluated)[0]
    assert list(rows(evaluated)[1]) == [3, 6, 9, 12]
    ours, theirs = ((place / "export/model.safetensors").read_bytes() for place in (evaluated, plain))
    assert ours == theirs
    assert "Held-out problems" in (evaluated / "report.html").read_text()
    assert "Held-out problems" not in (plain / "report.html").read_text()


def test_it_finds_what_an_evaluation_after_the_fact_finds(evaluated):
    results = json.loads((evaluated / "results.json").read_text())
    lines = (evaluated / "evaluation/samples.jsonl").read_text().splitlines()
    lengths = [len(json.loads(line)["generation"]) for line in lines]
    assert sum(lengths) > 0
    last = rows(evaluated)[1][12]
    assert last == {
        "heldout_pass@1": results["pass@1"],
        "heldout_mean_characters": pytest.approx(sum(lengths) / len(lengths)),
    }
    assert len({row["heldout_mean_characters"] for row in rows(evaluated)[1].values()}) > 1, "each step has its own"


def test_a_checkpoint_of_a_run_is_evaluated_on_benchmarks(plain, tmp_path):
    from tests.evaluation.taught import write_benchmark

    flags = ("--benchmarks=humaneval+", f"--data={write_benchmark(tmp_path / 'tasks.jsonl')}", "--max_new_tokens=8")
    done = launcher.run(["--mode=evaluate", f"--workdir={plain}", *flags], environment())
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((plain / "benchmarks/results.json").read_text())
    assert results["model"]["step"] == 12
    assert results["settings"]["prompt_format"] == "blocks"
    assert results["benchmarks"]["humaneval+"]["num_tasks"] == 4
    assert (plain / "benchmarks/report.html").exists()
