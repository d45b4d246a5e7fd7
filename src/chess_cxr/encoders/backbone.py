"""Backbones: any timm network, fed with one grey channel, giving one feature vector a film."""

from __future__ import annotations

import timm
from torch import nn

from chess_cxr.records import UsageError


def build_encoder(name: str) -> nn.Module:
    """Build the untrained timm network `name`: [B, 1, H, W] -> [B, num_features].

    timm's ResNet-50 keeps the stride in the 3x3 convolution, as the published CheSS weights need.
    """
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise UsageError(f"timm has no network named {name!r}; close names: {', '.join(close) or 'none'}")
    encoder: nn.Module = timm.create_model(name, pretrained=False, in_chans=1, num_classes=0)
    return encoder
