"""Run folders as a table: which runs there are, how far they are, what they are worth, and in what they differ.

Only files are read, as they are found: of a run that is being written, half-written lines and missing parts included.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from chess_cxr.files.whole import read_json
from chess_cxr.records import UsageError

State = Literal["running", "finished", "stopped", "failed"]
DEPTH = 2  # runs/first is found from its grandparent on
QUIET_SECONDS = 120.0  # a run whose files have not changed for longer, and for 10 of its lines, is not running
INTERRUPTION = 20.0  # a gap between two lines of this many usual ones is a pause, not training
SORTS = {
    "name": False,
    "preset": False,
    "method": False,
    "state": False,
    "step": True,
    "images_per_second": True,
    "loss": False,
    "knn_auroc_best": True,
    "knn_auroc_last": True,
    "effective_rank": True,
    "started": True,
    "seconds": True,
}
_NUMBER = rb"(-?[0-9][0-9.eE+-]*)"
_TIME = re.compile(rb'"time": ' + _NUMBER)
_KNN = re.compile(rb'"probe/knn_auroc": ' + _NUMBER)


@dataclass(frozen=True)
class RunSummary:
    """One run, by its folder.  What is not known is None, or "" for text.

    state: "running" where its files still change, "finished" at its last step, "stopped" where its newest checkpoint
    holds all it did, "failed" where steps are lost.  images_per_second, data_wait_share, loss, effective_rank: newest.
    knn_auroc_best, knn_auroc_last: mean over labels, val films.  started: Unix time of the first line.
    seconds: spent training, pauses left out.  seconds_left: of a running one.
    """

    path: str
    name: str
    preset: str
    method: str
    state: State
    step: int
    steps: int | None
    images_per_second: float | None
    data_wait_share: float | None
    loss: float | None
    knn_auroc_best: float | None
    knn_auroc_last: float | None
    effective_rank: float | None
    started: float | None
    seconds: float | None
    seconds_left: float | None


@dataclass(frozen=True)
class RunList:
    """Runs in the order asked for."""

    runs: tuple[RunSummary, ...]

    def as_json(self) -> list[dict[str, Any]]:
        """Return one mapping a run."""
        return [asdict(run) for run in self.runs]

    def as_text(self) -> str:
        """Return a table with a line a run; columns that no run fills are left out."""
        if not self.runs:
            return "There is no run here; make one with: chess-cxr pretrain STORE --out runs/first"
        names = name_apart(self.runs)
        return build_table(_COLUMNS, [[name, *_describe_run(run)] for name, run in zip(names, self.runs, strict=True)])


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side.

    config: entries in which they differ, "training.batch" -> a text a run, "–" where it has no such entry.
    numbers: newest value of each number of `metrics.jsonl`, and the best kNN AUROC; None where a run has none.
    """

    runs: tuple[RunSummary, ...]
    config: dict[str, tuple[str, ...]]
    numbers: dict[str, tuple[float | None, ...]]

    def as_json(self) -> dict[str, Any]:
        """Return what `as_text` shows, numbers as numbers."""
        return {"runs": [asdict(run) for run in self.runs], "config": self.config, "numbers": self.numbers}

    def as_text(self) -> str:
        """Return two tables, configuration and numbers, with a column a run."""
        names = name_apart(self.runs)
        rows = [("step", [_count(run.step, run.steps) for run in self.runs])]
        rows += [("state", [run.state for run in self.runs])]
        rows += [(name, [_round(value) for value in values]) for name, values in self.numbers.items()]
        numbers = build_table(["", *names], [[name, *texts] for name, texts in rows])
        if not self.config:
            return f"The configurations are the same.\n\n{numbers}"
        return f"{build_table(['', *names], [[name, *texts] for name, texts in self.config.items()])}\n\n{numbers}"


def list_runs(folders: Sequence[Path], sort: str = "started", now: float | None = None) -> RunList:
    """List the runs in some folders, each a run itself or up to two levels above runs.

    sort: one of `SORTS`; numbers and times from the largest on, the loss from the smallest.  now: Unix time.
    Raises `UsageError` for a folder that does not exist and for other names to sort by.
    """
    if sort not in SORTS:
        raise UsageError(f"runs cannot be sorted by {sort!r}; choose one of {', '.join(SORTS)}")
    now = time.time() if now is None else now
    runs = [read_run(path, now) for path in find_runs(folders)]
    known = [run for run in runs if getattr(run, sort) is not None]
    known.sort(key=lambda run: getattr(run, sort), reverse=SORTS[sort])
    return RunList((*known, *(run for run in runs if getattr(run, sort) is None)))


def compare_runs(folders: Sequence[Path], now: float | None = None) -> RunComparison:
    """Put some runs side by side, in the order given.

    Raises `UsageError` for fewer than two and for a folder that is no run.
    """
    if len(folders) < 2:
        raise UsageError("name at least two runs to compare")
    for folder in folders:
        if not is_run(folder):
            raise UsageError(f"{folder} is not a run; chess-cxr runs lists the runs in a folder")
    runs = tuple(read_run(folder, time.time() if now is None else now) for folder in folders)
    entries = [flatten(read_json(folder / "config.json")) for folder in folders]
    names = dict.fromkeys(name for one in entries for name in one)
    config = {name: tuple(one.get(name, "–") for one in entries) for name in names}
    newest = [_find_newest(read_lines(folder / "metrics.jsonl")) for folder in folders]
    for one, run in zip(newest, runs, strict=True):
        if run.knn_auroc_best is not None:
            one["probe/knn_auroc, best"] = run.knn_auroc_best
    keys = sorted({name for one in newest for name in one} - {"step", "time"})
    numbers = {name: tuple(one.get(name) for one in newest) for name in keys}
    return RunComparison(runs, {name: texts for name, texts in config.items() if len(set(texts)) > 1}, numbers)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Return the run folders in and among `folders`, each once, by path.

    Folders that may not be read are passed over.  Raises `UsageError` where one of `folders` does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder}")
    found = {run.resolve(): run for folder in folders for run in _walk(folder, DEPTH)}
    return sorted(found.values())


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif depth:
        try:
            with os.scandir(folder) as entries:
                inside = sorted(
                    e.name for e in entries if e.name[0] != "." and not e.name.endswith(".lance") and e.is_dir()
                )
        except OSError:
            return
        for name in inside:
            yield from _walk(folder / name, depth - 1)


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a pre-training run's configuration."""
    config = read_json(folder / "config.json")
    return isinstance(config.get("training"), dict) and isinstance(config.get("method"), dict)


def read_run(folder: Path, now: float) -> RunSummary:
    """Read what a run folder tells; `now` is the Unix time that "running" is judged by."""
    config = read_json(folder / "config.json")
    training, content = config["training"], read_whole_lines(folder / "metrics.jsonl")
    newest = _find_newest(_parse_lines(content[-65536:], cut=len(content) > 65536))
    times, aurocs = _find_all(_TIME, content), _find_all(_KNN, content)
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False) if later > earlier]
    usual = statistics.median(gaps) if gaps else 0.0
    steps, step = _whole(training.get("steps")), _whole(newest.get("step")) or 0
    checkpoint, newest_change = _find_checkpoint(folder)
    lately = now - newest_change < max(QUIET_SECONDS, 10 * usual)
    state = _judge_state(
        max(step, checkpoint), steps, checkpoint, step, _whole(training.get("checkpoint_every")), lately
    )
    speed, batch = newest.get("images_per_second"), _whole(training.get("batch"))
    left = (steps - step) * batch / speed if state == "running" and speed and steps and batch else None
    method = config["method"].get("name", "moco_v2")
    return RunSummary(
        str(folder),
        folder.resolve().name,
        str(config.get("preset", "")),
        str(method),
        state,
        max(step, checkpoint),
        steps,
        speed,
        newest.get("data_wait_share"),
        next((value for name, value in newest.items() if name.startswith("loss/")), None),
        max(aurocs, default=None),
        aurocs[-1] if aurocs else None,
        newest.get("probe/effective_rank"),
        times[0] if times else None,
        sum(gap for gap in gaps if gap <= INTERRUPTION * usual) if gaps else None,
        left,
    )


def _judge_state(step: int, steps: int | None, checkpoint: int, line: int, every: int | None, lately: bool) -> State:
    if steps is not None and step >= steps:
        return "finished"
    # only a run that was asked to stop writes a checkpoint out of turn
    asked = checkpoint > 0 and checkpoint >= line and bool(every) and checkpoint % (every or 1) != 0
    if lately and not asked:
        return "running"
    return "stopped" if checkpoint >= line and checkpoint > 0 else "failed"


def _find_checkpoint(folder: Path) -> tuple[int, float]:
    """Return the step of the newest checkpoint, 0 for none, and when a file of the run last changed."""
    step, changed = 0, 0.0
    for path in (folder / "config.json", folder / "metrics.jsonl", *_list(folder / "checkpoints")):
        try:
            changed = max(changed, path.stat().st_mtime)
        except OSError:  # it may be replaced at this moment
            continue
        if found := re.fullmatch(r"step_(\d+)\.safetensors", path.name):
            step = max(step, int(found[1]))
    return step, changed


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def read_whole_lines(path: Path) -> bytes:
    """Read a growing file up to the end of its last whole line; empty where there is none."""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    return content[: content.rfind(b"\n") + 1]


def read_lines(path: Path) -> list[dict[str, float]]:
    """Read the numbers of a `metrics.jsonl`; lines that are broken are passed over."""
    return list(_parse_lines(read_whole_lines(path)))


def _parse_lines(content: bytes, cut: bool = False) -> Iterator[dict[str, float]]:
    for line in content.splitlines()[1 if cut else 0 :]:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int | float):
            yield {name: value for name, value in found.items() if isinstance(value, int | float)}


def _find_newest(lines: Iterator[dict[str, float]] | Sequence[dict[str, float]]) -> dict[str, float]:
    newest: dict[str, float] = {}
    for line in lines:
        newest |= line
    return newest


def _find_all(number: re.Pattern[bytes], content: bytes) -> list[float]:
    found = []
    for text in number.findall(content):
        try:
            found.append(float(text))
        except ValueError:
            continue
    return found


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else None


def flatten(config: Any, at: str = "") -> dict[str, str]:
    """Turn a nested configuration into `part.entry` names and texts."""
    if not isinstance(config, Mapping):
        return {at: config if isinstance(config, str) else json.dumps(config, ensure_ascii=False)}
    found: dict[str, str] = {}
    for name, value in config.items():
        found |= flatten(value, f"{at}.{name}" if at else str(name))
    return found


_COLUMNS = (
    "name", "preset", "method", "state", "step", "images/s", "waits", "loss", "kNN best", "kNN last", "rank", "started",
    "trained", "left",
)  # fmt: skip


def name_apart(runs: Sequence[RunSummary]) -> list[str]:
    """Return the names of runs; where two are called alike, with as much of each path as they do not share."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return names
    paths = [Path(run.path).resolve() for run in runs]
    shared = os.path.commonpath([path.parent for path in paths])
    return [str(path.relative_to(shared)) for path in paths]


def _describe_run(run: RunSummary) -> list[str]:
    started = datetime.fromtimestamp(run.started).strftime("%Y-%m-%d %H:%M") if run.started is not None else ""
    wait = "" if run.data_wait_share is None else f"{run.data_wait_share:.0%}"
    speed = "" if run.images_per_second is None else f"{run.images_per_second:,.0f}"
    rank = "" if run.effective_rank is None else f"{run.effective_rank:.0f}"
    numbers = [_round(value) for value in (run.loss, run.knn_auroc_best, run.knn_auroc_last)]
    return [
        run.preset, run.method, run.state, _count(run.step, run.steps), speed, wait, *numbers, rank, started,
        say_duration(run.seconds), say_duration(run.seconds_left),
    ]  # fmt: skip


def _count(step: int, steps: int | None) -> str:
    return f"{step:,}/{steps:,}" if steps is not None else f"{step:,}"


def _round(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if 0.01 <= abs(value) < 10_000 or value == 0 else f"{value:.3g}"


def say_duration(seconds: float | None) -> str:
    """Say a time as 0:45, 12:05, 3 h 20 or 4 d 6 h; "" for None."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes}:{round(seconds) % 60:02d}"
    return f"{minutes // 60} h {minutes % 60:02d}" if minutes < 2880 else f"{minutes // 1440} d {minutes // 60 % 24} h"


def build_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay texts out in columns, numbers to the right; columns with nothing in them are left out."""
    kept = [place for place in range(len(columns)) if not rows or any(row[place] for row in rows)]
    lines = [[_clean(line[place]) for place in kept] for line in (columns, *rows)]
    widths = [max(map(len, texts)) for texts in zip(*lines, strict=True)]
    right = [all(re.match(r"-?[\d–]|$", line[place]) for line in lines[1:]) for place in range(len(kept))]
    laid = (
        "  ".join(
            f"{text:>{width}}" if is_right else f"{text:{width}}"
            for text, width, is_right in zip(line, widths, right, strict=True)
        )
        for line in lines
    )
    return "\n".join(line.rstrip() for line in laid)


def _clean(text: str, longest: int = 48) -> str:
    """Keep a text on its line: configurations of others may hold anything."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def read_metrics(run: Path | str) -> list[dict[str, float]]:
    """Read the whole lines of a run's `metrics.jsonl`.

    Raises `UsageError` where there is none.
    """
    try:
        text = (Path(run) / "metrics.jsonl").read_text()
    except OSError:
        raise UsageError(f"{run} is not a run; make one with: chess-cxr pretrain STORE --out {run}") from None
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
