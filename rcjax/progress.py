"""Progress of long work: a rich bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

LINE_EVERY_SECONDS = 10.0


class Bar:
    """Handle that the work reports to; see ``progress``."""

    def __init__(self, title: str, total: float | None, unit: str, rich_progress=None):
        self._title, self._total, self._unit = title, total, unit
        self._rich = rich_progress
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
def progress(title: str, total: float | None = None, unit: str = "items", done: float = 0) -> Iterator[Bar]:
    """Shows progress of the work inside the ``with`` block.

    Args:
      title: what is being done.
      total: number of units, None if unknown.
      unit: name of a unit, plural.
      done: units already done by an earlier run.
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
    with rp.Progress(*columns) as shown:
        bar = Bar(title, total, unit, shown)
        if done:
            bar.advance(done)
        yield bar


class _Silent:
    """A bar that shows nothing."""

    def advance(self, amount: float = 1) -> None:
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
