"""The encoder that a method trains: a new one, or one to continue from."""

from __future__ import annotations

from typing import Any

from torch import nn

from chess_cxr.encoders.backbone import build_encoder
from chess_cxr.records import UsageError


def take_encoder(encoder: nn.Module | None, architecture: str) -> tuple[nn.Module, int]:
    """Return the encoder to train, [B, 1, H, W] -> [B, D], and its D.

    encoder: to continue from; it is trained itself, not a copy, and all of it.  None: an untrained `architecture`.
    Raises `UsageError` where it does not say how long its features are, as every timm network does.
    """
    if encoder is None:
        encoder = build_encoder(architecture)
    features: Any = getattr(encoder, "head_hidden_size", None) or getattr(encoder, "num_features", None)
    if not isinstance(features, int):
        raise UsageError("the encoder to continue from has no num_features; give a timm network")
    return encoder.train().requires_grad_(True), features
