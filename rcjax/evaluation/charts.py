"""Charts as SVG text, drawn with nothing but arithmetic.

A line chart is a stack of panels over one shared horizontal axis. Colours and fonts come from the page's CSS (classes
``s1`` to ``s4``), so one drawing serves light, dark and paper. Beside the drawing each chart carries its numbers as
a ``data-chart`` attribute, from which the page's script shows values under the pointer.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

MAX_POINTS = 400
WIDTH = 620
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 24, 34
_GAP = 20  # between the panels of a stack, besides the title line
COLOURS = ("#2560c6", "#cf5c14", "#0f7d69")  # of slots 1 to 3 in a drawing that stands alone
_STYLE = (
    "<style>svg{background:#fff;font:12px sans-serif}.line{fill:none;stroke-width:2}.grid{stroke:#e4e7ec}"
    ".axis{stroke:#98a2b3}.tick{fill:#5b6472;font-size:11px}.panel-title{font-weight:600}.value{fill:#9db8e8}"
    f".interval{{stroke:{COLOURS[0]};stroke-width:3}}.thin{{stroke-width:1.5}}.mean{{fill:{COLOURS[0]}}}"
    + "".join(f".line.s{slot}{{stroke:{colour}}}" for slot, colour in enumerate(COLOURS, 1))
    + "</style>"
)

Point = tuple[float, float | None]


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: points in order of x; a y of None leaves a gap. ``slot`` 1 to 4 picks the colour."""

    label: str
    points: Sequence[Point]
    slot: int = 1
    smooth: bool = False  # draw a moving average over the faint measured line


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot of a stack; all its series share the vertical axis.

    Attributes:
      title: what is plotted, with its unit.
      series: the lines; may all be empty, then the panel says so.
      log: logarithmic vertical axis; values that are not positive leave gaps.
      top: upper end of the axis where it is known, as 1 for a rate.
      height: of the plot area in pixels.
    """

    title: str
    series: Sequence[Series]
    log: bool = False
    top: float | None = None
    height: int = 150


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most ``limit`` (>= 4) of the points: both ends, and of each stretch between its lowest and highest.

    Spikes survive, unlike with every n-th point or a mean. A stretch without any value keeps one gap.
    """
    if len(points) <= limit:
        return list(points)
    inner = points[1:-1]
    buckets = (limit - 2) // 2
    kept = [points[0]]
    for bucket in range(buckets):
        stretch = inner[bucket * len(inner) // buckets : (bucket + 1) * len(inner) // buckets]
        known = [index for index, (_, y) in enumerate(stretch) if y is not None]
        if not known:
            kept.extend(stretch[:1])
            continue
        low = min(known, key=lambda index: stretch[index][1])
        high = max(known, key=lambda index: stretch[index][1])
        kept.extend(stretch[index] for index in sorted({low, high}))
    kept.append(points[-1])
    return kept


def smooth(points: Sequence[Point], window: float) -> list[Point]:
    """Moving average over about ``window`` points that lags behind neither way; gaps stay.

    The mean of an exponential average run forwards and one run backwards, each corrected for its start.
    """
    decay = 1.0 - 1.0 / max(window, 1.0)

    def one_way(values: Sequence[float]) -> list[float]:
        total = weight = 0.0
        averaged = []
        for value in values:
            total, weight = decay * total + value, decay * weight + 1.0
            averaged.append(total / weight)
        return averaged

    known = [y for _, y in points if y is not None]
    averages = zip(one_way(known), reversed(one_way(known[::-1])), strict=True)
    means = iter([(forth + back) / 2 for forth, back in averages])
    return [(x, None if y is None else next(means)) for x, y in points]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) within [low, high], about ``count`` of them."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12 - math.floor(math.log10(step))) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high]; with their 2 and 5 folds where there are fewer than three."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        found = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) >= 3:
            break
    stride = math.ceil(len(found) / 6) or 1
    return found[::stride]


def number(value: float | None) -> str:
    """Short form for people: 1,234 · 12.3k · 4.56M · 0.0123 · 5e-05."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 9_999.5:
        for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if size >= factor * 0.99995:
                return f"{value / factor:.3g}{unit}" if size < 999.5 * factor else f"{value / factor:,.0f}{unit}"
    if value == int(value):
        return f"{int(value):,}"
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 1e-3:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


@dataclasses.dataclass(frozen=True)
class _Scale:
    """Maps values to pixels, linear or logarithmic; ``start`` and ``stop`` are pixels of ``low`` and ``high``."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


def line_chart(panels: Sequence[Panel], x_label: str = "optimizer step") -> str:
    """The stack of ``panels`` as one ``<svg>`` element; labels are escaped."""
    height = _TOP + sum(panel.height for panel in panels) + (_TOP + _GAP - 8) * (len(panels) - 1) + _BOTTOM
    steps = [x for panel in panels for series in panel.series for x, _ in series.points]
    low, high = (min(steps), max(steps)) if steps else (0.0, 1.0)
    if 0 < low < 0.05 * high:
        low = 0.0
    if low == high:
        low, high = low - 0.5, high + 0.5
    x_scale = _Scale(low, high, _LEFT, WIDTH - _RIGHT)
    parts: list[str] = []
    geometry: list[dict[str, Any]] = []
    top = float(_TOP)
    for panel in panels:
        drawn, described = _draw_panel(panel, x_scale, top)
        parts.extend(drawn)
        geometry.append(described)
        top += panel.height + _TOP + _GAP - 8
    bottom = height - _BOTTOM
    if steps:
        whole = all(step == int(step) for step in steps)
        for value in ticks(low, high, 6):
            if whole and value != int(value):
                continue
            parts.append(_text(x_scale(value), bottom + 15, number(value), "tick", "middle"))
    parts.append(_text(WIDTH - _RIGHT, bottom + 29, x_label, "tick", "end"))
    data = {"x": [low, high, x_scale.start, x_scale.stop], "bottom": bottom, "panels": geometry}
    title = html.escape("; ".join(_spoken(panel) for panel in panels), quote=True)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}" '
        f'data-chart="{html.escape(json.dumps(data, separators=(",", ":")), quote=True)}">{"".join(parts)}</svg>'
    )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its interval (None: unknown) and, where they are to be seen, the values it was made of."""

    label: str
    mean: float
    interval: tuple[float, float] | None
    values: Sequence[float] = ()

    @property
    def extent(self) -> list[float]:
        return [self.mean, *(self.interval or ()), *self.values]


def interval_chart(estimates: Sequence[Estimate], x_label: str, line_height: int = 26) -> str:
    """One line an estimate: its values as pale discs, mean and interval over them. An SVG document."""
    left = 30 + 7 * max((len(estimate.label) for estimate in estimates), default=0)
    bottom = _TOP + line_height * len(estimates)
    scale, marks = _padded_scale([x for estimate in estimates for x in estimate.extent], left, WIDTH - _RIGHT, 6)
    parts = []
    for value in marks:
        x = scale(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 15, number(value), "tick", "middle"))
    for row, estimate in enumerate(estimates):
        y = _TOP + line_height * (row + 0.5)
        parts.append(_text(left - 12, y + 4, estimate.label, "name", "end"))
        parts += [f'<circle class="value" cx="{scale(x):.1f}" cy="{y:.1f}" r="3"/>' for x in estimate.values]
        if estimate.interval:
            low, high = map(scale, estimate.interval)
            parts.append(f'<line class="interval" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<circle class="mean" cx="{scale(estimate.mean):.1f}" cy="{y:.1f}" r="4.5"/>')
    parts.append(_text(WIDTH - _RIGHT, bottom + 30, x_label, "tick", "end"))
    return standalone(f'<svg viewBox="0 0 {WIDTH} {bottom + 38}" role="img">{"".join(parts)}</svg>')


def scatter_chart(points: Sequence[tuple[float, Estimate]], y_label: str, x_label: str, height: int = 300) -> str:
    """Estimates as discs with their labels at (x, mean), intervals upright. An SVG document."""
    bottom = _TOP + height
    # Room for labels, which stand to the right of their discs or, in the right half, to the left.
    x_scale, x_marks = _padded_scale([x for x, _ in points], _LEFT, WIDTH - _RIGHT, 6)
    y_scale, y_marks = _padded_scale([y for _, estimate in points for y in estimate.extent], bottom, _TOP, 6)
    parts = []
    for value in y_marks:
        y = y_scale(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 7, y + 3.5, number(value), "tick", "end"))
    for value in x_marks:
        parts.append(_text(x_scale(value), bottom + 15, number(value), "tick", "middle"))
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    label_y = 0.0
    for x, estimate in sorted(points, key=lambda point: -point[1].mean):
        at, y = x_scale(x), y_scale(estimate.mean)
        if estimate.interval:
            low, high = map(y_scale, estimate.interval)
            parts.append(f'<line class="interval thin" x1="{at:.1f}" x2="{at:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<circle class="mean" cx="{at:.1f}" cy="{y:.1f}" r="4.5"/>')
        label_y = max(y + 4, label_y + 13)  # from the top down, no two on one another
        right = at < (_LEFT + WIDTH) / 2
        parts.append(_text(at + (9 if right else -9), label_y, estimate.label, "name", "start" if right else "end"))
    parts.append(_text(_LEFT, _TOP - 9, y_label, "tick", "start"))
    parts.append(_text(WIDTH - _RIGHT, bottom + 30, x_label, "tick", "end"))
    return standalone(f'<svg viewBox="0 0 {WIDTH} {bottom + 38}" role="img">{"".join(parts)}</svg>')


def standalone(drawing: str, inside: str = "") -> str:
    """An ``<svg>`` element as a file of its own, with its style and ``inside`` put in first, without ``data-chart``."""
    drawing = re.sub(r' data-chart="[^"]*"', "", drawing)
    drawing = drawing.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" ', 1)
    return drawing.replace(">", ">" + _STYLE + inside, 1) + "\n"


def _padded_scale(values: Sequence[float], start: float, stop: float, count: int) -> tuple[_Scale, list[float]]:
    """A scale with some room at both ends, and its ticks."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.08 * (high - low) or 0.5
    low, high = low - room, high + room
    return _Scale(low, high, start, stop), ticks(low, high, count)


def _draw_panel(panel: Panel, x_scale: _Scale, top: float) -> tuple[list[str], dict[str, Any]]:
    """SVG parts of a panel whose plot area begins at ``top``, and what the page's script needs of it."""
    bottom = top + panel.height
    parts = [_text(_LEFT, top - 9, panel.title, "panel-title", "start")]
    usable = [
        dataclasses.replace(series, points=_usable(series.points, panel.log))
        for series in panel.series
        if any(y is not None for _, y in _usable(series.points, panel.log))
    ]
    described: dict[str, Any] = {"top": top, "bottom": bottom, "log": panel.log, "series": []}
    if not usable:
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom:.1f}" y2="{bottom:.1f}"/>')
        parts.append(
            _text((_LEFT + WIDTH - _RIGHT) / 2, top + panel.height / 2, "nothing measured yet", "tick", "middle")
        )
        return parts, {**described, "y": [0, 1]}
    low, high, marks = _vertical_range(panel, usable)
    y_scale = _Scale(low, high, bottom, top, panel.log)
    for value in marks:
        y = y_scale(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        label = f"{value:.1e}" if 0 < marks[-1] < 0.01 and value else number(value)
        parts.append(_text(_LEFT - 7, y + 3.5, label.replace(".0e", "e").replace("e-0", "e-"), "tick", "end"))
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom:.1f}" y2="{bottom:.1f}"/>')
    for series in usable:
        points = thin(series.points)
        averaged = series.smooth and len(series.points) > 60
        parts.append(_path(points, x_scale, y_scale, f"line s{series.slot}{' raw' if averaged else ''}"))
        if averaged:
            line = thin(smooth(series.points, len(series.points) / 80))
            parts.append(_path(line, x_scale, y_scale, f"line s{series.slot}"))
        described["series"].append(
            {
                "label": series.label,
                "slot": series.slot,
                "xs": [_rounded(x) for x, y in points if y is not None],
                "ys": [_rounded(y) for _, y in points if y is not None],
            }
        )
    return parts, {**described, "y": [low, high]}


def _vertical_range(panel: Panel, usable: Sequence[Series]) -> tuple[float, float, list[float]]:
    """(low, high, tick values): from 0 on a linear axis unless values are negative, and rounded up to a tick."""
    values = [y for series in usable for _, y in series.points if y is not None]
    low, high = min(values), max(values)
    if panel.log:
        low, high = low / 1.1, high * 1.1
        return low, high, log_ticks(low, high)
    low = min(low, 0.0)
    high = max(high, panel.top if panel.top is not None else high)
    if low == high:
        high = low + 1.0
    count = max(2, panel.height // 40)
    marks = ticks(low, high, count)
    step = marks[1] - marks[0] if len(marks) > 1 else high - low
    if low < marks[0] - 1e-9 * step:
        low = marks[0] - step
    if high > marks[-1] + 1e-9 * step:
        high = marks[-1] + step
    return low, high, ticks(low, high, count)


def _usable(points: Sequence[Point], log: bool) -> list[Point]:
    """Points with every y that can not be drawn as None."""
    return [
        (x, y if y is not None and math.isfinite(y) and abs(y) < 1e300 and (y > 1e-300 or not log) else None)
        for x, y in points
    ]


def _runs(points: Sequence[Point]) -> Iterator[list[tuple[float, float]]]:
    """Stretches of points without a gap."""
    run: list[tuple[float, float]] = []
    for x, y in points:
        if y is not None:
            run.append((x, y))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _path(points: Sequence[Point], x_scale: _Scale, y_scale: _Scale, css: str) -> str:
    """A polyline with gaps; a point alone between gaps is a disc."""
    commands, discs = [], []
    for run in _runs(points):
        places = [f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in run]
        if len(places) > 1:
            commands.append(f"M{places[0]}" + "".join(f"L{place}" for place in places[1:]))
        else:
            x, y = places[0].split(",")
            discs.append(f'<circle class="alone {css}" cx="{x}" cy="{y}" r="2.5"/>')
    return (f'<path class="{css}" d="{"".join(commands)}"/>' if commands else "") + "".join(discs)


def _text(x: float, y: float, text: str, css: str, anchor: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _rounded(value: float) -> float:
    """Five significant digits, enough to show and short to store; whole numbers stay whole."""
    return int(value) if value == int(value) else float(f"{value:.5g}")


def _spoken(panel: Panel) -> str:
    """The panel in words, for readers that do not see it."""
    ends = []
    for series in panel.series:
        known = [y for _, y in series.points if y is not None]
        if known:
            ends.append(f"{series.label} from {number(known[0])} to {number(known[-1])}")
    return f"{panel.title}: {', '.join(ends) or 'nothing measured yet'}"
