"""What all pre-training methods share: the encoder that they train, its parameters, and the newest step's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from chess_cxr.encoders.encoder import build_encoder
from chess_cxr.methods.batch import ViewBatch
from chess_cxr.methods.signals import read_signals
from chess_cxr.records import UsageError


class EncoderMethod(nn.Module):
    """A method that trains an encoder, [B, 1, H, W] -> [B, features]; subclasses add heads and yield the loss.

    encoder: the network to continue from, trained in place; None for an untrained `architecture`.
    Raises `UsageError` if the encoder does not state its number of features, as every timm network does.
    """

    def __init__(self, architecture: str, encoder: nn.Module | None) -> None:
        super().__init__()
        if encoder is None:
            encoder = build_encoder(architecture)
        features: Any = getattr(encoder, "head_hidden_size", None) or getattr(encoder, "num_features", None)
        if not isinstance(features, int):
            raise UsageError("the encoder to continue from has no num_features; give a timm network")
        self.encoder, self.features = encoder.train().requires_grad_(True), features
        self.measured: dict[str, Tensor] = {}  # the signals as tensors

    @property
    def signals(self) -> dict[str, float]:
        """The newest step's numbers, such as those of `measure_pairs`."""
        return read_signals(self.measured)

    def get_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each named loss trains; frozen copies are left out."""
        return {"encoder": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def losses(self, batch: Tensor | ViewBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of a batch of views under the name "encoder"."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Do nothing; methods with a momentum encoder or a queue update them here."""
