"""Progress for people, on stderr: a rich bar on a terminal, plain lines elsewhere. It does not own the numbers."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 10.0


class ProgressLine:
    """One task of ``total`` units, as a context manager. visible False (ranks other than 0): nothing is printed."""

    def __init__(self, title: str, total: int, *, done: int = 0, visible: bool = True) -> None:
        self._title, self._total, self._done, self._visible = title, total, done, visible
        self._first, self._start = done, time.monotonic()
        self._last_plain = 0.0
        self._bar: Progress | None = None

    def __enter__(self) -> ProgressLine:
        if self._visible and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, completed=self._done, note="")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, done: int, note: str = "") -> None:
        """Show that ``done`` units are done, with a short note beside."""
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif self._visible and (done == self._total or time.monotonic() - self._last_plain > PLAIN_INTERVAL_S):
            self._last_plain = time.monotonic()
            print(f"{self._title} {done}/{self._total}  {note}  {self._remaining()}", file=sys.stderr, flush=True)

    def say(self, sentence: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.console.print(sentence, highlight=False)
        elif self._visible:
            print(sentence, file=sys.stderr, flush=True)

    def _remaining(self) -> str:
        passed_s = time.monotonic() - self._start
        if self._done <= self._first or self._done >= self._total:
            return f"{passed_s:.0f} s"
        left_s = passed_s / (self._done - self._first) * (self._total - self._done)
        return f"about {left_s:.0f} s left"
