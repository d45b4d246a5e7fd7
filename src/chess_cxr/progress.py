"""Progress on stderr: a live bar on a terminal, elsewhere a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Say = Callable[[str], None]  # tells the user one important line

SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """Progress bar of `total` pieces of work, with rate and time left; a context manager.

    quiet: show nothing.  Without a terminal it prints a plain line every `every` seconds, and one at the end.
    """

    def __init__(
        self, title: str, total: int, unit: str, quiet: bool = False, every: float = SECONDS_BETWEEN_LINES
    ) -> None:
        self._title, self._total, self._unit, self._quiet, self._every = title, total, unit, quiet, every
        self._first = self._done = 0
        self._note = ""
        self._started = self._printed = time.monotonic()
        self._live: Progress | None = None
        if not quiet and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
            ends = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
            self._live = Progress(*columns, *ends, console=Console(stderr=True))
            self._task = self._live.add_task(title, total=total, note="")

    def __enter__(self) -> ProgressBar:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.stop()
        elif not self._quiet and kind is None:
            self._print()

    def start_from(self, done: int) -> None:
        """Begin at `done` pieces that an earlier run finished; the rate leaves them out."""
        self._first = self._done = done
        if self._live:
            self._live.reset(self._task, completed=done)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add finished pieces; `note` stands at the end of the line."""
        self.advance_to(self._done + count, note)

    def advance_to(self, done: int, note: str = "") -> None:
        """Show that `done` pieces are finished; `note` stands at the end of the line."""
        self._done, self._note = done, note
        if self._live:
            self._live.update(self._task, completed=done, note=note)
        elif not self._quiet and time.monotonic() - self._printed >= self._every:
            self._print()

    def say(self, line: str) -> None:
        """Print an important line, even where progress is quiet."""
        if self._live:
            self._live.console.print(f"chess-cxr: {line}", markup=False, highlight=False)
        else:
            say_on_stderr(line)

    def _print(self) -> None:
        self._printed = time.monotonic()
        spent = max(self._printed - self._started, 1e-9)
        rate = (self._done - self._first) / spent
        counted = f"{self._done}/{self._total} {self._unit}".rstrip()
        left = f", {say_seconds((self._total - self._done) / rate)} left" if rate and self._done < self._total else ""
        line = f"{self._title}: {counted}, {rate:.1f}/s, {say_seconds(spent)}{left}"
        print(f"{line}  {self._note}".rstrip(), file=sys.stderr, flush=True)


class StageBars:
    """One progress bar a stage, for work that names its stages while it runs; a context manager.

    prefix: stands before the name of each stage.
    """

    def __init__(self, quiet: bool = False, prefix: str = "") -> None:
        self._quiet, self._prefix, self._title = quiet, prefix, ""
        self._bar: ProgressBar | None = None

    def __enter__(self) -> StageBars:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar:
            self._bar.__exit__(kind, error, at)

    def show(self, title: str, done: int, total: int) -> None:
        """Show that `done` of `total` pieces of the stage `title` are finished; a new title ends the stage before."""
        self._open(title, total).advance_to(done)

    def show_step(self, title: str, step: int, total: int) -> None:
        """Show that step `step` of `total` is done; steps before the first one shown belong to an earlier run."""
        self._open(title, total, step - 1).advance_to(step)

    def _open(self, title: str, total: int, first: int = 0) -> ProgressBar:
        if self._bar is None or title != self._title:
            self.__exit__(None, None, None)
            self._title = title
            self._bar = ProgressBar(self._prefix + title, total, "", self._quiet).__enter__()
            self._bar.start_from(first)
        return self._bar


def build_step_note(bar: ProgressBar) -> Callable[[Any, Mapping[str, float]], None]:
    """Return a callback that shows the steps of a training run on a progress bar."""
    begun = False

    def on_step(report: Any, probe: Mapping[str, float]) -> None:
        nonlocal begun
        if not begun:
            bar.start_from(report.step - 1)
            begun = True
        note = next((f"loss {loss:.3f}" for loss in report.losses.values()), "step skipped")
        if "probe/knn_auroc" in probe:
            note += f"  kNN AUROC {probe['probe/knn_auroc']:.3f}  rank {probe['probe/effective_rank']:.0f}"
        bar.advance_to(report.step, note)

    return on_step


def say_on_stderr(line: str) -> None:
    """Print one line for the user."""
    print(f"chess-cxr: {line}", file=sys.stderr, flush=True)


def say_seconds(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
