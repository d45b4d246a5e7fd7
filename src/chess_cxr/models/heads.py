"""Projection and classification heads."""

from __future__ import annotations

from torch import nn


def build_projection_head(features: int, out: int) -> nn.Sequential:
    """MoCo v2's two-layer head, features -> features -> out (Chen et al. 2020, "Improved baselines")."""
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, out))
