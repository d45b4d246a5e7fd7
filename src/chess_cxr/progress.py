"""Progress on stderr: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """Counts `total` pieces of work, with rate and time left; used as a context manager.

    quiet: show nothing.  Without a terminal a line is printed every `SECONDS_BETWEEN_LINES`, with no escape codes.
    """

    def __init__(self, title: str, total: int, unit: str, quiet: bool = False, done: int = 0) -> None:
        self._title, self._total, self._unit, self._quiet = title, total, unit, quiet
        self._first, self._done = done, done
        self._started = self._printed = time.monotonic()
        self._live: Progress | None = None
        if not quiet and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
            ends = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
            self._live = Progress(*columns, *ends, console=Console(stderr=True))
            self._task = self._live.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> ProgressBar:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.stop()
        elif not self._quiet and kind is None:
            self._print("")

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished pieces; `note` stands at the end of the line."""
        self._done += count
        if self._live:
            self._live.update(self._task, advance=count, note=note)
        elif not self._quiet and time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._print(note)

    def _print(self, note: str) -> None:
        self._printed = time.monotonic()
        spent = max(self._printed - self._started, 1e-9)
        rate = (self._done - self._first) / spent
        left = f", {_say_seconds((self._total - self._done) / rate)} left" if 0 < self._done < self._total else ""
        line = f"{self._title}: {self._done}/{self._total} {self._unit}, {rate:.1f}/s, {_say_seconds(spent)}{left}"
        print(f"{line}  {note}".rstrip(), file=sys.stderr, flush=True)


def _say_seconds(seconds: float) -> str:
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
