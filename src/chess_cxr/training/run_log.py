"""What a run tells while it trains: probes, speed and alarms, in `metrics.jsonl` and the trackers."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from chess_cxr.records import UsageError
from chess_cxr.store import Store
from chess_cxr.training.checkpoint import write_atomically
from chess_cxr.training.loop import Method, StepReport, TrainingConfig
from chess_cxr.training.precision import Precision
from chess_cxr.training.probe import CollapseAlarm, probe_encoder, read_labelled_films
from chess_cxr.training.speed import SpeedScale, measure_speed_scale
from chess_cxr.training.trackers import RunEnd, TrackingConfig, open_trackers
from chess_cxr.views import ViewConfig


class PretrainMethod(Method, Protocol):
    """A method with an encoder: what a run probes and exports."""

    @property
    def encoder(self) -> nn.Module:
        """The network that is pre-trained: normalised [B, 1, H, W] -> [B, D]."""


@dataclass(frozen=True)
class PixelScale:
    """Mean and standard deviation of the pixels in [0, 1] that training subtracts and divides by."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise UsageError("pixels: mean must be a finite number and std one above 0")


class Watch:
    """The first rank's eye on a run: probes and logs at their steps, and tells a collapse and skipped steps.

    probe: the newest numbers of it.  has_collapsed: whether the alarm has rung.
    """

    def __init__(
        self,
        log: RunLog,
        method: PretrainMethod,
        stores: Sequence[Store],
        training: TrainingConfig,
        views: ViewConfig,
        pixels: PixelScale,
        films_per_rank: int,
        device: torch.device,
    ) -> None:
        self.log, self.probe = log, dict[str, float]()
        self._method, self._training, self._pixels = method, training, pixels
        self._labelled, self._told_skipped = read_labelled_films(stores, views.size, views=views), 0
        self._alarm = CollapseAlarm(first_step=find_first_judged_step(training))
        shape = (2, films_per_rank, 1, views.size, views.size)
        self._scale = measure_speed_scale(method, shape, device, choose_peak_kind(training.precision, device))

    @property
    def has_collapsed(self) -> bool:
        """Whether the alarm has rung."""
        return self._alarm.is_ringing

    def look(self, report: StepReport) -> None:
        """Look at a step that was made."""
        training, step = self._training, report.step
        last, values = step == training.steps, dict[str, float]()
        if report.problem and report.skipped_steps > self._told_skipped:  # too large a scale of float16 is usual
            self._told_skipped = report.skipped_steps
            self.log.say(f"step {step} was skipped: {report.problem}; {report.skipped_steps} so far")
        if last or step % training.log_every == 0:
            values = self.log.summarise(report, self._method.signals, training.batch, self._scale)
        if self._labelled and (last or step % training.probe_every == 0):
            probed = probe_encoder(self._method.encoder, self._labelled, self._pixels.mean, self._pixels.std)
            self.probe = {f"probe/{name}": value for name, value in probed.items()}
            values |= self.probe
        if values:
            self.log.write(step, values)
            if line := self._alarm.judge(step, values):
                self.log.say(line)


def find_first_judged_step(training: TrainingConfig) -> int:
    """Return from which step on a run is judged for collapse: the first ones from scratch may look collapsed."""
    return max(round(training.warmup * training.steps), training.frozen_steps, training.steps // 50)


def choose_peak_kind(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the numbers whose matrix product is the peak that a run is held against."""
    if precision == "bfloat16":
        return torch.bfloat16
    # CPUs compute float16 by way of float32
    return torch.float16 if precision == "float16" and device.type == "cuda" else torch.float32


class RunLog:
    """Writes a run's `config.json`, `environment.json`, `metrics.jsonl` and training uids, and feeds its trackers.

    say: tells the user one line.
    """

    def __init__(
        self,
        folder: Path,
        described: dict[str, Any],
        uids: list[str],
        first_step: int,
        tracking: TrackingConfig,
        say: Callable[[str], None],
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
        """Count the images a second from now on."""
        self._started = time.perf_counter()

    def summarise(
        self, report: StepReport, signals: Mapping[str, float], batch: int, scale: SpeedScale | None = None
    ) -> dict[str, float]:
        """Name the numbers of the newest step, with the speed since the last summary."""
        steps, seconds = report.step - self._clock_step, max(time.perf_counter() - self._started, 1e-9)
        self._started, self._clock_step = time.perf_counter(), report.step
        values = {f"loss/{name}": loss for name, loss in report.losses.items()}
        values |= {f"gradient_norm/{name}": norm for name, norm in report.gradient_norms.items()}
        values |= {} if report.problem else signals  # a skipped step's may be NaN, which JSON does not know
        values |= {"skipped_steps": report.skipped_steps, "overflowed_steps": report.overflowed_steps}
        values |= {"learning_rate": report.learning_rate, "images_per_second": batch * steps / seconds}
        values |= {"data_wait_share": report.wait_seconds / max(report.seconds, 1e-9)}
        return values | (scale.describe(report.seconds) if scale else {})

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write named numbers of one step to `metrics.jsonl` and the trackers."""
        self._metrics.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        self._metrics.flush()
        self._trackers.write(step, values)

    def close(self, end: RunEnd) -> None:
        """Flush and close all files; tell the trackers how the run ended."""
        try:
            self._metrics.close()
        finally:
            self._trackers.close(end)


def _read_lines_until(path: Path, last_step: int) -> tuple[list[str], int]:
    """Read the lines up to a step that a killed run finished writing; return them, and how many others are broken."""
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
    """Name the versions and the hardware a run depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
