"""The files and trackers that a run writes while it trains."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from chess_cxr.files.whole import write_atomically
from chess_cxr.progress import Say
from chess_cxr.training.config import TrackingConfig
from chess_cxr.training.loop import StepReport
from chess_cxr.training.speed import SpeedScale
from chess_cxr.training.trackers import RunEnd, open_trackers


class RunLog:
    """Writes a run's `config.json`, `environment.json`, `training_uids.txt` and `metrics.jsonl`, and its trackers."""

    def __init__(
        self,
        folder: Path,
        described: dict[str, Any],
        uids: list[str],
        first_step: int,
        tracking: TrackingConfig,
        say: Say,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.json", json.dumps(described, indent=1).encode())
        write_atomically(folder / "environment.json", json.dumps(describe_environment(), indent=1).encode())
        write_atomically(folder / "training_uids.txt", "\n".join(uids).encode())
        metrics = folder / "metrics.jsonl"
        kept, broken = _read_lines_until(metrics, first_step)
        if broken:
            say(f"{broken} lines of {metrics} are broken and are left out")
        write_atomically(metrics, "".join(line + "\n" for line in kept).encode())
        self.say = say
        self._trackers = open_trackers(folder, tracking, described, first_step, say)
        self._metrics = metrics.open("a")
        self._started, self._clock_step = time.perf_counter(), first_step

    def restart_clock(self) -> None:
        """Measure the images per second from now on."""
        self._started = time.perf_counter()

    def summarise(self, reports: Sequence[StepReport], batch: int, scale: SpeedScale | None = None) -> dict[str, float]:
        """Return the newest step's numbers by name, with the speed of all steps since the last summary."""
        report = reports[-1]
        busy, waited = (sum(times) for times in zip(*((it.seconds, it.wait_seconds) for it in reports), strict=True))
        steps, seconds = report.step - self._clock_step, max(time.perf_counter() - self._started, 1e-9)
        self._started, self._clock_step = time.perf_counter(), report.step
        values = {f"loss/{name}": loss for name, loss in report.losses.items()}
        values |= {f"gradient_norm/{name}": norm for name, norm in report.gradient_norms.items()}
        values |= {} if report.problem else report.signals  # those of a skipped step may be NaN, which JSON cannot hold
        values |= {"skipped_steps": report.skipped_steps, "overflowed_steps": report.overflowed_steps}
        values |= {"learning_rate": report.learning_rate, "images_per_second": batch * steps / seconds}
        values |= {"data_wait_share": waited / max(busy, 1e-9)}
        return values | (scale.describe(busy / len(reports)) if scale else {})

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write named numbers of one step to `metrics.jsonl` and the trackers."""
        self._metrics.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        self._metrics.flush()
        self._trackers.write(step, values)

    def close(self, end: RunEnd) -> None:
        """Close all files, and the trackers with the run's outcome."""
        try:
            self._metrics.close()
        finally:
            self._trackers.close(end)


def _read_lines_until(path: Path, last_step: int) -> tuple[list[str], int]:
    """Return the whole lines of `metrics.jsonl` up to a step, and the number of broken lines."""
    text = path.read_text(errors="replace") if path.exists() else ""
    kept, broken = [], 0
    for line in text[: text.rfind("\n") + 1].splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line)
        except (ValueError, TypeError, KeyError):
            broken += 1
    return kept, broken


def describe_environment() -> dict[str, Any]:
    """Return the versions and the hardware that a run depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
