"""Checks and plans of a bone network's training, and runs that earlier versions have begun."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from chess_cxr.files.whole import read_json
from chess_cxr.records import UsageError
from chess_cxr.tasks.bones.config import BonesConfig
from chess_cxr.tasks.bones.model import LARGEST_SIDE
from chess_cxr.tasks.bones.objective import SMALLEST_SIDE
from chess_cxr.training.loop import TrainingConfig, check_training_config

MOST_BATCH_PIXELS = 1 << 28  # 1024 squares of 512 pixels, 2 GiB of input alone
MOST_STRENGTH = 10.0  # more would leave black and white
_UNKNOWN_EARLIER: dict[str, Any] = {
    "balance": False, "keep_nodules": 0.0, "spread": False, "caution": 0.0, "strengthen_bone": 1.0, "head": "softplus",
}  # fmt: skip


def check_bones_config(config: BonesConfig) -> None:
    """Raise UsageError for invalid numbers."""
    if not SMALLEST_SIDE <= config.crop <= config.size <= LARGEST_SIDE:
        raise UsageError(f"bone suppression needs {SMALLEST_SIDE} <= crop <= size <= {LARGEST_SIDE} pixels")
    if not (0 <= config.keep_nodules < np.inf and 0 <= config.caution < np.inf):
        raise UsageError("bone suppression needs a weight of kept nodules and a caution of 0 or more")
    if not 1 <= config.strengthen_bone <= MOST_STRENGTH:
        raise UsageError(f"--strengthen-bone takes a factor from 1 to {MOST_STRENGTH:g}")
    if config.caution and not config.spread:
        raise UsageError("caution needs the spread; leave out one of --caution and --no-spread")
    if not (0 <= config.perceptual_weight < np.inf and 0 <= config.encoder_rate <= 1):
        raise UsageError("bone suppression needs a perceptual weight of 0 or more and an encoder rate from 0 to 1")
    check_training_config(plan_bone_training(config))
    if config.batch * config.crop**2 > MOST_BATCH_PIXELS:
        raise UsageError(f"a batch of {config.batch} squares of {config.crop} pixels fits no machine; lower --batch")


def plan_bone_training(config: BonesConfig) -> TrainingConfig:
    """Return the optimisation of a bone network."""
    return TrainingConfig(
        steps=config.steps,
        batch=config.batch,
        optimizer="adamw",
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=0.05,
        clip_norm=1.0,
        log_every=max(1, min(20, config.steps)),
        probe_every=max(1, config.steps // 10),
        checkpoint_every=config.checkpoint_every,
        loader_threads=config.threads,
        seed=config.seed,
    )


def go_on_as_begun(folder: Path, config: BonesConfig) -> BonesConfig:
    """Return the configuration of a run that an earlier version has begun in `folder`, without what it did not know."""
    begun = read_json(folder / "config.json").get("bones")
    if not isinstance(begun, Mapping):
        return config
    return replace(config, **{name: value for name, value in _UNKNOWN_EARLIER.items() if name not in begun})


def complete_earlier(described: dict[str, Any]) -> dict[str, Any]:
    """Complete the configuration of a run that an earlier version has begun."""
    return {**described, "bones": {**_UNKNOWN_EARLIER, **described.get("bones", {})}}
