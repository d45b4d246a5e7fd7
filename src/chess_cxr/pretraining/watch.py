"""Watch a pre-training run: probe its encoder, log its numbers, report a collapse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from chess_cxr.pretraining.collapse import CollapseAlarm
from chess_cxr.pretraining.crops import Crops
from chess_cxr.pretraining.presets import PixelScale
from chess_cxr.pretraining.probe import probe_encoder, read_labelled_films
from chess_cxr.store import Store
from chess_cxr.training.loop import Method, TrainingConfig
from chess_cxr.training.precision import Precision
from chess_cxr.training.run_log import RunLog
from chess_cxr.training.speed import measure_speed_scale
from chess_cxr.training.watch import RunWatch
from chess_cxr.views import ViewConfig


class PretrainMethod(Method, Protocol):
    """A method with an encoder: what a run probes and exports."""

    @property
    def encoder(self) -> nn.Module:
        """The network that is pre-trained: normalised [B, 1, H, W] -> [B, D]."""


class Watch(RunWatch):
    """Probes the encoder of a pre-training run, and warns of a collapse."""

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
        kind = choose_peak_kind(training.precision, device)
        scale = measure_speed_scale(method, lambda: crops.build_batch(views, films_per_rank, guides), device, kind)
        labelled = read_labelled_films(stores, views.size, views=views)

        def measure(_step: int) -> dict[str, float]:
            if labelled is None:
                return {}
            probed = probe_encoder(method.encoder, labelled, pixels.mean, pixels.std)
            return {f"probe/{name}": value for name, value in probed.items()}

        super().__init__(log, training, measure, scale=scale)
        self._alarm = CollapseAlarm(first_step=find_first_judged_step(training))

    @property
    def has_collapsed(self) -> bool:
        """Whether the collapse alarm rings."""
        return self._alarm.is_ringing

    def judge(self, step: int, values: Mapping[str, float]) -> None:
        """Warn of a collapse."""
        if line := self._alarm.judge(step, values):
            self.log.say(line)


def find_first_judged_step(training: TrainingConfig) -> int:
    """Return the first step to judge for collapse, as an untrained network may look collapsed."""
    return max(round(training.warmup * training.steps), training.frozen_steps, training.steps // 50)


def choose_peak_kind(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype whose matrix product measures a run's peak speed."""
    if precision == "bfloat16":
        return torch.bfloat16
    # CPUs convert float16 to float32
    return torch.float16 if precision == "float16" and device.type == "cuda" else torch.float32
