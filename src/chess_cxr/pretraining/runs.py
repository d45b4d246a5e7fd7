"""List and compare pre-training runs by their folders.

Reads files only, and tolerates the incomplete lines and missing files of a run in progress.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from chess_cxr.files.whole import read_json
from chess_cxr.records import UsageError
from chess_cxr.training.config import flatten_config

State = Literal["running", "finished", "stopped", "failed"]
DEPTH = 2  # levels of folders to search for runs
QUIET_SECONDS = 120.0  # a run is not running if its files have not changed for this long, and for 10 of its lines
INTERRUPTION = 20.0  # a gap of this many times the usual one between two lines is a pause
SORTS = (
    "name", "preset", "method", "state", "step", "images_per_second", "loss", "knn_auroc_best", "knn_auroc_last",
    "effective_rank", "started", "seconds",
)  # fmt: skip
ASCENDING = ("name", "preset", "method", "state", "loss")
COLUMNS = (
    "name", "preset", "method", "state", "step", "images/s", "waits", "loss", "kNN best", "kNN last", "rank", "started",
    "trained", "left",
)  # fmt: skip
_NUMBER = rb"(-?[0-9][0-9.eE+-]*)"
_TIME = re.compile(rb'"time": ' + _NUMBER)
_KNN = re.compile(rb'"probe/knn_auroc": ' + _NUMBER)


@dataclass(frozen=True)
class RunSummary:
    """One run.  An unknown number is None, an unknown text "".

    state: "running" if its files still change; "finished" at its last step; "stopped" if its newest checkpoint holds
    all its steps; "failed" if steps are lost.  images_per_second, data_wait_share, loss, effective_rank: newest values.
    knn_auroc_best, knn_auroc_last: mean over labels, on val films.  started: Unix time of the first line.
    seconds: training time without pauses.  seconds_left: for a running run.
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
    """Runs in the requested order.

    damaged: folders with checkpoints whose config.json is missing or no JSON object.
    """

    runs: tuple[RunSummary, ...]
    damaged: tuple[str, ...] = ()

    def as_json(self) -> list[dict[str, Any]]:
        """Return one mapping per run."""
        return [asdict(run) for run in self.runs]

    def as_text(self) -> str:
        """Return a table with one line per run, without empty columns."""
        if not self.runs:
            return "There is no run here; make one with: chess-cxr pretrain STORE --out runs/first"
        names = name_apart(self.runs)
        return build_table(COLUMNS, [[name, *_describe_run(run)] for name, run in zip(names, self.runs, strict=True)])


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side.

    config: the entries that differ, "training.batch" -> one text per run, "–" for a missing entry.
    numbers: the newest value of each number in `metrics.jsonl`, and the best kNN AUROC; None if a run has none.
    """

    runs: tuple[RunSummary, ...]
    config: dict[str, tuple[str, ...]]
    numbers: dict[str, tuple[float | None, ...]]

    def as_json(self) -> dict[str, Any]:
        """Return the content of `as_text` as JSON values."""
        return {"runs": [asdict(run) for run in self.runs], "config": self.config, "numbers": self.numbers}

    def as_text(self) -> str:
        """Return two tables, configuration and numbers, with one column per run."""
        names = name_apart(self.runs)
        rows = [("step", [_count(run.step, run.steps) for run in self.runs])]
        rows += [("state", [run.state for run in self.runs])]
        rows += [(name, [_round(value) for value in values]) for name, values in self.numbers.items()]
        numbers = build_table(["", *names], [[name, *texts] for name, texts in rows])
        if not self.config:
            return f"The configurations are the same.\n\n{numbers}"
        return f"{build_table(['', *names], [[name, *texts] for name, texts in self.config.items()])}\n\n{numbers}"


def list_runs(folders: Sequence[Path], sort: str = "started", now: float | None = None) -> RunList:
    """List the runs in some folders; each folder is a run or lies up to two levels above runs.

    sort: one of `SORTS`; numbers and times in descending order, the loss in ascending order.  now: Unix time.
    Raises `UsageError` for a missing folder or another name to sort by.
    """
    if sort not in SORTS:
        raise UsageError(f"runs cannot be sorted by {sort!r}; choose one of {', '.join(SORTS)}")
    now = time.time() if now is None else now
    found = find_runs(folders)
    damaged = tuple(str(path) for path in found if not is_run(path))
    runs = [read_run(path, now) for path in found if is_run(path)]
    known = [run for run in runs if getattr(run, sort) is not None]
    known.sort(key=lambda run: getattr(run, sort), reverse=sort not in ASCENDING)
    return RunList((*known, *(run for run in runs if getattr(run, sort) is None)), damaged)


def compare_runs(folders: Sequence[Path], now: float | None = None) -> RunComparison:
    """Compare runs, in the given order.

    Raises `UsageError` for fewer than two runs or a folder that is not a run.
    """
    if len(folders) < 2:
        raise UsageError("name at least two runs to compare")
    for folder in folders:
        if not is_run(folder):
            raise UsageError(f"{folder} is not a run; chess-cxr runs lists the runs in a folder")
    runs = tuple(read_run(folder, time.time() if now is None else now) for folder in folders)
    entries = [flatten_config(read_json(folder / "config.json")) for folder in folders]
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
    """Return the run folders in and below `folders`, the damaged ones too, each once, sorted by path.

    Skips unreadable folders.  Raises `UsageError` if one of `folders` does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder} is a file" if folder.is_file() else f"there is no folder {folder}")
    found = {run.resolve(): run for folder in folders for run in _walk(folder, DEPTH)}
    return sorted(found.values())


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder) or _is_damaged_run(folder):
        yield folder
    elif depth:
        try:
            with os.scandir(folder) as entries:  # unlike iterdir, it need not stat every file
                inside = sorted(
                    e.name for e in entries if e.name[0] != "." and not e.name.endswith(".lance") and e.is_dir()
                )
        except OSError:
            return
        for name in inside:
            yield from _walk(folder / name, depth - 1)


def check_run(folder: Path) -> None:
    """Raise `UsageError` for what is no run, or one whose config.json is damaged."""
    if (folder / "config.json").is_file() and not read_json(folder / "config.json"):
        raise UsageError(f"{folder / 'config.json'} is damaged: it is no JSON object; restore it from a copy")
    if not is_run(folder):
        raise UsageError(f"{folder} is not a run; make one with: chess-cxr pretrain STORE --out RUN")


def is_run(folder: Path) -> bool:
    """Return whether a folder holds the configuration of a pre-training run."""
    config = read_json(folder / "config.json")
    return isinstance(config.get("training"), dict) and isinstance(config.get("method"), dict)


def _is_damaged_run(folder: Path) -> bool:
    return not read_json(folder / "config.json") and any(
        re.fullmatch(r"step_\d+\.safetensors", path.name) for path in _list(folder / "checkpoints")
    )


def read_run(folder: Path, now: float) -> RunSummary:
    """Summarise a run folder; `now`, a Unix time, decides whether it is running."""
    config = read_json(folder / "config.json")
    training, content = config["training"], read_whole_lines(folder / "metrics.jsonl")
    newest = _find_newest(_parse_lines(content[-65536:], cut=len(content) > 65536))
    times, aurocs = _find_all(_TIME, content), _find_all(_KNN, content)
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False) if later > earlier]
    usual = statistics.median(gaps) if gaps else 0.0
    steps, step = _whole(training.get("steps")), _whole(newest.get("step")) or 0
    checkpoint, newest_change = _find_checkpoint(folder)
    lately = now - newest_change < max(QUIET_SECONDS, 10 * usual)
    state = _judge_state(steps, checkpoint, step, _whole(training.get("checkpoint_every")), lately)
    speed, batch = newest.get("images_per_second"), _whole(training.get("batch"))
    return RunSummary(
        path=str(folder),
        name=folder.resolve().name,
        preset=str(config.get("preset", "")),
        method=str(config["method"].get("name", "moco_v2")),
        state=state,
        step=max(step, checkpoint),
        steps=steps,
        images_per_second=speed,
        data_wait_share=newest.get("data_wait_share"),
        loss=next((value for name, value in newest.items() if name.startswith("loss/")), None),
        knn_auroc_best=max(aurocs, default=None),
        knn_auroc_last=aurocs[-1] if aurocs else None,
        effective_rank=newest.get("probe/effective_rank"),
        started=times[0] if times else None,
        seconds=sum(gap for gap in gaps if gap <= INTERRUPTION * usual) if gaps else None,
        seconds_left=(steps - step) * batch / speed if state == "running" and speed and steps and batch else None,
    )


def _judge_state(steps: int | None, checkpoint: int, line: int, every: int | None, lately: bool) -> State:
    if steps is not None and max(line, checkpoint) >= steps:
        return "finished"
    saved = checkpoint > 0 and checkpoint >= line
    # only a stop signal makes a run write a checkpoint between two regular ones
    asked_to_stop = saved and bool(every) and checkpoint % (every or 1) != 0
    if lately and not asked_to_stop:
        return "running"
    return "stopped" if saved else "failed"


def _find_checkpoint(folder: Path) -> tuple[int, float]:
    """Return the step of the newest checkpoint, 0 for none, and the time of the run's newest change."""
    step, changed = 0, 0.0
    for path in (folder / "config.json", folder / "metrics.jsonl", *_list(folder / "checkpoints")):
        try:
            changed = max(changed, path.stat().st_mtime)
        except OSError:  # the run may be replacing it
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
    """Read a growing file up to the end of its last whole line; b"" if it has none."""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    return content[: content.rfind(b"\n") + 1]


def read_lines(path: Path) -> list[dict[str, float]]:
    """Read the numbers of a `metrics.jsonl`, skipping broken lines."""
    return list(_parse_lines(read_whole_lines(path)))


def read_metrics(run: Path | str) -> list[dict[str, float]]:
    """Read the numbers of a run, from its `metrics.jsonl`; raises `UsageError` if it has none."""
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        raise UsageError(f"{run} is not a run; make one with: chess-cxr pretrain STORE --out {run}")
    return read_lines(path)


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


def name_apart(runs: Sequence[RunSummary]) -> list[str]:
    """Return the names of runs, or, if two have the same name, their paths without the common part."""
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
    """Format a duration as 0:45, 12:05, 3 h 20 or 4 d 6 h; "" for None."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes}:{round(seconds) % 60:02d}"
    return f"{minutes // 60} h {minutes % 60:02d}" if minutes < 2880 else f"{minutes // 1440} d {minutes // 60 % 24} h"


def build_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay texts out in columns, numbers right-aligned, without empty columns."""
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
    """Fit a foreign text, such as a configuration's, on one line."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
