"""An encoder at work: a network, the pixels it expects, and where it comes from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from chess_cxr.encoders.backbone import build_encoder, create_network
from chess_cxr.encoders.contract import PixelContract
from chess_cxr.records import ChessError, UsageError


@dataclass(frozen=True)
class TrainingSummary:
    """How an encoder was trained, as its card tells it.

    data: which films, from where, under which licence (Markdown).  images, steps: 0 where unknown.
    method, date: free text, "" where unknown.  config: the resolved run configuration, plain JSON.
    """

    data: str
    images: int = 0
    steps: int = 0
    method: str = ""
    date: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {"data": str, "images": int, "steps": int, "method": str, "date": str, "config": Mapping}
        wrong = next((name for name, kind in kinds.items() if not isinstance(getattr(self, name), kind)), None)
        if wrong:
            raise UsageError(f"training summary: {wrong} must be {kinds[wrong].__name__}")


@dataclass
class Encoder:
    """A network in evaluation mode together with what it expects and where it comes from; it can be pickled.

    module: [B, channels, size, size] -> [B, feature_count], on `device`, channels last.
    read_uids: how to read the training uids; there can be millions of them.
    """

    module: nn.Module
    contract: PixelContract
    name: str
    architecture: str
    licence: str
    training: TrainingSummary
    feature_count: int
    device: torch.device
    read_uids: Callable[[], frozenset[str]] = frozenset

    @cached_property
    def training_uids(self) -> frozenset[str]:
        """Keyed hashes of the films it was trained on, read when first asked for; empty where unknown."""
        return self.read_uids()

    def embed(self, pixels: Sequence[np.ndarray], batch: int = 16) -> np.ndarray:
        """Embed films, each float [H, W] in [0, 1] with bone bright, sizes may differ: float32 [N, feature_count].

        Puts the module in evaluation mode.  Raises ChessError for an array that is no film.
        """
        self.module.eval()
        feature_ND = np.empty((len(pixels), self.feature_count), np.float32)
        for start in range(0, len(pixels), batch):
            input_BCSS = torch.stack([self.contract.prepare(film) for film in pixels[start : start + batch]])
            feature_BD = run_network(self.module, input_BCSS, self.device)
            if feature_BD.shape[1] != self.feature_count:
                raise ChessError(
                    f"{self.name} gives {feature_BD.shape[1]} features, not {self.feature_count} as it says"
                )
            feature_ND[start : start + batch] = feature_BD.numpy()
        return feature_ND


def build_network(architecture: str, channels: int, seed: int = 0) -> nn.Module:
    """Build timm's network with weights drawn from the seed; the caller's random numbers stay where they were.

    Gives [B, channels, H, W] -> [B, features].  Raises UsageError where timm has or makes no such network.
    """
    parse_architecture(architecture)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also reset the GPUs' generators, which are not put back here.
        torch.default_generator.manual_seed(seed)
        try:
            if channels == 1:
                return build_encoder(architecture)
            return create_network(architecture, channels)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise UsageError(f"timm makes no {architecture} with {channels} channel(s): {_tell(error)}") from error


def parse_architecture(name: str) -> str:
    """Return a name of timm's networks as it is; raises UsageError for any other text."""
    if not re.fullmatch(r"[a-z0-9_]{1,80}", name) or not timm.is_model(name):
        raise UsageError(f"timm has no network named {name[:80]!r}")
    return name


def build_grey_network(encoder: Encoder) -> tuple[nn.Module, float, float]:
    """Build a copy that takes one grey channel with bone bright, and the mean and std its pixels want.

    A first layer of three channels becomes one with the sum of their weights, as timm does it; bone dark turns their
    sign.  What is left of the contract (size, fit, window) is not the network's and is left to whoever trains it.
    """
    network = build_network(encoder.architecture, 1)
    state, contract = dict(encoder.module.state_dict()), encoder.contract
    first = f"{getattr(network, 'pretrained_cfg')['first_conv']}.weight"  # noqa: B009
    sign = -1 if contract.polarity == "bone_dark" else 1
    state[first] = sign * state[first].sum(1, keepdim=True)
    network.load_state_dict(state)
    mean, std = (sum(values) / len(values) for values in (contract.mean, contract.std))
    return network, 1 - mean if sign < 0 else mean, std


def compute_state_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of a network's names and weights."""
    state = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    return hashlib.sha256(safetensors.torch.save(state)).hexdigest()


def list_expected_tensors(architecture: str, channels: int) -> dict[str, Tensor]:
    """Return the network's tensors without memory behind them, so that a config cannot make us allocate a giant."""
    with torch.device("meta"):
        return build_network(architecture, channels).state_dict()


def join_encoder(
    module: nn.Module, contract: PixelContract, name: str, architecture: str, licence: str, training: TrainingSummary
) -> Encoder:
    """Put a network and what is known of it together, on the CPU; its features are counted by running it once."""
    encoder = Encoder(module, contract, name, architecture, licence, training, 1, torch.device("cpu"))
    place_encoder(encoder, encoder.device)
    blank_1CSS = torch.zeros(1, contract.channels, contract.size, contract.size)
    encoder.feature_count = run_network(module, blank_1CSS, encoder.device).shape[1]
    return encoder


def place_encoder(encoder: Encoder, device: torch.device) -> Encoder:
    """Move an encoder to a device, channels last, in evaluation mode, and return it."""
    encoder.module.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    encoder.device = device
    return encoder


@torch.inference_mode()
def run_network(module: nn.Module, input_BCSS: Tensor, device: torch.device) -> Tensor:
    """Return the features of prepared films, float32 [B, features] on the CPU.

    Raises ChessError where the network cannot take this size or gives no single vector a film.
    """
    try:
        feature_BD: Tensor = module(input_BCSS.to(device, memory_format=torch.channels_last)).float().cpu()
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ChessError(f"the network fails on input {list(input_BCSS.shape)}: {_tell(error)}") from error
    if feature_BD.ndim != 2:
        raise ChessError(f"the network gives {list(feature_BD.shape[1:])} a film, not one feature vector")
    return feature_BD


def _tell(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
