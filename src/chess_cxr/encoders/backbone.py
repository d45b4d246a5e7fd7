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
    return create_network(name, 1)


def create_network(name: str, channels: int) -> nn.Module:
    """Create an untrained network of timm without classifier; a ViT takes films of any size that its patches divide."""
    options = {"dynamic_img_size": True} if timm.models.is_model_in_modules(name, {"vision_transformer"}) else {}
    network: nn.Module = timm.create_model(name, pretrained=False, in_chans=channels, num_classes=0, **options)
    return network
