"""The page: complete, self-contained, safe to open, and there whatever is missing."""

import html.parser
import itertools
import math
import re

import pytest

from data_gen.sandbox import Verdict
from rcjax.evaluation.problems import Problem
from rcjax.evaluation.report import NUM_SAMPLES, duration, pick_samples, write_report
from rcjax.evaluation.score import Evaluation, Sample

HOSTILE = "</pre></article><script>alert('x')</script><img src=x onerror=\"alert(1)\">{{ 7 * 7 }}&amp;\ud800"
VOID = {"meta", "input", "br", "hr", "img", "link"}


class Page(html.parser.HTMLParser):
    """Tags of a page, checked for balance; visible text; everything that would load or run."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data

    def count(self, tag, css=None):
        return sum(
            name == tag and (css is None or css in (attrs.get("class") or "").split()) for name, attrs in self.tags
        )


def sample(number, verdict=Verdict.PASSED, family="lists", error="", **texts):
    problem = Problem(
        id=f"{family}-{number}",
        task=f"{family}-{number}",
        family=family,
        prompt=texts.get("prompt", f"Write function number {number}."),
        tests=("assert f(1) == 2", texts.get("test", "assert f(2) == 3")),
        entry_point="f",
        solution="def f(x):\n    return x + 1\n",
    )
    code = texts.get("code", "def f(x):\n    return x + 1\n")
    generation = texts.get("generation", f"```python\n{code}```")
    return Sample(problem, 0, generation, code, verdict, error, texts.get("feedback", ""), 0.01)


def evaluation(num_passed=12, num_failed=8, **texts):
    verdicts = itertools.cycle(
        [(Verdict.FAILED, "AssertionError"), (Verdict.TIMEOUT, ""), (Verdict.FAILED, "NameError")]
    )
    samples = [sample(number, family=f"family{number % 3}", **texts) for number in range(num_passed)]
    for number, (verdict, error) in zip(range(num_failed), verdicts, strict=False):
        samples.append(sample(100 + number, verdict, f"family{number % 4}", error, **texts))
    return Evaluation(tuple(samples), {"generate": 1.0, "execute": 2.0}).to_json()


def metrics(steps=1000):
    return [
        {
            "step": step,
            "loss": 2.0 / (step + 1) + 0.1,
            "ce": 3.0 / (step + 1),
            "kl": 0.2,
            "mask_rate": step / steps,
            "visible_tokens_per_example": 200 - 100 * step / steps,
            "teacher_tokens_per_example": 300.0,
            "computed_tokens": 1000 * step,
            "learning_rate": 1e-3,
            "grad_norm": 1.0,
            "examples_per_second": 20.0,
            "tokens_per_second": 9000.0,
            "row_use": 0.95,
            "microbatches": 1,
        }
        for step in range(steps)
    ]


CONFIG = {"seed": 3407, "optimizer": {"learning_rate": 1e-3, "betas": (0.9, 0.95)}, "data": {"train": None, "dirs": []}}
SUMMARY = {
    "name": "tiny",
    "command": "python launch.py --config=configs/tiny.py",
    "num_params": 2_134_528,
    "seconds": {"data": 41.2, "train": 612.4},
    "versions": {"jax": "0.10.2"},
    "devices": "1 x cpu",
    "records": {"instruction": 14302},
}


def page(tmp_path, **changes):
    parts = {
        "metrics": metrics(),
        "evaluation": evaluation(),
        "baseline": evaluation(8, 12),
        "config": CONFIG,
        "summary": SUMMARY,
    }
    path = tmp_path / "run" / "report.html"
    write_report(path, **{**parts, **changes})
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


def test_page_shows_every_part_of_a_run(tmp_path):
    shown = page(tmp_path)
    for text in ("tiny", "60.0 %", "12 of 20 problems", "40.0 %", "+20.0 points", "2.13M", "10 min 54 s", "row_use"):
        assert text in shown.text
    for text in (
        "mask rate",
        "student view",
        "learning rate",
        "tokens per second",
        "cross entropy",
        "KL to the teacher",
    ):
        assert text in shown.text
    for text in ("family0", "timeout", "AssertionError", "optimizer", "0.9, 0.95", "0.10.2", "records.instruction"):
        assert text in shown.text
    assert shown.count("svg", "chart") == 7, "four cards, loss twice for its two scales, two cards of further metrics"
    assert shown.count("article", "sample") == NUM_SAMPLES


def test_page_loads_nothing_from_elsewhere(tmp_path):
    shown = page(tmp_path)
    for tag, attributes in shown.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert not {"src", "href", "srcset"} & set(attributes), tag
    source = (tmp_path / "run" / "report.html").read_text()
    # the name of SVG's namespace is no address that is loaded
    assert set(re.findall(r"https?://[^\"'\s)]+", source)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in source
    assert "url(" not in source


def test_hostile_texts_stay_texts(tmp_path):
    texts = dict.fromkeys(("prompt", "code", "feedback", "test"), HOSTILE)
    hostile = evaluation(**texts, generation=f"{HOSTILE}\n```python\n{HOSTILE}```")
    hostile["by_family"] = {HOSTILE: next(iter(hostile["by_family"].values()))}
    hostile["errors"] = {HOSTILE: 3}
    shown = page(
        tmp_path,
        metrics=[{**row, HOSTILE: 1.0} for row in metrics(5)],
        evaluation=hostile,
        config={HOSTILE: HOSTILE, "a": {HOSTILE: HOSTILE}},
        summary={
            **SUMMARY,
            "name": HOSTILE,
            "command": HOSTILE,
            "versions": {HOSTILE: HOSTILE},
            "seconds": {HOSTILE: 1.0},
        },
    )
    assert shown.count("script") == 1, "the page's own"
    assert shown.count("img") == 0
    assert not any(name.startswith("on") for _, attributes in shown.tags for name in attributes)
    assert shown.text.count("<script>alert('x')</script>") >= 20
    assert "{{ 7 * 7 }}" in shown.text
    assert shown.count("article") == NUM_SAMPLES


@pytest.mark.parametrize(
    "changes",
    [
        {"baseline": None},
        {"evaluation": None, "baseline": None},
        {"evaluation": None},
        {"metrics": []},
        {"metrics": metrics(1)},
        {
            "metrics": [
                {"step": 0, "loss": None},
                {"step": 1},
                {"loss": 1.0},
                {"step": 2, "loss": math.nan, "note": "x"},
            ]
        },
        {"metrics": [], "evaluation": None, "baseline": None, "config": {}, "summary": {}},
        {"evaluation": {"pass@1": 0.5}},
        {"baseline": {"pass@1": 0.5, "interval": [0.4, 0.6]}},
        {"evaluation": evaluation(0, 3)},
        {"evaluation": evaluation(2, 0)},
        {"summary": {"seconds": {"train": None}, "versions": {}}},
    ],
    ids=lambda changes: "+".join(changes),
)
def test_page_renders_when_parts_are_missing(tmp_path, changes):
    shown = page(tmp_path, **changes)
    assert "Traceback" not in shown.text
    measured = "not yet" not in shown.text
    assert measured == (changes.get("evaluation", True) is not None)


def test_long_series_and_texts_are_thinned(tmp_path):
    page(tmp_path, metrics=metrics(1000))
    short = (tmp_path / "run" / "report.html").stat().st_size
    long_texts = evaluation(code="x = 1\n" * 100_000, feedback="y" * 10**6)
    page(tmp_path, metrics=metrics(20_000), evaluation=long_texts)
    assert (tmp_path / "run" / "report.html").stat().st_size < short + 600_000


def test_samples_mix_passes_and_failures_and_show_the_range():
    samples = evaluation()["samples"]
    chosen = pick_samples(samples, 5)
    assert [one["verdict"] == "passed" for one in chosen] == [True, True, False, False, False]
    assert {one["verdict"] for one in chosen} == {"passed", "failed", "timeout"}
    assert {one["error"] for one in chosen} == {"", "AssertionError", "NameError"}
    assert len({one["family"] for one in chosen}) >= 3
    assert pick_samples(samples, 5) == chosen


@pytest.mark.parametrize(("passed", "failed"), [(0, 9), (9, 0), (1, 9), (9, 1), (1, 1), (0, 0)])
def test_samples_are_filled_up_from_what_there_is(passed, failed):
    if not passed + failed:
        assert pick_samples([], 5) == []
        return
    chosen = pick_samples(evaluation(passed, failed)["samples"], 5)
    assert len(chosen) == min(5, passed + failed)
    assert len({one["id"] for one in chosen}) == len(chosen)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.42 s"), (12.4, "12 s"), (59.9, "1 min 00 s"), (185, "3 min 05 s"), (3725, "1 h 02 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
