"""``report.html``: one self-contained page that shows what a run did and what came of it.

This module turns metrics, evaluation, config and run facts into the plain values that
``report.html.jinja`` lays out. Every text from outside is escaped there; what is marked safe here is drawn by
``charts.py`` or by Pygments, which escape on their own.
"""

from __future__ import annotations

import datetime
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rcjax.evaluation.charts import Panel, Point, Series, line_chart, number

NUM_SAMPLES = 5
_CLIP = 6000  # characters of one text that a page shows; a looping generation must not fill it
_SHOWN_SUMMARY = {"name", "seconds", "versions", "command", "num_params", "created"}


def write_report(
    path: str | os.PathLike[str],
    *,
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    baseline: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
) -> None:
    """Writes the page, whole or not at all. Whatever is missing is left out or said to be missing.

    Args:
      path: the HTML file; its directory is made.
      metrics: rows of ``metrics.jsonl`` (``rcjax.train.metrics.read_metrics``); None stands for not finite.
      evaluation: ``Evaluation.to_json()``, or None before there is one.
      baseline: the same, or ``Evaluation.summary()``, of the model trained on instructions alone.
      config: the run's config, nested.
      summary: run facts. ``name`` (default: the directory's name), ``created``, ``command``, ``num_params``,
        ``seconds`` {stage: s}, ``versions`` {package: version}; every further key is listed as it is.
    """
    path = Path(path)
    # By step: results of evaluations beside the training come late.
    metrics = sorted((row for row in metrics if isinstance(row.get("step"), int)), key=lambda row: row["step"])
    page = template("report.html.jinja").render(
        name=str(summary.get("name") or path.resolve().parent.name),
        created=str(summary.get("created") or datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")),
        command=summary.get("command"),
        headline=_headline(evaluation, baseline),
        cards=_cards(metrics, summary),
        charts=_charts(metrics),
        families=_families(evaluation, baseline),
        verdicts=_shares((evaluation or {}).get("verdicts")),
        errors=_shares((evaluation or {}).get("errors"))[:8],
        samples=[_sample(sample) for sample in pick_samples((evaluation or {}).get("samples") or [], NUM_SAMPLES)],
        stages=_stages(summary.get("seconds")),
        facts=list(flatten({key: summary[key] for key in summary if key not in _SHOWN_SUMMARY})),
        config=_config_groups(config),
        versions=[(str(package), str(version)) for package, version in (summary.get("versions") or {}).items()],
        highlight_css=highlight_css(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(page, encoding="utf-8", errors="replace")
    os.replace(aside, path)


def template(name: str) -> Any:
    """A template of this package; what it is given is escaped."""
    import jinja2  # late: the numbers need none of it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def pick_samples(samples: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Up to ``count`` samples that show the range: fewer than half of them passes, where there are failures.

    Takes the same ones every time. Within passes and within failures it goes for families, verdicts and
    exceptions not seen yet; passes come first.
    """
    passes = [sample for sample in samples if sample.get("verdict") == "passed"]
    failures = [sample for sample in samples if sample.get("verdict") != "passed"]
    num_passes = min(len(passes), max(count // 2, count - len(failures)))
    seen: set[Any] = set()
    chosen: list[Mapping[str, Any]] = []
    for pool, wanted in ((passes, num_passes), (failures, min(len(failures), count - num_passes))):
        left = list(pool)
        for _ in range(wanted):
            best = max(left, key=lambda sample: sum(trait not in seen for trait in _traits(sample)))
            seen.update(_traits(best))
            left.remove(best)
            chosen.append(best)
    return chosen


def _traits(sample: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(key, str(sample.get(key) or "")) for key in ("family", "verdict", "error")}


def _headline(evaluation: Mapping[str, Any] | None, baseline: Mapping[str, Any] | None) -> dict[str, Any]:
    """The pass@1 of the run and of the baseline as bars, and the difference."""
    rows = []
    for label, result in (("this run", evaluation), ("instructions alone", baseline)):
        if result and _is_number(result.get("pass@1")):
            rows.append(_rate_row(label, result))
    difference = None
    if evaluation and baseline and len(rows) == 2:
        (low, high), (base_low, base_high) = rows[0]["interval"], rows[1]["interval"]
        apart = low > base_high or base_low > high
        difference = {
            "points": f"{100 * (evaluation['pass@1'] - baseline['pass@1']):+.1f}".replace("-", "−"),
            "note": "the intervals lie apart" if apart else "the intervals overlap",
        }
    measured = bool(evaluation) and bool(rows) and rows[0]["label"] == "this run"
    return {"measured": measured, "run": rows[0] if measured else None, "rows": rows, "difference": difference}


def _rate_row(label: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """A rate with its interval, as text and as percentages for bars."""
    rate = float(result["pass@1"])
    interval = result.get("interval")
    low, high = (float(interval[0]), float(interval[1])) if interval else (rate, rate)
    total = result.get("num_problems")
    return {
        "label": label,
        "rate": rate,
        "text": f"{100 * rate:.1f} %",
        "interval": (low, high),
        "interval_text": f"{100 * low:.1f} – {100 * high:.1f} %" if interval else "",
        "confidence": f"{100 * result.get('confidence', 0.95):.3g} %",
        "width": f"{100 * rate:.2f}%",
        "left": f"{100 * low:.2f}%",
        "span": f"{100 * (high - low):.2f}%",
        # pass@1 is a mean over problems: with one sample each this is the count of problems passed
        "solved": f"{rate * total:,.4g}" if total and total < 10_000 else number(rate * total) if total else "–",
        "total": f"{total:,}" if total else "–",
    }


def _families(evaluation: Mapping[str, Any] | None, baseline: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Rows of the table by family, best first."""
    families = (evaluation or {}).get("by_family") or {}
    compared = (baseline or {}).get("by_family") or {}
    rows = []
    for family, result in families.items():
        row = _rate_row(str(family), result)
        other = compared.get(family)
        row["baseline"] = _rate_row("", other) if other else None
        rows.append(row)
    return sorted(rows, key=lambda row: (-row["rate"], row["label"]))


def _shares(counts: Mapping[str, int] | None) -> list[dict[str, Any]]:
    """Counts that are not zero with their share, as given in order."""
    total = sum((counts or {}).values())
    return [
        {
            "label": str(label),
            "count": f"{count:,}",
            "text": f"{100 * count / total:.1f} %",
            "width": f"{100 * count / total:.3f}%",
        }
        for label, count in (counts or {}).items()
        if count
    ]


def _cards(metrics: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(label, value, remark) of the key numbers that are known."""
    cards = []
    if summary.get("num_params"):
        cards.append(("parameters", number(summary["num_params"]), f"{summary['num_params']:,}"))
    losses = _known(metrics, "loss")
    if metrics:
        # steps count from 0 in some loops and from 1 in others: the last one is named, not a count
        cards.append(("last step", f"{metrics[-1]['step']:,}", f"{len(metrics):,} logged"))
    if losses:
        last = losses[-max(1, len(losses) // 20) :]
        cards.append(("final loss", number(statistics.fmean(last)), f"at first {number(losses[0])}"))
    visible = _known(metrics, "visible_tokens_per_example")
    if visible:
        edge = max(1, len(visible) // 20)
        first, end = statistics.fmean(visible[:edge]), statistics.fmean(visible[-edge:])
        change = f", {100 * (end / first - 1):+.0f} %".replace("-", "−") if first > 0 else ""
        cards.append(("student's tokens", f"{first:,.0f} → {end:,.0f}", f"per example{change}"))
    computed = _known(metrics, "computed_tokens")
    if computed:
        cards.append(("tokens computed", number(computed[-1]), "teacher and student views"))
    speeds = _known(metrics, "tokens_per_second")
    if speeds:
        examples = _known(metrics, "examples_per_second")
        remark = f"{number(statistics.median(examples))} examples / s" if examples else ""
        cards.append(("training tokens / s", number(statistics.median(speeds)), f"median; {remark}".rstrip("; ")))
    shares = _known(metrics, "utilisation")
    if shares:
        spared = _known(metrics, "flops_spared")
        remark = f"{statistics.fmean(spared):.0%} spared by cutting hidden tokens out" if spared else ""
        useful = number(statistics.median(_known(metrics, "flops_per_second") or [0]))
        cards.append(("useful FLOP / s", useful, f"{statistics.median(shares):.0%} of the peak; {remark}".rstrip("; ")))
    seconds = [float(value) for value in (summary.get("seconds") or {}).values() if _is_number(value)]
    if seconds:
        cards.append(("wall time", duration(sum(seconds)), f"{len(seconds)} stages"))
    return cards


def _charts(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Chart cards in order; each with its legend and one drawing, or two to switch between."""
    if not metrics:
        return []
    loss = [
        _series(metrics, "loss", "total", 1, smooth=True),
        _series(metrics, "ce", "cross entropy", 2, smooth=True),
        _series(metrics, "kl", "KL to the teacher", 3, smooth=True),
    ]
    mask = [_series(metrics, "mask_rate", "mask rate", 4)]
    tokens = [
        _series(metrics, "visible_tokens_per_example", "student view", 1, smooth=True),
        _series(metrics, "teacher_tokens_per_example", "teacher view", 2, smooth=True),
    ]
    rate = [_series(metrics, "learning_rate", "learning rate", 1)]
    norm = [_series(metrics, "grad_norm", "gradient norm", 3, smooth=True)]
    speed = [_series(metrics, "tokens_per_second", "tokens / s", 1, smooth=True)]
    examples = [_series(metrics, "examples_per_second", "examples / s", 2, smooth=True)]
    half = {"height": 104}
    charts = [
        _chart(
            "Loss", "The parts of the training loss.", [Panel("nats per token", loss, height=244)], logarithmic=True
        ),
        _chart(
            "Curriculum and what it leaves visible",
            "As the mask rate rises, more of the reflection is hidden and the student's view gets shorter.",
            [Panel("mask rate", mask, top=1.0, **half), Panel("tokens per example", tokens, **half)],
        ),
        _chart(
            "Learning rate and gradient",
            "The schedule, and the size of the gradient before clipping.",
            [Panel("learning rate", rate, **half), Panel("gradient norm", norm, **half)],
        ),
        _chart(
            "Throughput",
            "Speed of training, compilation and checkpoints included where they fall.",
            [Panel("tokens per second", speed, **half), Panel("examples per second", examples, **half)],
        ),
    ]
    if _known(metrics, "heldout_pass@1"):
        heldout = [_series(metrics, "heldout_pass@1", "pass@1", 1)]
        caption = "One-off programs for the held-out problems, by the parameters of each step, run beside the training."
        charts.append(_chart("Held-out problems", caption, [Panel("pass@1", heldout, top=1.0, height=200)]))
    shown = {"step", "loss", "ce", "kl", "mask_rate", "visible_tokens_per_example", "teacher_tokens_per_example"}
    shown |= {"heldout_pass@1", "learning_rate", "grad_norm", "tokens_per_second", "examples_per_second"}
    others = list(dict.fromkeys(key for row in metrics for key in row if key not in shown))
    for left in range(0, len(others), 2):
        pair = others[left : left + 2]
        panels = [Panel(key, [_series(metrics, key, key, 1)], **half) for key in pair]
        charts.append({**_chart(" · ".join(pair), "", panels), "minor": True})
    return charts


def _chart(title: str, caption: str, panels: list[Panel], logarithmic: bool = False) -> dict[str, Any]:
    import markupsafe

    legend = []
    for panel in panels:
        for series in panel.series:
            known = [y for _, y in series.points if y is not None]
            if known:
                legend.append({"label": series.label, "slot": series.slot, "last": number(known[-1])})
    drawings = [("linear", markupsafe.Markup(line_chart(panels)))]
    if logarithmic and legend:
        log_panels = [Panel(panel.title, panel.series, log=True, height=panel.height) for panel in panels]
        drawings.append(("log", markupsafe.Markup(line_chart(log_panels))))
    return {"title": title, "caption": caption, "legend": legend, "drawings": drawings, "minor": False}


def _series(metrics: Sequence[Mapping[str, Any]], key: str, label: str, slot: int, smooth: bool = False) -> Series:
    """The values of one key; rows without the key are passed over, None and not finite are gaps."""
    points: list[Point] = []
    for row in metrics:
        if key in row:
            value = row[key]
            points.append((row["step"], float(value) if _is_number(value) else None))
    return Series(label, points, slot, smooth)


def _known(metrics: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float(row[key]) for row in metrics if _is_number(row.get(key))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample as the page shows it; texts are clipped, code is coloured."""
    texts = {key: clip(str(sample.get(key) or "")) for key in ("prompt", "code", "feedback", "solution", "generation")}
    code, generation = texts["code"], texts["generation"]
    fenced = generation.strip().removeprefix("```python").removesuffix("```").strip()
    return {
        **texts,
        "id": str(sample.get("id") or ""),
        "family": str(sample.get("family") or ""),
        "verdict": str(sample.get("verdict") or "unknown"),
        "error": str(sample.get("error") or ""),
        "seconds": f"{float(sample.get('seconds') or 0):.2f} s",
        "code": highlight_code(code) if code.strip() else "",
        "solution": highlight_code(texts["solution"]) if texts["solution"].strip() else "",
        "tests": highlight_code(clip("\n".join(str(test) for test in sample.get("tests") or []))),
        "num_tests": len(sample.get("tests") or []),
        # shown only where it says more than the program does
        "generation": generation if fenced != code.strip() else "",
    }


def clip(text: str) -> str:
    """``text``, with what a page can not hold of it counted instead of shown."""
    return text if len(text) <= _CLIP else f"{text[:_CLIP]}\n… {len(text) - _CLIP:,} more characters"


def highlight_code(code: str, language: str = "python") -> Any:
    """Code as spans with Pygments' classes, escaped."""
    import markupsafe
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    # PHP's lexer takes for text what stands before `<?php`.
    options = {"startinline": True} if language == "php" and "<?" not in code else {}
    lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False, **options)
    return markupsafe.Markup(highlight(code, lexer, HtmlFormatter(nowrap=True)).rstrip("\n"))


def highlight_css() -> Any:
    """Colours of code, by the page's own variables so that they follow light and dark."""
    import markupsafe

    groups = {
        "keyword": (".k", ".kn", ".kd", ".kr", ".kc", ".ow"),
        "string": (".s", ".s1", ".s2", ".sd", ".sa", ".si", ".se", ".sb", ".sc", ".sh"),
        "number": (".mi", ".mf", ".mh", ".mb", ".mo", ".il"),
        "name": (".nf", ".fm", ".nc", ".nb", ".bp", ".ne"),
        "comment": (".c", ".c1", ".cm", ".ch"),
    }
    rules = [
        ",".join(f"pre {selector}" for selector in selectors) + f"{{color:var(--code-{group})}}"
        for group, selectors in groups.items()
    ]
    return markupsafe.Markup("\n".join(rules))


def _stages(seconds: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Stages in order with their time and its share of the longest."""
    known = {str(stage): float(value) for stage, value in (seconds or {}).items() if _is_number(value)}
    longest = max(known.values(), default=0.0)
    return [
        {"label": stage, "text": duration(value), "width": f"{100 * value / longest if longest else 0:.2f}%"}
        for stage, value in known.items()
    ]


def duration(seconds: float) -> str:
    """0.42 s · 12 s · 3 min 05 s · 1 h 02 min."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _config_groups(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The config as one list of fields a section; fields at the top come first, under no name."""
    top = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    groups = [("", list(flatten(top)))] if top else []
    groups += [(str(key), list(flatten(value))) for key, value in config.items() if isinstance(value, Mapping)]
    return [group for group in groups if group[1]]


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested fields as (dotted name, text)."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows.extend(flatten(value, f"{prefix}{key}."))
        else:
            rows.append((f"{prefix}{key}", clip(_plain(value))))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value) or "(empty)"
    return str(value) if str(value) else "(empty)"
