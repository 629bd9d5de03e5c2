"""``report.html`` of an evaluation on benchmarks: scores beside published ones, costs, differences, every failure.

Turns ``results.json`` and ``samples.jsonl`` into the plain values that ``benchmark_report.html.jinja`` lays out. Every
text from outside is escaped there.
"""

from __future__ import annotations

import collections
import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rcjax.evaluation.charts import Estimate, interval_chart, number, scatter_chart
from rcjax.evaluation.journal import replace_text
from rcjax.evaluation.published import BENCHMARKS, PUBLISHED
from rcjax.evaluation.report import clip, duration, flatten, highlight_code, highlight_css, template

TITLES = {"humaneval": "HumanEval", "humaneval+": "HumanEval+", "mbpp": "MBPP", "mbpp+": "MBPP+"}
_CSS = {"pass": "passed", "fail": "failed", "timeout": "timeout", "error": "crashed", "skipped": "unknown"}
_SHOWN_IDS = 12


def write_benchmark_report(
    path: str | Path, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], created: str | None = None
) -> None:
    """Writes the page, whole or not at all.

    Args:
      path: the HTML file.
      results: content of ``results.json`` (``benchmark_run``).
      samples: rows of ``samples.jsonl``.
      created: when; None: now.
    """
    by_benchmark = collections.defaultdict(list)
    for row in samples:
        by_benchmark[row["benchmark"]].append(row)
    found = results["benchmarks"]
    settings = results["settings"]
    table = _table(results)
    failures = [_failure(row) for row in samples if row["base"] != "pass" or row["plus"] not in (None, "pass")]
    page = template("benchmark_report.html.jinja").render(
        name=str(results["model"]["name"]),
        created=created or datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        command=results.get("command"),
        scores=[_score(name, one, by_benchmark[name], settings) for name, one in found.items()],
        columns=[TITLES[name] for name in BENCHMARKS],
        table=table,
        sampled=settings["temperature"] > 0,
        published_plot=_published_plot(results) if table else "",
        rounds=[_rounds(name, one["rounds"]) for name, one in found.items() if one.get("rounds")],
        comparison=_comparison(results.get("comparison")),
        failures=failures,
        kinds=sorted({row["verdict"] for row in failures}),
        facts=_facts(results),
        highlight_css=highlight_css(),
    )
    replace_text(Path(path), page)


def _score(name: str, found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], settings) -> dict[str, Any]:
    """The card of one benchmark."""
    bars = [_bar(tests, found[tests]["pass@1"], found["intervals"][tests]) for tests in found["intervals"]]
    counts = collections.Counter(_verdict(row) for row in rows)
    total = sum(counts.values()) or 1
    return {
        "name": name,
        "title": TITLES.get(name, name),
        "num_tasks": f"{found['num_tasks']:,}",
        "samples": _drawn(settings),
        "rows": bars,
        "verdicts": [
            {"label": label, "css": _css(label), "count": f"{counts[label]:,}", "width": f"{100 * count / total:.3f}%"}
            for label, count in sorted(counts.items(), key=lambda item: (item[0] != "pass", -item[1]))
        ],
        "remarks": _remarks(found),
    }


def _drawn(settings: Mapping[str, Any]) -> str:
    if settings["temperature"] == 0:
        return "one greedy sample each"
    many = settings["num_samples"]
    return f"{many} sample{'s' if many > 1 else ''} each at temperature {settings['temperature']:g}"


def _bar(label: str, rate: float, interval: Sequence[float]) -> dict[str, Any]:
    low, high = interval
    return {
        "label": label,
        "text": f"{100 * rate:.1f} %",
        "interval_text": f"{100 * low:.1f}, {100 * high:.1f}",
        "width": f"{100 * rate:.2f}%",
        "left": f"{100 * low:.2f}%",
        "span": f"{100 * (high - low):.2f}%",
    }


def _remarks(found: Mapping[str, Any]) -> list[str]:
    """Sentences on what a reader of the score should know."""
    seconds = found["seconds"]
    speed = found["generated_tokens"] / seconds["generate"] if seconds["generate"] else 0.0
    remarks = [
        f"{found['generated_tokens']:,} tokens in {duration(seconds['generate'])} ({speed:,.0f} a second), scored in "
        f"{duration(seconds['score'])}",
        f"data {_version(found['data_version'])}",
    ]
    further = [f"pass@{key[5:]} {100 * rate:.1f} %" for key, rate in _last(found).items() if key != "pass@1"]
    if further:
        remarks.append(", ".join(further))
    if found["unfinished"]:
        remarks.append(f"cut at max_new_tokens: {len(found['unfinished'])}, {_ids(found['unfinished'])}")
    for field, what in (("skipped", "tasks not run on this machine"), ("missing", "tasks without a sample")):
        if found.get(field):
            whys = sorted(set(found[field].values())) if isinstance(found[field], Mapping) else []
            remarks.append(f"{len(found[field])} {what}" + (f": {'; '.join(whys)}" if whys else ""))
    if found.get("partial"):
        remarks.append("PARTIAL: not all tasks are counted")
    return remarks


def _last(found: Mapping[str, Any]) -> Mapping[str, float]:
    return found["plus" if "plus" in found["intervals"] else "base"]


def _ids(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_SHOWN_IDS]) + (" …" if len(ids) > _SHOWN_IDS else "")


def _version(version: str) -> str:
    return re.sub(r"(sha256:[0-9a-f]{12})[0-9a-f]+", r"\1…", version)


def _own(results: Mapping[str, Any]) -> dict[str, tuple[float, Sequence[float]]]:
    """Published benchmark -> this model's rate and interval."""
    own = {}
    for name in BENCHMARKS:
        family, plus = name.removesuffix("+"), name.endswith("+")
        for found in (results["benchmarks"].get(f"{family}+"), None if plus else results["benchmarks"].get(family)):
            tests = "plus" if plus else "base"
            if found and tests in found["intervals"]:
                own.setdefault(name, (100 * found[tests]["pass@1"], [100 * end for end in found["intervals"][tests]]))
    return own


def _table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table, this model first; none where it was not run on a published benchmark."""
    own = _own(results)
    if not own:
        return []
    cells = []
    for name in BENCHMARKS:
        if name in own:
            rate, (low, high) = own[name]
            cells.append({"text": f"{rate:.1f}", "interval": f"{low:.1f} – {high:.1f}"})
        else:
            cells.append({"text": "–", "interval": ""})
    rows = [{"name": results["model"]["name"], "mine": True, "cells": cells}]
    for model, rates in PUBLISHED.items():
        published = [{"text": f"{rate:.1f}", "interval": ""} for rate in rates]
        rows.append({"name": model, "mine": False, "cells": published})
    return rows


def _published_plot(results: Mapping[str, Any]) -> Any:
    own = _own(results)
    estimates = [
        Estimate(TITLES[name], own[name][0], tuple(own[name][1]), [rates[column] for rates in PUBLISHED.values()])
        for column, name in enumerate(BENCHMARKS)
        if name in own
    ]
    return _inline(interval_chart(estimates, "pass@1, %: this model with its interval, published ones pale", 34))


def _inline(drawing: str) -> Any:
    """A drawing of its own, coloured by the page instead of by its own style."""
    import markupsafe

    return markupsafe.Markup(re.sub(r"<style>.*?</style>| width=\"\d+\"", "", drawing, flags=re.DOTALL))


def _rounds(name: str, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One-off and iterative side by side."""
    tests = [kind for kind in ("base", "plus") if kind in rounds[0]]
    shown = tests[-1]
    labels = ["one-off", *(f"{one['round']} rounds" for one in rounds[1:])]
    points = [
        (
            one["tokens_per_problem"],
            Estimate(label, 100 * one[shown]["pass@1"], tuple(100 * end for end in one[shown]["interval"])),
        )
        for label, one in zip(labels, rounds, strict=True)
    ]
    first, last = rounds[0], rounds[-1]
    summary = ""
    if len(rounds) > 1:
        factor = last["tokens_per_problem"] / first["tokens_per_problem"] if first["tokens_per_problem"] else 0.0
        gain = 100 * (last[shown]["pass@1"] - first[shown]["pass@1"])
        summary = (
            f"{last['round']} rounds: {gain:+.1f} points of {shown} pass@1 for {factor:.1f} × the tokens, "
            f"{last['executions_per_problem']:.1f} executions and {duration(last['seconds_per_problem'])} a problem "
            f"instead of {duration(first['seconds_per_problem'])}."
        ).replace("-", "−", 1 if gain < 0 else 0)
    return {
        "title": TITLES.get(name, name),
        "tests": tests,
        "rows": [
            {
                "label": label,
                "rates": [f"{100 * one[kind]['pass@1']:.1f} %" for kind in tests],
                "retried": f"{one['retried']:,}" if one["retried"] else "–",
                "tokens": number(round(one["tokens_per_problem"], 1)),
                "executions": f"{one['executions_per_problem']:.2f}",
                "seconds": duration(one["seconds_per_problem"]),
            }
            for label, one in zip(labels, rounds, strict=True)
        ],
        "summary": summary,
        "plot": _inline(scatter_chart(points, f"{shown} pass@1, %", "generated tokens a problem", 220)),
    }


def _comparison(comparison: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not comparison:
        return None
    rows = []
    for name, kinds in comparison["benchmarks"].items():
        for tests, found in kinds.items():
            low, high = (100 * end for end in found["interval"])
            rows.append(
                {
                    "name": name,
                    "benchmark": TITLES.get(name, name),
                    "tests": tests,
                    "mine": f"{100 * found['pass@1']:.1f} %",
                    "other": f"{100 * found['other pass@1']:.1f} %",
                    "difference": f"{100 * found['difference']:+.1f}".replace("-", "−"),
                    "interval": f"{low:+.1f} … {high:+.1f}".replace("-", "−"),
                    "p": "–" if found["p_value"] is None else f"{found['p_value']:.3g}",
                    "gained": found["gained"],
                    "lost": found["lost"],
                }
            )
    return {"name": comparison["with"], "rows": rows}


def _verdict(row: Mapping[str, Any]) -> str:
    """One word for a program: its base verdict, or what the further tests say of one that passes those."""
    if row["base"] != "pass" or row["plus"] in (None, "pass"):
        return row["base"]
    return f"plus {row['plus']}"


def _css(verdict: str) -> str:
    return _CSS.get(verdict.removeprefix("plus "), "unknown") if not verdict.startswith("plus ") else "memory"


def _failure(row: Mapping[str, Any]) -> dict[str, Any]:
    failure = clip(str(row["failure"] or ""))
    said = [line for line in failure.splitlines() if line.strip()]
    solution = clip(str(row["solution"]))
    return {
        "benchmark": row["benchmark"],
        "task_id": row["task_id"],
        "number": row["number"],
        "verdict": _verdict(row),
        "css": _css(_verdict(row)),
        "why": said[-1] if said else "",
        "prompt": clip(str(row["prompt"])),
        "code": highlight_code(solution, row.get("language", "python")) if solution.strip() else "",
        "failure": failure,
        "answer": clip(str(row["answer"])),
        "tokens": f"{row['tokens']:,}",
        "finished": row["finished"],
    }


def _facts(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    groups = [("model", flatten(results["model"])), ("settings", flatten(results["settings"]))]
    versions = {name: one["data_version"] for name, one in results["benchmarks"].items()}
    groups.append(("benchmark data", flatten(versions)))
    if results.get("versions"):
        groups.append(("versions", flatten(results["versions"])))
    return groups
