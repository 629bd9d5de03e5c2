"""The dataset directory: whole or not at all, ordinary TFDS, split by task."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from data_gen.build import BuildError, build, family_problems, read_statistics
from data_gen.mutations import OMISSIONS
from data_gen.problems import Problem
from data_gen.readers import read_problems
from data_gen.teachers.choice import TeacherOptions
from rcjax.blocks import Conversation
from rcjax.data.tfrecord import RecordError, RecordFile, read_records, write_records

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("RCJAX_SHARED", ROOT.parent / "shared"))
SETTINGS = {"heldout": 10, "instruction_share": 0.6, "reflection_share": 0.6, "phrasings": 2}
GOOD = Problem("good", "good", "x", ("Add one.",), "def f(n):\n    return n + 1\n", "f", ("assert f(1) == 2",))
BAD = Problem("bad", "bad", "x", ("Add two.",), "def f(n):\n    return n + 1\n", "f", ("assert f(1) == 3",))


@pytest.fixture(scope="module")
def problems():
    return family_problems(60, seed=2, workers=1)


@pytest.fixture(scope="module")
def built(problems, tmp_path_factory):
    output = tmp_path_factory.mktemp("data") / "traces"
    statistics = build(problems, output, seed=1, workers=2, **SETTINGS)
    return output, statistics


def records(directory):
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(str(directory)).info
    found = {}
    for name, split in info.splits.items():
        raw = [data for path in split.filepaths for data in read_records(path)]
        assert len(raw) == split.num_examples
        parsed = [info.features.deserialize_example_np(data) for data in raw]
        found[name] = [{k: v.decode() if isinstance(v, bytes) else int(v) for k, v in r.items()} for r in parsed]
    return found


def test_metadata_is_ordinary_tfds_and_records_parse(built):
    output, statistics = built
    splits = records(output)
    assert {name: len(found) for name, found in splits.items()} == statistics.examples
    assert len(splits["heldout"]) == 10
    assert len(splits["instruction"]) == 2 * 30
    assert len(splits["reflection"]) >= 27
    for name, found in splits.items():
        for record in found:
            kind = "reflection" if name == "reflection" else "generation"
            assert record["type"] == kind
            messages = json.loads(record["messages"])
            example = Conversation.from_json({"id": record["id"], "type": kind, "messages": messages})
            assert len(example.messages) == (4 if kind == "reflection" else 2)
            assert (record["rounds"] > 0) == (kind == "reflection")
            assert json.loads(record["tests"])
            assert messages[-2]["content"][0]["content"] == record["prompt"]
            assert messages[-1]["content"][0]["content"] == f"```python\n{record['solution'].rstrip()}\n```"
    ids = [record["id"] for found in splits.values() for record in found]
    assert len(set(ids)) == len(ids)


def test_heldout_tasks_are_in_no_other_split(built):
    splits = records(built[0])
    held = {record["task"] for record in splits["heldout"]}
    train = [record for name in ("instruction", "reflection") for record in splits[name]]
    assert not held & {record["task"] for record in train}
    assert not {r["solution"] for r in splits["heldout"]} & {r["solution"] for r in train}
    assert not {r["prompt"] for r in splits["heldout"]} & {r["prompt"] for r in train}


def test_records_do_not_depend_on_the_number_of_workers(built, problems, tmp_path):
    build(problems, tmp_path / "again", seed=1, workers=1, **SETTINGS)
    assert records(tmp_path / "again") == records(built[0])


def test_teachers_take_tasks_in_turn_and_make_their_own_faults(problems, tmp_path):
    statistics = build(problems, tmp_path / "two", seed=1, workers=2, teacher="omissions,slips", **SETTINGS)
    sources = Counter(record["source"] for record in records(tmp_path / "two")["reflection"])
    assert abs(sources["omissions"] - sources["slips"]) <= 3
    alone = build(problems, tmp_path / "one", seed=1, workers=2, teacher="omissions", **SETTINGS)
    assert set(alone.faults) <= OMISSIONS
    assert len(alone.faults) >= 4
    other = build(problems, tmp_path / "other", seed=1, workers=2, teacher="slips", **SETTINGS)
    assert not set(other.faults) & OMISSIONS
    assert set(statistics.faults) <= set(alone.faults) | set(other.faults) | {"syntax slip"} | OMISSIONS
    assert sum(count for fault, count in statistics.faults.items() if fault in OMISSIONS) >= sources["omissions"]


def test_finished_build_is_kept_and_another_one_refused(built, problems, capsys):
    output, statistics = built
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    capsys.readouterr()
    assert build(problems, output, seed=1, **SETTINGS) == statistics
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before
    with pytest.raises(BuildError, match=r"was built with seed=1, now it is 2; name another --output"):
        build(problems, output, seed=2, **SETTINGS)
    with pytest.raises(BuildError, match="was built from other problems"):
        build(problems[:-1], output, seed=1, **SETTINGS)


def test_a_directory_that_is_no_build_is_refused(problems, tmp_path):
    with pytest.raises(BuildError, match=r"holds no statistics.json"):
        build(problems, tmp_path)


def test_nothing_is_left_behind_and_card_and_statistics_are_there(built):
    output, statistics = built
    assert [path.name for path in output.parent.iterdir()] == ["traces"]
    names = {path.name for path in output.iterdir()}
    assert {"dataset_info.json", "features.json", "statistics.json", "README.md"} <= names
    assert read_statistics(output) == statistics
    assert "Split" in (output / "README.md").read_text()


def test_reference_that_fails_its_own_tests_is_skipped_and_counted(tmp_path):
    statistics = build([GOOD, BAD], tmp_path / "out", heldout=0)
    assert statistics.problems["skipped: the reference fails its own tests (AssertionError)"] == 1
    assert {r["task"] for found in records(tmp_path / "out").values() for r in found} == {"good"}


def test_no_examples_left_says_how_many_were_dropped_and_why(tmp_path):
    with pytest.raises(BuildError, match=r"left of 1 problems \(1 dropped: the reference fails its own tests"):
        build([BAD], tmp_path / "out", heldout=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds is 0; it must be at least 1"),
        ({"reflection_share": 1.5}, "reflection_share is 1.5"),
        ({"heldout": 1.0}, "heldout is 1.0"),
        ({"heldout": 1}, "there are only 1 tasks"),
        ({"teacher": "nobody"}, "teacher 'nobody' is unknown; there are bugs"),
        ({"verifiers": ["luck"]}, "verifier 'luck' is unknown; there are written, properties, typing, crosshair"),
        ({"runner": "boat"}, "runner 'boat' is unknown; there are local, beam"),
        ({"near_duplicates": 3.0}, "near_duplicates is 3.0; it must lie between 0"),
        ({"teacher": "openai"}, "teacher 'openai' needs --model"),
        ({"teacher": "openai", "options": TeacherOptions(model="m", spend_limit=1.0)}, "spend_limit needs --price-in"),
        ({"runner": "beam", "options": TeacherOptions(spend_limit=1.0)}, "a spend_limit is kept by one process"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, settings, message):
    with pytest.raises(BuildError, match=message):
        build([GOOD], tmp_path / "out", **settings)


# ---- record files


def test_record_files_that_are_cut_or_damaged_name_file_and_byte(tmp_path):
    path = tmp_path / "a.tfrecord"
    assert write_records(path, [b"one", b"", b"three" * 100]) == 3
    file = RecordFile(path)
    assert (len(file), file[2], list(file)) == (3, b"three" * 100, [b"one", b"", b"three" * 100])
    file.close()
    whole = path.read_bytes()
    third = (12 + 3 + 4) + (12 + 0 + 4)
    for size in (len(whole) - 1, third + 20, third + 5):
        path.write_bytes(whole[:size])
        with pytest.raises(RecordError, match=rf"a\.tfrecord is cut short: the record at byte {third} is not whole"):
            RecordFile(path)
    path.write_bytes(whole[: third + 30] + b"X" + whole[third + 31 :])
    with pytest.raises(RecordError, match=f"the content of the record at byte {third} has a wrong checksum"):
        list(read_records(path))
    path.write_bytes(b"\xff" + whole[1:])
    with pytest.raises(RecordError, match="the length of the record at byte 0"):
        RecordFile(path)
    path.write_bytes(b"")
    assert list(read_records(path)) == []
    with pytest.raises(RecordError, match="can not be read"):
        RecordFile(tmp_path / "missing")


# ---- real problems


def test_traces_of_real_problems(tmp_path):
    path = SHARED / "data" / "mbpp" / "sanitized-mbpp.json"
    if not path.exists():
        pytest.skip(f"{path} is not at hand; set RCJAX_SHARED to run this")
    statistics = build(read_problems(path, "mbpp")[:40], tmp_path / "out", heldout=2)
    assert statistics.examples["reflection"] >= 34
    assert statistics.examples["heldout"] == 2


# ---- command line


def command(*arguments, cwd=None, environment=None):
    done = subprocess.run(
        [sys.executable, "-m", "data_gen", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd or ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (environment or {}),
    )
    return done.returncode, done.stdout, done.stderr


def test_command_line_builds_and_inspects(tmp_path):
    output = tmp_path / "out"
    status, out, err = command(
        "build", "--problems=families", "--count=30", "--heldout=5", f"--output={output}", "--families=lists,texts"
    )
    assert status == 0, err
    assert f"wrote {output}" in out
    status, out, err = command("inspect", output, "--examples=2")
    assert status == 0, err
    assert "EXECUTION" in out
    assert "examples" in out
    status, _, err = command("inspect", output, "--split=nothing")
    assert status == 1
    assert err.startswith("error: --split=nothing is not in")


def test_command_line_errors_are_one_sentence(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("{bad\n")
    status, _, err = command("build", f"--problems={path}", f"--output={tmp_path / 'out'}")
    assert status == 1
    assert err.count("\n") == 1
    assert err.startswith(f"error: {path}, line 1: not valid JSON")


def test_help_explains_flags_and_imports_no_jax():
    status, out, _ = command("build", "--help")
    assert status == 0
    for flag in ("--problems", "--format", "--teacher", "--output", "--heldout", "--prompts", "one JSON object a line"):
        assert flag.lower() in out.lower()
    status, out, _ = command("--help")
    assert status == 0
    assert "inspect" in out
    code = "import sys, data_gen.build, data_gen.readers, data_gen.inspect; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
