"""Watch a pre-training run: probe its encoder, log its numbers, report a collapse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from chess_cxr.pretraining.collapse import CollapseAlarm
from chess_cxr.pretraining.films import Crops
from chess_cxr.pretraining.presets import PixelScale
from chess_cxr.pretraining.probe import probe_encoder, read_labelled_films
from chess_cxr.store import Store
from chess_cxr.training.loop import Method, StepReport, TrainingConfig
from chess_cxr.training.precision import Precision
from chess_cxr.training.run_log import RunLog
from chess_cxr.training.speed import measure_speed_scale
from chess_cxr.views import ViewConfig


class PretrainMethod(Method, Protocol):
    """A method with an encoder: what a run probes and exports."""

    @property
    def encoder(self) -> nn.Module:
        """The network that is pre-trained: normalised [B, 1, H, W] -> [B, D]."""


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
        crops: Crops,
        guides: Sequence[str],
        pixels: PixelScale,
        films_per_rank: int,
        device: torch.device,
    ) -> None:
        self.log, self.probe = log, dict[str, float]()
        self._method, self._training, self._pixels = method, training, pixels
        self._labelled, self._told_skipped = read_labelled_films(stores, views.size, views=views), 0
        self._alarm = CollapseAlarm(first_step=find_first_judged_step(training))
        kind = choose_peak_kind(training.precision, device)
        self._scale = measure_speed_scale(
            method, lambda: crops.build_batch(views, films_per_rank, guides), device, kind
        )

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
