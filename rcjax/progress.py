"""Progress of long work: a rich bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping

LINE_EVERY_SECONDS = 10.0


class Bar:
    """Handle that the work reports to; see ``progress``."""

    def __init__(self, title: str, total: float | None, unit: str, rich_progress=None, table=None):
        self._title, self._total, self._unit = title, total, unit
        self._rich, self._table = rich_progress, table
        self._task = rich_progress.add_task(title, total=total, note="", unit=unit) if rich_progress else None
        self._done = 0.0
        self._note = ""
        self._start = self._last = time.monotonic()

    def advance(self, amount: float = 1) -> None:
        """Reports that ``amount`` more units are done."""
        self._done += amount
        if self._rich is not None:
            self._rich.advance(self._task, amount)
        elif self._done != self._total and time.monotonic() - self._last >= LINE_EVERY_SECONDS:  # else: `finish`
            self._last = time.monotonic()
            self._print()

    def note(self, text: str) -> None:
        """Shows ``text`` behind the counter from now on."""
        self._note = text
        if self._rich is not None:
            self._rich.update(self._task, note=text)

    def figures(self, values: Mapping[str, str]) -> None:
        """Shows named figures from now on: under the bar, or in the lines where there is none."""
        if self._table is None:
            self.note(" · ".join(f"{name} {value}" for name, value in values.items()))
        else:
            self._table.show(values)

    def _print(self) -> None:
        done = f"{self._done:,.0f}" + (f"/{self._total:,.0f}" if self._total else "")
        elapsed = time.monotonic() - self._start
        note = f" · {self._note}" if self._note else ""
        print(f"{self._title}: {done} {self._unit} in {elapsed:.0f} s{note}", flush=True)

    def finish(self) -> None:
        """Prints the closing line where there is no bar."""
        if self._rich is None:
            self._print()


@contextlib.contextmanager
def progress(
    title: str, total: float | None = None, unit: str = "items", done: float = 0, *, live: bool = False
) -> Iterator[Bar]:
    """Shows progress of the work inside the ``with`` block.

    Args:
      title: what is being done.
      total: number of units, None if unknown.
      unit: name of a unit, plural.
      done: units already done by an earlier run.
      live: there will be ``figures``.
    """
    if not sys.stdout.isatty():
        bar = Bar(title, total, unit)
        bar._done = done
        yield bar
        bar.finish()
        return
    from rich import progress as rp  # late: not needed for --help or in logs

    columns = (
        rp.TextColumn("[bold]{task.description}"),
        rp.BarColumn(),
        rp.MofNCompleteColumn(),
        rp.TextColumn("{task.fields[unit]}"),
        rp.TimeElapsedColumn(),
        rp.TimeRemainingColumn(),
        rp.TextColumn("{task.fields[note]}"),
    )
    shown = rp.Progress(*columns)
    table = _Table() if live else None
    with _live(shown, table) if live else shown:
        bar = Bar(title, total, unit, shown, table)
        if done:
            bar.advance(done)
        yield bar


def _live(shown, table: _Table):
    from rich.console import Group
    from rich.live import Live

    return Live(Group(shown, table), console=shown.console)


class _Table:
    """Names above their figures, as many in a line as there is room for."""

    def __init__(self):
        self._values: Mapping[str, str] = {}

    def show(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __rich__(self):
        from rich.columns import Columns
        from rich.text import Text

        return Columns(
            [Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in self._values.items()],
            padding=(0, 3),
        )


class _Silent:
    """A bar that shows nothing."""

    def advance(self, amount: float = 1) -> None:
        pass

    def figures(self, values: Mapping[str, str]) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@contextlib.contextmanager
def silent(*_: object, **__: object) -> Iterator[_Silent]:
    """As ``progress``, for work beside other work that shows its own."""
    yield _Silent()


def say(text: str) -> None:
    """One line to the user, at once."""
    print(text, flush=True)
