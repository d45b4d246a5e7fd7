"""Named run configurations: plain functions that return frozen dataclasses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from chess_cxr.methods.moco import MoCoConfig
from chess_cxr.records import UsageError
from chess_cxr.training.loop import TrainingConfig
from chess_cxr.training.run import PixelScale
from chess_cxr.views import ViewConfig

PAPER_FILMS = 4_800_000
PAPER_EPOCHS = 200


@dataclass(frozen=True)
class PretrainConfig:
    """One pre-training run, resolved: what is written to a run's `config.json`."""

    # pydantic reads it, for the parts too: a misspelt entry is refused, not ignored
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    preset: str
    method: MoCoConfig
    views: ViewConfig
    training: TrainingConfig
    pixels: PixelScale
    splits: tuple[str, ...] = ("train", "")


def chess_paper() -> PretrainConfig:
    """ResNet-50 at 512² on 4.8 million films, as the published reference code runs it."""
    views = ViewConfig(
        size=512,
        filters=("median_blur", "motion_blur", "sharpen"),
        filter_p=0.2,
        brightness=(-0.1, 0.1),
        contrast=(-0.2, 0.1),
        tone_p=0.6,
        noise=(3.2, 7.1),
        grain=0.1,
        noise_p=0.2,
        jitter=0.1,
        jitter_p=0.3,
        shift=0.0625,
        zoom=0.2,
        rotate_deg=10,
        affine_p=0.2,
        distort=0.05,
        distort_p=0.06,
    )
    training = TrainingConfig(
        steps=PAPER_EPOCHS * PAPER_FILMS // 256,
        batch=256,
        loader_threads=8,
        log_every=50,
        probe_every=5_000,
        checkpoint_every=2_000,
    )
    return PretrainConfig("chess_paper", MoCoConfig(), views, training, PixelScale(0.658, 0.221))


def cpu_small() -> PretrainConfig:
    """A small network that two CPU cores train in about an hour; how it was chosen is in `docs/log.md`.

    The views are mild: brightness and place of an opacity are what few labels are enough to learn from.
    """
    views = ViewConfig(
        size=64,
        crop_area=(0.5, 1.0),
        crop_aspect=(0.8, 1.25),
        rotate_deg=10,
        zoom=0.1,
        affine_p=0.8,
        contrast=(-0.15, 0.15),
        brightness=(-0.08, 0.08),
        tone_p=0.8,
        filters=("gaussian_blur",),
        filter_p=0.2,
        noise=(1.0, 8.0),
        noise_p=0.2,
    )
    method = MoCoConfig("regnetx_002", queue=1024, key_momentum=0.99, norm_groups=4)
    training = TrainingConfig(
        steps=4800,
        batch=128,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.01,
        warmup=0.02,
        probe_every=200,
        checkpoint_every=200,
    )
    return PretrainConfig("cpu_small", method, views, training, PixelScale(0.5, 0.25))


def demo() -> PretrainConfig:
    """A few minutes on two CPU cores: shows that everything works, not what it is worth.

    timm's smallest ResNet is quick and learns something of generated films in 600 steps; RegNetX-002 did not.
    """
    small = cpu_small()
    training = replace(
        small.training,
        steps=600,
        batch=64,
        warmup=0.1,
        log_every=10,
        probe_every=100,
        checkpoint_every=200,
        loader_threads=1,
    )
    method = replace(small.method, architecture="test_resnet", queue=256, norm_groups=2)
    return replace(small, preset="demo", method=method, training=training)


PRESETS: dict[str, Callable[[], PretrainConfig]] = {
    "chess_paper": chess_paper,
    "cpu_small": cpu_small,
    "demo": demo,
}


def read_pretrain_config(described: Mapping[str, Any]) -> PretrainConfig:
    """Build a configuration from JSON values, such as a run's `config.json` without its data.

    Raises `UsageError` naming the first entry that does not fit.
    """
    try:
        return TypeAdapter(PretrainConfig).validate_json(json.dumps(dict(described)))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"configuration: {place}: {first['msg']}") from None
