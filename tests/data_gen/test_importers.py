"""Published examples become an ordinary dataset directory; a wrong field is named by file and line."""

import gzip
import json

import pytest

from data_gen.build import BuildError
from data_gen.importers import find_files, import_records
from data_gen.problems import ProblemError
from rcjax.blocks import Conversation
from rcjax.data.records import training_conversations
from tests.data_gen.test_build import command, records
from tests.data_gen.test_readers import shared
from tests.hf.hub_server import serve


def block(kind, content):
    return {"type": kind, "content": content}


def reflection(number, **changes):
    trace = [
        block("text", "I try."),
        block("code", "def f(n):\n    return n\n\nassert f(1) == 2\n"),
        block("execution", f'File "/home/ann/{number}/cell.py", line 4\nAssertionError\n'),
        block("code", "def f(n):\n    return n + 1\n\nassert f(1) == 2\n"),
        block("execution", "ok"),
    ]
    answer = "Here:\n```python\ndef f(n):\n    return n + 1\n```"
    turns = [
        {"role": "user", "content": [block("text", f"Solve step by step: add one, {number} times as fast.")]},
        {"role": "assistant", "content": trace},
        {"role": "user", "content": [block("text", f"Add one, {number} times as fast.")]},
        {"role": "assistant", "content": [block("text", answer)]},
    ]
    return {"id": str(number), "type": "reflection", "messages": turns} | changes


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_reflections_and_instructions_become_a_dataset(tmp_path):
    untyped = {name: value for name, value in reflection(2).items() if name != "type"}
    first = write(tmp_path / "seq.jsonl", reflection(1), untyped)
    second = tmp_path / "alpaca.json.gz"
    rows = [{"instruction": "Say hi in JavaScript.", "input": "", "output": "```js\nconsole.log('hi')\n```"}]
    second.write_bytes(gzip.compress(json.dumps(rows).encode()))
    statistics = import_records([first, str(second)], tmp_path / "out")
    splits = records(tmp_path / "out")
    assert statistics.examples == {"instruction": 1, "reflection": 2}
    assert statistics.problems == {"read": 3, "scrubbed": 2}
    one = splits["reflection"][0]
    assert (one["id"], one["source"], one["rounds"], one["language"]) == ("seq/1", "seq", 1, "python")
    assert json.loads(one["tests"]) == ["assert f(1) == 2"]
    assert one["solution"] == "def f(n):\n    return n + 1\n"
    assert json.loads(one["messages"])[1]["content"][2]["content"] == 'File "cell.py", line 4\nAssertionError\n'
    assert splits["instruction"][0]["language"] == "javascript"
    conversations = training_conversations(tmp_path / "out", {"instruction": 1, "reflection": 2})
    assert {name: len(found) for name, found in conversations.items()} == {"instruction": 1, "reflection": 2}
    assert all(isinstance(example, Conversation) for found in conversations.values() for example in found)
    assert import_records([first, str(second)], tmp_path / "out") == statistics
    write(tmp_path / "seq.jsonl", reflection(1), reflection(3))
    with pytest.raises(BuildError, match="was built from other problems"):
        import_records([first, str(second)], tmp_path / "out")


def broken(place, value):
    record = reflection(9)
    at = record
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return record


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (broken(("type",), "chat"), "field 'type' is 'chat'"),
        (broken(("messages", 1, "role"), "tool"), r"messages\[1\].role is 'tool'"),
        (broken(("messages", 1, "content", 0, "type"), "image"), r"messages\[1\].content\[0\].type is 'image'"),
        (
            broken(("messages", 1, "content", 0, "content"), None),
            r"messages\[1\].content\[0\].content must be a string",
        ),
        (broken(("messages", 3, "content"), [block("text", " ")]), "the answer is empty"),
        (broken(("messages", 1, "content"), [block("text", "x")]), "has no block of type 'code'"),
        (broken(("messages",), reflection(1)["messages"] * 2), "has the roles user, assistant, user"),
        ({"instruction": "x", "output": ""}, "field 'output' must be a string with text in it"),
        ({"what": 1}, "field 'instruction' is missing"),
    ],
)
def test_a_wrong_field_is_named_or_left_out_and_listed(tmp_path, wrong, message):
    path = write(tmp_path / "seq.jsonl", reflection(1), wrong)
    with pytest.raises(ProblemError, match=rf"seq\.jsonl, line 2.*{message}.*--skip-invalid"):
        import_records([path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    statistics = import_records([path], tmp_path / "out", skip_invalid=True)
    assert statistics.problems["removed: invalid"] == 1
    (line,) = (tmp_path / "out" / "removed.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "invalid"


def test_duplicates_and_benchmarks_are_left_out(tmp_path):
    path = write(
        tmp_path / "seq.jsonl",
        reflection(1),
        reflection(2),
        {"instruction": "Sort the words of this by their length.", "output": "x"},
    )
    bench = write(tmp_path / "bench.jsonl", {"task_id": 5, "prompt": "sort the words of this by their length"})
    statistics = import_records([path], tmp_path / "out", near_duplicates=0.5, decontaminate=[bench])
    assert (
        statistics.problems["removed: near duplicate"] == statistics.problems["removed: overlaps with bench.jsonl"] == 1
    )
    assert statistics.examples == {"instruction": 0, "reflection": 1}


def test_directories_and_what_is_neither_file_nor_id(tmp_path):
    write(tmp_path / "b.jsonl", reflection(1))
    write(tmp_path / "a.json", reflection(1))
    assert [path.name for path in find_files(str(tmp_path))] == ["a.json", "b.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProblemError, match=r"holds no \.jsonl or \.json file"):
        find_files(str(tmp_path / "empty"))
    with pytest.raises(ProblemError, match="is neither a file nor the id of a data set"):
        find_files("/no/such/file.jsonl")


def test_a_set_is_fetched_from_the_hub(tmp_path):
    place = tmp_path / "set"
    place.mkdir()
    write(place / "train.jsonl", reflection(1))
    (place / "README.md").write_text("no data")
    with serve({"lab/reflections": {"main": place}}) as hub:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        output = f"--output={tmp_path / 'out'}"
        status, _, err = command("import", "--input=lab/reflections", output, environment=environment)
        assert status == 0, err
        assert hub.downloaded() == {"train.jsonl"}
        status, _, err = command("import", "--input=lab/none", f"--output={tmp_path / 'two'}", environment=environment)
    assert status == 1
    assert err.startswith("error: --input: data set lab/none can not be had from the hub (")
    assert err.count("\n") == 1


def test_the_reference_s_own_samples_are_read(golden, tmp_path):
    path = golden / "samples.jsonl"
    statistics = import_records([str(path)], tmp_path / "out")
    assert statistics.examples == {"instruction": 4, "reflection": 6}


def test_a_published_instruction_set_is_read(tmp_path):
    path = shared("code_instructions/code_alpaca_2k.json")
    with pytest.raises(ProblemError, match=r"record 238: field 'output' must be a string"):
        import_records([str(path)], tmp_path / "out")
    statistics = import_records([str(path)], tmp_path / "out", skip_invalid=True, near_duplicates=0.8)
    assert statistics.examples["instruction"] > 1800
    assert statistics.problems["removed: invalid"] < 10


def test_the_command_line_imports(tmp_path):
    path = write(tmp_path / "seq.jsonl", reflection(1))
    status, out, err = command("import", f"--input={path}", f"--output={tmp_path / 'out'}")
    assert (status, err) == (0, "")
    assert "wrote" in out
    status, _, err = command("import", f"--input={tmp_path / 'none'}", f"--output={tmp_path / 'two'}")
    assert status == 1
    assert err.count("\n") == 1
