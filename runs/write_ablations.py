"""Write the configurations of the first trials in docs/log.md: `cpu_small` as it was then, with one change each.

usage: python runs/write_ablations.py   (writes runs/configs/*.json; train each with chess-cxr pretrain --config)

Ablations are of 700 steps.  Those called quality_* last 20 minutes on one thread of a 2-core machine, for
benchmarks/time_to_quality.py; continued_* begin with cxr-first, for its first minutes.
"""

import json
from dataclasses import replace
from pathlib import Path

from chess_cxr.methods.moco import MoCoConfig
from chess_cxr.pretraining.presets import PretrainConfig, cpu_small
from chess_cxr.pretraining.pretrain import continue_from
from chess_cxr.training.loop import TrainingConfig
from chess_cxr.training.run import describe
from chess_cxr.views import ViewConfig


def build_base() -> PretrainConfig:
    """Return `cpu_small` with the four groups of BatchNorm that it had then; today the preset has eight."""
    today = cpu_small()
    assert isinstance(today.method, MoCoConfig)
    return replace(today, method=replace(today.method, norm_groups=4))


def vary(
    name: str,
    method: MoCoConfig | None = None,
    views: ViewConfig | None = None,
    training: TrainingConfig | None = None,
) -> PretrainConfig:
    """Return the short `cpu_small` with some of its parts replaced."""
    base = build_base()
    short = replace(training or base.training, steps=700, warmup=0.05, probe_every=100, checkpoint_every=100)
    return replace(base, preset=name, method=method or base.method, views=views or base.views, training=short)


def build_ablations() -> list[PretrainConfig]:
    """Return all of them, the unchanged one first."""
    base = build_base()
    strong = replace(
        base.views, crop_area=(0.2, 1.0), gamma=(0.7, 1.4), gamma_p=0.5, contrast=(-0.3, 0.3), brightness=(-0.15, 0.15)
    )
    sgd = replace(base.training, optimizer="sgd", learning_rate=0.06, weight_decay=1e-4)
    return [
        vary("short"),
        vary("strong_views", views=strong),
        vary("long_queue", method=replace(base.method, queue=4096)),
        vary("sgd", training=sgd),
        vary("one_norm_group", method=replace(base.method, norm_groups=1)),
    ]


def build_quality_trials() -> list[PretrainConfig]:
    """Return those of 20 minutes."""
    base = build_base()
    short = replace(base.training, steps=2160)
    half = replace(short, precision="bfloat16")
    return [
        replace(base, preset="quality_float32", training=short),
        replace(base, preset="quality_bfloat16", training=half),
    ]


def build_continued() -> list[PretrainConfig]:
    """Return a run that continues as `continue_from` has it, and one whose trunk moves from the first step on."""
    gentle = continue_from(build_base(), "cxr-first")
    at_once = replace(gentle, training=replace(gentle.training, frozen_steps=0, warmup=0.0))
    return [replace(gentle, preset="continued_gently"), replace(at_once, preset="continued_at_once")]


if __name__ == "__main__":
    folder = Path(__file__).parent / "configs"
    folder.mkdir(exist_ok=True)
    for config in (*build_ablations(), *build_quality_trials(), *build_continued()):
        (folder / f"{config.preset}.json").write_text(json.dumps(describe(config), indent=1) + "\n")
