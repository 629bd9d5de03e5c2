"""Output directories: one model each, one process at a time, and nothing lost but the line that a kill cut."""

import json

import pytest

from rcjax.evaluation.journal import IDENTITY_FILE, OutputDirectory, OutputError

IDENTITY = {"model": "runs/a", "fingerprint": "a" * 64, "max_new_tokens": 16, "temperature": 0.0}
PROMPTS = {"benchmark": "mbpp", "data_version": "v1", "prompts": "c" * 64}


def entry(task, number=0, round=1, answer="x"):
    return {"task_id": task, "number": number, "round": round, "answer": answer}


def test_samples_come_back_and_a_cut_line_is_dropped(tmp_path):
    with OutputDirectory(tmp_path / "out", IDENTITY) as output:
        journal = output.journal("mbpp", PROMPTS)
        journal.add(entry("a"))
        journal.add(entry("b", answer="line\nbreak"))
        journal.close()
    path = tmp_path / "out/journal/mbpp.jsonl"
    whole = path.read_bytes()
    for cut in range(whole.rindex(b"\n", 0, -1) + 2, len(whole)):
        path.write_bytes(whole[:cut])
        with OutputDirectory(tmp_path / "out", IDENTITY) as output:
            journal = output.journal("mbpp", PROMPTS)
            assert list(journal.entries) == [("a", 0, 1)]
            journal.add(entry("b", answer="line\nbreak"))
            journal.close()
        assert path.read_bytes() == whole


def test_a_header_that_was_cut_is_written_again(tmp_path):
    with OutputDirectory(tmp_path / "out", IDENTITY) as output:
        output.journal("mbpp", PROMPTS).close()
        path = tmp_path / "out/journal/mbpp.jsonl"
        whole = path.read_bytes()
        path.write_bytes(whole[:10])
        output.journal("mbpp", PROMPTS).close()
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "b" * 64, "model": "runs/b"}, "another model: 'runs/a' with fingerprint aaaaaaaaaaaa there"),
        ({"max_new_tokens": 32}, "another max_new_tokens: 16 there, 32 now"),
        ({"temperature": 0.5}, "another temperature: 0.0 there, 0.5 now"),
    ],
)
def test_the_directory_of_another_evaluation_is_refused(tmp_path, change, message):
    OutputDirectory(tmp_path / "out", IDENTITY).close()
    with pytest.raises(OutputError, match=message):
        OutputDirectory(tmp_path / "out", IDENTITY | change)
    OutputDirectory(tmp_path / "out", IDENTITY | {"model": "moved/a"}).close()  # the same model under another name


def test_other_prompts_are_refused(tmp_path):
    with OutputDirectory(tmp_path / "out", IDENTITY) as output:
        output.journal("mbpp", PROMPTS).close()
        with pytest.raises(OutputError, match="another data_version: 'v1' there, 'v2' now"):
            output.journal("mbpp", PROMPTS | {"data_version": "v2"})


def test_foreign_busy_and_damaged_directories_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="holds other files"):
        OutputDirectory(tmp_path / "mine", IDENTITY)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"], "nothing is left in it"
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can not be written"):
        OutputDirectory(tmp_path / "file", IDENTITY)
    with OutputDirectory(tmp_path / "out", IDENTITY) as output:
        with pytest.raises(OutputError, match="in use by another process"):
            OutputDirectory(tmp_path / "out", IDENTITY)
        journal = output.journal("mbpp", PROMPTS)
        journal.add(entry("a"))
        journal.close()
        path = tmp_path / "out/journal/mbpp.jsonl"
        path.write_text(path.read_text() + "{broken\n" + json.dumps(entry("b")) + "\n")
        with pytest.raises(OutputError, match="line 3 is damaged"):
            output.journal("mbpp", PROMPTS)
    (tmp_path / "out" / IDENTITY_FILE).write_text("{")
    with pytest.raises(OutputError, match="can not be read"):
        OutputDirectory(tmp_path / "out", IDENTITY)
