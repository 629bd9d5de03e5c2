"""``validate`` finds nothing wrong in what was built, and everything that was changed afterwards; the page shows it."""

import json
import shutil

import pytest

from data_gen.build import build, family_problems
from data_gen.builder import write_dataset
from data_gen.dataset import sample
from data_gen.page import write_page
from data_gen.problems import Problem
from data_gen.statistics import BuildError
from data_gen.validate import validate
from tests.data_gen.test_build import command, records

LARGEST = "def f(xs: list[int]) -> int:\n    return max(xs) if xs else 0\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    output = tmp_path_factory.mktemp("data") / "traces"
    build(family_problems(24, seed=5, workers=1), output, heldout=4, workers=1)
    return output


def changed(built, output, split, change):
    """The dataset with one record of ``split`` changed by ``change``."""
    splits = records(built)
    change(splits[split][0])
    made = write_dataset(splits, output.parent / "aside")
    shutil.copy(built / "statistics.json", made)
    shutil.move(made, output)
    return output


def test_what_was_built_holds(built):
    report = validate(built, 0, workers=1)
    assert report.failures == []
    assert report.checked == sum(len(found) for found in records(built).values()) >= 40
    assert report.counts["answers that pass their tests"] == report.checked
    assert report.counts["rounds with the same feedback"] >= 2 * 16
    assert validate(built, 2, workers=1).checked == 6


def edit(block, old, new):
    def change(record):
        turns = json.loads(record["messages"])
        place = turns[1]["content"][block] if block is not None else turns[-1]["content"][0]
        assert old in place["content"]
        place["content"] = place["content"].replace(old, new)
        record["messages"] = json.dumps(turns)

    return change


def rounds(record):
    record["rounds"] += 1


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("reflection", edit(2, "Error", "Errer"), "round 1 says"),
        ("reflection", edit(-1, "ok", "done"), "says 'done'"),
        ("reflection", edit(None, "return", "return None and"), "the answer does not pass its tests"),
        ("instruction", lambda r: r.update(tests='["assert False"]'), "the answer does not pass its tests"),
        ("reflection", rounds, "attempts fail, the record says"),
    ],
)
def test_what_was_changed_is_found(built, tmp_path, split, change, message):
    report = validate(changed(built, tmp_path / "out", split, change), 0, workers=1)
    assert len(report.failures) == 1
    assert message in report.failures[0]


def test_verdicts_of_verifiers_are_proved_again(tmp_path):
    pytest.importorskip("hypothesis")
    pytest.importorskip("mypy")
    tests = ("assert f([3, 1, 2]) == 3", "assert f([1, 2]) == 2")
    problems = [Problem(f"p{n}", f"p{n}", "x", ("Largest.",), LARGEST, "f", tests) for n in range(4)]
    output = tmp_path / "out"
    statistics = build(problems, output, heldout=0, verifiers=["properties", "typing"], seed=2, workers=1)
    assert statistics.verdicts["properties: passed"] == statistics.verdicts["typing: passed"] >= 2
    report = validate(output, 0, workers=1)
    assert report.failures == []
    assert '"properties": "passed"' in next(sample(output, "reflection"))["verdicts"]


def test_the_command_ends_with_status_one_where_something_does_not_hold(built, tmp_path):
    status, out, _ = command("validate", built, "--examples=3")
    assert status == 0
    assert "0 failures" in out
    bad = changed(built, tmp_path / "bad", "reflection", edit(-1, "ok", "done"))
    status, out, _ = command("validate", bad, "--examples=0")
    assert status == 1
    assert "not so: families/" in out
    status, _, err = command("validate", tmp_path / "none")
    assert status == 1
    assert err.count("\n") == 1


def test_the_page_holds_statistics_and_escaped_examples(built, tmp_path):
    page = tmp_path / "page.html"
    count = write_page(built, str(page), count=30)
    text = page.read_text()
    assert text.count("<details data-split") == count
    assert "AssertionError" in text
    assert 'class="block execution"' in text
    evil = changed(built, tmp_path / "evil", "reflection", edit(0, ".", "<script>alert(1)</script>"))
    write_page(evil, str(page))
    assert "<script>alert" not in page.read_text()
    with pytest.raises(BuildError, match="--split=none is not in"):
        write_page(built, str(page), split="none")
    with pytest.raises(BuildError, match="can not be written"):
        write_page(built, str(tmp_path / "no" / "page.html"))
    status, out, _ = command("inspect", built, f"--html={page}", "--examples=6")
    assert (status, page.read_text().count("<details data-split")) == (0, 6)
    assert "with 6 examples" in out
