"""A demo that takes seconds."""

from dataclasses import replace

from chess_cxr.demo.run import DemoSize
from chess_cxr.methods.moco import MoCoConfig
from chess_cxr.pretraining.presets import PRESETS, PretrainConfig

SMALL = DemoSize(
    patients=24, films_per_patient=2, film_size=64, fractions=(0.5, 1.0), draws=2, replicates=30,
    bone_pairs=6, bone_steps=2, nodule_patients=8, nodule_steps=2, judged_nodules=6,
)  # fmt: skip


def build_small_config() -> PretrainConfig:
    demo = PRESETS["demo"]()
    training = replace(demo.training, steps=3, batch=8, log_every=1, checkpoint_every=3)
    method = MoCoConfig("test_resnet", 16, 32, norm_groups=2)
    return replace(demo, method=method, views=replace(demo.views, size=32), training=training)
