"""Pre-training that takes a second."""

from dataclasses import replace

from chess_cxr.methods.moco import MoCoConfig
from chess_cxr.pretraining.presets import PRESETS, PretrainConfig


def build_tiny_config(steps: int = 4) -> PretrainConfig:
    demo = PRESETS["demo"]()
    training = replace(demo.training, steps=steps, batch=8, log_every=2, probe_every=4, checkpoint_every=2)
    views = replace(demo.views, size=32)
    return replace(demo, method=MoCoConfig("test_resnet", 16, queue=32, norm_groups=2), views=views, training=training)
