"""Evaluations from the command line, of a real model whose answers are known: scores, resumption, rounds, report."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from rcjax.evaluation.benchmark_run import evaluate_benchmarks, read_results
from rcjax.evaluation.command import data_files
from rcjax.evaluation.generation import GenerationSettings, SettingsError
from rcjax.evaluation.journal import OutputError
from rcjax.evaluation.model import open_model
from rcjax.evaluation.run_comparison import ComparisonError, compare_runs
from tests import launcher
from tests.conftest import QUICK_TO_COMPILE
from tests.evaluation import taught

ROOT = Path(__file__).resolve().parent.parent.parent
CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The benchmark's file, and a cache of this test's own."""
    place = tmp_path_factory.mktemp("taught")
    taught.write_benchmark(place / "tasks.jsonl")
    return place


@pytest.fixture(scope="module")
def data(place):
    return place / "tasks.jsonl"


@pytest.fixture(scope="module")
def model(place, data):
    return taught.write_model(place / "model", data)


@pytest.fixture(scope="module")
def untaught(place, data):
    return taught.write_model(place / "untaught", data, steps=0)


def command(*arguments):
    return ["--mode=evaluate", *map(str, arguments)]


def on_tasks(model, data, output, *arguments):
    flags = (f"--model={model}", "--benchmarks=humaneval+", f"--data={data}", f"--output={output}")
    return command(*flags, f"--max_new_tokens={taught.MAX_NEW_TOKENS}", *arguments)


def environment():
    return os.environ | {"XLA_FLAGS": QUICK_TO_COMPILE, "JAX_PLATFORMS": "cpu"}


def launch(arguments, check=True):
    done = launcher.run(arguments, environment())
    if check:
        assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done


def refused(arguments, message):
    done = launch(arguments, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(message, done.stderr), done.stderr


@pytest.fixture(scope="module")
def whole(place, model, data):
    """A finished evaluation with refinement, and what it said."""
    output = place / "whole"
    return output, launch(on_tasks(model, data, output, "--rounds=3")).stdout


def without_times(results):
    results = json.loads(json.dumps(results))
    del results["command"]
    for found in results["benchmarks"].values():
        del found["seconds"]
        for one in found.get("rounds", ()):
            del one["seconds_per_problem"]
    return results


def test_scores_are_those_of_the_programs_that_the_model_knows(whole):
    output, said = whole
    found = read_results(output)["benchmarks"]["humaneval+"]
    assert (found["base"]["pass@1"], found["plus"]["pass@1"], found["num_tasks"]) == (0.5, 0.25, 4)
    verdicts = {task: (one["base"], one["plus"]) for task, [one] in found["tasks"].items()}
    assert verdicts == {
        taught.RIGHT: ("pass", "pass"),
        taught.MENDS: ("fail", "fail"),
        taught.BASE_ALONE: ("pass", "fail"),
        taught.ENDLESS: ("fail", "fail"),
    }
    low, high = found["intervals"]["plus"]
    assert low < 0.25 < high
    assert "humaneval+: pass@1 base 50.0% [15.0%, 85.0%], plus 25.0%" in said


def test_a_generation_that_never_stops_is_cut_and_named(whole):
    output, said = whole
    found = read_results(output)["benchmarks"]["humaneval+"]
    assert found["unfinished"] == [taught.ENDLESS]
    row = next(row for row in taught.rows_of(output / "samples.jsonl") if row["task_id"] == taught.ENDLESS)
    assert (row["tokens"], row["finished"]) == (taught.MAX_NEW_TOKENS, False)
    assert "cut at max_new_tokens: 1" in said


def test_samples_are_whole_programs_in_evalplus_form(whole, data):
    output, _ = whole
    rows = taught.rows_of(output / "samples.jsonl")
    assert [row["task_id"] for row in rows] == [f"HumanEval/{number}" for number in range(4)]
    namespace = {}
    exec(rows[0]["solution"], namespace)
    assert namespace["double"](21) == 42
    assert rows[0]["answer"].startswith("def double(x):\n    return x + x\n```")
    assert rows[0]["prompt"].endswith("<|assistant|><|text|>```python\n")
    arguments = ["--mode=score", "--benchmark=humaneval+", f"--data={data}"]
    samples = output / "samples-humaneval+.jsonl"
    scored = launch([*arguments, f"--samples={samples}", f"--output={output}/again"])
    again = json.loads((output / "again/results.json").read_text())
    assert again["tasks"] == read_results(output)["benchmarks"]["humaneval+"]["tasks"], scored.stdout
    shutil.rmtree(output / "again")


def test_refinement_mends_what_feedback_helps_with_and_counts_its_cost(whole):
    output, _ = whole
    first, second, third = read_results(output)["benchmarks"]["humaneval+"]["rounds"]
    assert [(one["base"]["pass@1"], one["plus"]["pass@1"]) for one in (first, second, third)] == [
        (0.5, 0.25),
        (0.75, 0.5),
        (0.75, 0.5),
    ]
    # Four programs are run for round 2, the two that failed again for round 3; what passes the base tests is final.
    assert [one["executions_per_problem"] for one in (first, second, third)] == [0, 1, 1.5]
    assert [one["retried"] for one in (first, second, third)] == [0, 2, 1]
    assert first["tokens_per_problem"] < second["tokens_per_problem"] < third["tokens_per_problem"]
    assert first["seconds_per_problem"] < second["seconds_per_problem"] < third["seconds_per_problem"]
    mended = taught.rows_of(output / "samples-humaneval+-round2.jsonl")
    assert [row["task_id"] for row in mended] == [f"HumanEval/{number}" for number in range(4)]
    assert taught.MENDED in mended[1]["solution"]
    assert taught.MENDED not in taught.rows_of(output / "samples-humaneval+.jsonl")[1]["solution"]


def test_the_further_tests_stay_hidden_from_the_model(whole):
    output, _ = whole
    text = (output / "journal/humaneval+.jsonl").read_text()
    tried_again = {row["task_id"] for row in map(json.loads, text.splitlines()[1:]) if row["round"] > 1}
    assert tried_again == {taught.MENDS, taught.ENDLESS}, "what passes the base tests alone is not tried again"


def test_the_report_shows_scores_failures_and_the_trade_off(whole):
    output, _ = whole
    page = (output / "report.html").read_text()
    for text in ("50.0 %", "25.0 %", "ReflectionCoder-DS-6.7B", "80.5", "One-off and iterative", "3 rounds"):
        assert text in page
    assert page.count('<details class="card failure') == 3
    assert f'id="humaneval+/{taught.MENDS}"' in page
    assert f'id="humaneval+/{taught.RIGHT}"' not in page
    assert "triple(1): got 2, expected 3" in page, "the error"
    assert "Returns three times x." in page, "the prompt"
    assert '<span class="k">return</span>' in page, "the code, coloured"
    assert 'data-verdict="plus fail"' in page
    assert "http://" not in re.sub(r'xmlns="http://www.w3.org/2000/svg"|http://www.w3.org/2000/svg', "", page)
    assert 0 < page.count("<svg") == page.count("</svg>")


def test_a_finished_evaluation_writes_nothing_again(whole, model, data):
    output, _ = whole
    journal = (output / "journal/humaneval+.jsonl").read_bytes()
    before = read_results(output)
    launch(on_tasks(model, data, output, "--rounds=3", "--batch_size=1"))
    assert (output / "journal/humaneval+.jsonl").read_bytes() == journal
    assert without_times(read_results(output)) == without_times(before)


def test_a_killed_evaluation_goes_on_to_the_same_results(whole, place, model, data):
    output = place / "killed"
    arguments = on_tasks(model, data, output, "--rounds=3", "--batch_size=1")
    process = launcher.start(arguments, environment())
    journal = output / "journal/humaneval+.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 2:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = journal.read_bytes()
    assert kept.count(b"\n") >= 2, process.said()
    journal.write_bytes(kept[: kept.index(b"\n", kept.index(b"\n") + 1) + 30])  # and in the middle of a line
    launch(arguments)
    assert journal.read_bytes().startswith(kept[: kept.index(b"\n", kept.index(b"\n") + 1) + 1])
    assert without_times(read_results(output)) == without_times(read_results(whole[0]))
    assert not [path for path in output.rglob(".*") if path.name != ".lock"], "nothing is left aside"


def test_two_evaluations_are_compared_task_by_task(whole, place, untaught, data):
    output, _ = whole
    other = place / "other"
    launch(on_tasks(untaught, data, other))
    said = launch(command(f"--output={output}", f"--compare={other}")).stdout
    assert "humaneval+ base against" in said
    found = read_results(output)["comparison"]["benchmarks"]["humaneval+"]
    base, plus = found["base"], found["plus"]
    assert (base["pass@1"], base["other pass@1"], base["difference"], base["p_value"]) == (0.5, 0.0, 0.5, 0.5)
    assert base["gained"] == [taught.RIGHT, taught.BASE_ALONE]
    assert (plus["gained"], plus["lost"], plus["p_value"]) == ([taught.RIGHT], [], 1.0)
    assert "tasks that changed sides" in (output / "report.html").read_text()
    turned = compare_runs(read_results(other), read_results(output), "other")["benchmarks"]["humaneval+"]["base"]
    assert turned["lost"] == base["gained"]
    assert turned["interval"] == pytest.approx([-base["interval"][1], -base["interval"][0]], abs=0.3)


def test_the_directory_of_another_model_is_refused(whole, untaught, model, data):
    output, _ = whole
    before = (output / "results.json").read_bytes()
    refused(on_tasks(untaught, data, output), "holds the evaluation of another model: '.*model' with fingerprint")
    other = [word for word in on_tasks(model, data, output) if not word.startswith("--max_new_tokens")]
    refused([*other, "--max_new_tokens=20"], "another max_new_tokens: 48 there, 20 now")
    assert (output / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model=nowhere/at/all", "--benchmarks=humaneval+", "--output=x"), "does not exist"),
        (("--model=m", "--output=x"), "needs --benchmarks=NAMES"),
        (("--model=m", "--benchmarks=humaneval+"), "needs --output=DIR"),
        (("--model=m", "--benchmarks=humaneval+", "--output=x", "--num_samples=3"), "without draws"),
        (("--model=m", "--benchmarks=mbpp+", "--output=x", "--data=mbpp=f"), "names no benchmark"),
        (("--output=x", "--compare=y"), "holds no results.json"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message):
    refused(command(*flags), message)


def test_files_of_benchmarks_come_from_flags_and_config():
    configured = {"humaneval_plus": "h", "mbpp_plus": ""}
    names = ["humaneval+", "mbpp+"]
    assert data_files(names, [], configured) == {"humaneval+": "h", "mbpp+": None}
    assert data_files(names, ["mbpp+=m"], configured) == {"humaneval+": "h", "mbpp+": "m"}
    assert data_files(["mbpp+"], ["m"], configured) == {"mbpp+": "m"}
    with pytest.raises(SettingsError, match="give BENCHMARK=FILE"):
        data_files(names, ["m"], configured)


@pytest.mark.parametrize("chat_template", [CHATML, ""], ids=["chat", "completion"])
def test_models_without_block_tokens_are_asked_in_their_own_way(tmp_path, data, chat_template):
    directory = taught.write_model(tmp_path / "model", data, chat_template)
    settings = GenerationSettings(max_new_tokens=taught.MAX_NEW_TOKENS, rounds=2)
    results = evaluate_benchmarks(open_model(str(directory)), {"humaneval+": data}, settings, tmp_path / "out")
    assert results["settings"]["prompt_format"] == ("chat" if chat_template else "completion")
    first, second = results["benchmarks"]["humaneval+"]["rounds"]
    assert (first["base"]["pass@1"], second["base"]["pass@1"]) == (0.5, 0.75)
    assert (first["plus"]["pass@1"], second["plus"]["pass@1"]) == (0.25, 0.5)


def test_more_samples_may_be_added_and_each_keeps_its_draw(tmp_path, untaught, data):
    model = open_model(str(untaught))
    draws = dict(max_new_tokens=6, temperature=1.0, seed=5)
    evaluate_benchmarks(model, {"humaneval+": data}, GenerationSettings(num_samples=2, **draws), tmp_path / "two")
    journal = (tmp_path / "two/journal/humaneval+.jsonl").read_text()
    settings = GenerationSettings(num_samples=3, **draws)
    results = evaluate_benchmarks(model, {"humaneval+": data}, settings, tmp_path / "two")
    assert (tmp_path / "two/journal/humaneval+.jsonl").read_text().startswith(journal)
    evaluate_benchmarks(model, {"humaneval+": data}, settings, tmp_path / "three")
    rows = [[(row["task_id"], row["answer"]) for row in taught.rows_of(tmp_path / name / "samples.jsonl")]
            for name in ("two", "three")]  # fmt: skip
    assert rows[0] == rows[1], "a sample's draw does not depend on when and beside what it was made"
    assert len({answer for _, answer in rows[0]}) > 6
    found = results["benchmarks"]["humaneval+"]
    assert {"pass@1", "pass@3"} <= found["base"].keys()
    assert all(len(verdicts) == 3 for verdicts in found["tasks"].values())
    with pytest.raises(OutputError, match=r"another temperature: 1\.0 there, 0\.5 now"):
        evaluate_benchmarks(
            model, {"humaneval+": data}, GenerationSettings(**(draws | {"temperature": 0.5})), tmp_path / "two"
        )


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(SettingsError, match="the same program every time"):
        GenerationSettings(num_samples=2)
    with pytest.raises(SettingsError, match="--rounds and --num_samples"):
        GenerationSettings(num_samples=2, temperature=1.0, rounds=2)


def test_runs_of_different_data_are_not_compared():
    def run(name, version):
        return {"model": {}, "benchmarks": {name: {"data_version": version, "tasks": {}}}}

    with pytest.raises(ComparisonError, match="another version of mbpp: v2 there, v1 here"):
        compare_runs(run("mbpp", "v1"), run("mbpp", "v2"), "x")
    with pytest.raises(ComparisonError, match="no benchmark in common"):
        compare_runs(run("mbpp", "v1"), run("humaneval", "v1"), "x")


def test_the_fingerprint_is_that_of_all_parts_however_they_are_laid_out(model, untaught):
    import dataclasses

    import numpy as np

    from rcjax.evaluation.model import fingerprint
    from rcjax.sharding import make_mesh

    mine = open_model(str(model))
    assert mine.fingerprint == open_model(str(model)).fingerprint != open_model(str(untaught)).fingerprint
    split = open_model(
        str(model), make_mesh({"fsdp": 2, "tensor": 2, "data": -1})
    )  # eight devices, tables padded to 640
    assert split.config.table_size > mine.config.table_size
    assert split.fingerprint == mine.fingerprint
    changed = {**mine.params, "norm": {"scale": mine.params["norm"]["scale"] * np.float32(1.001)}}
    assert fingerprint(mine.config, changed, mine.tokenizer) != mine.fingerprint
    other = dataclasses.replace(mine.config, rope_theta=5.0)
    assert fingerprint(other, mine.params, mine.tokenizer) != mine.fingerprint
