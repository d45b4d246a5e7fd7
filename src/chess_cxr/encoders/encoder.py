"""Encoders: a network with its pixel contract and its origin, and how to build, run and convert one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.facts import TrainingSummary
from chess_cxr.records import ChessError, UsageError


@dataclass
class Encoder:
    """A network in evaluation mode, its pixel contract and its origin; can be pickled.

    module: [B, channels, size, size] -> [B, feature_count], on `device`, channels last.
    read_uids: reads the training uids, of which there can be millions, on demand.
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
        """Keyed hashes of the training films, read at first use; empty if unknown."""
        return self.read_uids()

    def embed(self, pixels: Sequence[np.ndarray], batch: int = 16) -> np.ndarray:
        """Embed films, each float [H, W] of any size, in [0, 1] with bone bright: float32 [N, feature_count].

        Prepares one batch at a time, so that memory does not grow with the number of films.  Puts the module in
        evaluation mode.  Raises ChessError for an array that is not a film.
        """
        feature_ND = np.empty((len(pixels), self.feature_count), np.float32)
        for start in range(0, len(pixels), batch):
            prepared = self.prepare(pixels[start : start + batch])
            feature_ND[start : start + batch] = self.embed_prepared(prepared, batch)
        return feature_ND

    def prepare(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """Turn films into the network's input, float32 [N, channels, size, size]; threads may do this in parallel."""
        shape = (0, self.contract.channels, self.contract.size, self.contract.size)
        return torch.stack([self.contract.prepare(film) for film in pixels]) if len(pixels) else torch.empty(shape)

    def embed_prepared(self, input_NCSS: Tensor, batch: int = 16) -> np.ndarray:
        """Embed films that `prepare` has prepared."""
        self.module.eval()
        feature_ND = np.empty((len(input_NCSS), self.feature_count), np.float32)
        for start in range(0, len(input_NCSS), batch):
            feature_BD = run_network(self.module, input_NCSS[start : start + batch], self.device)
            if feature_BD.shape[1] != self.feature_count:
                raise ChessError(
                    f"{self.name} gives {feature_BD.shape[1]} features, not {self.feature_count} as it says"
                )
            feature_ND[start : start + batch] = feature_BD.numpy()
        return feature_ND


def build_encoder(name: str) -> nn.Module:
    """Build an untrained timm network for one grey channel: [B, 1, H, W] -> [B, num_features].

    timm's ResNet-50 has its stride in the 3x3 convolution, like the published CheSS weights.
    """
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise UsageError(f"timm has no network named {name!r}; close names: {', '.join(close) or 'none'}")
    return _create_network(name, 1)


def list_network_options(name: str) -> dict[str, bool]:
    """Return timm's options for a network: a ViT takes films of any size that is a multiple of its patch size."""
    return {"dynamic_img_size": True} if timm.models.is_model_in_modules(name, {"vision_transformer"}) else {}


def _create_network(name: str, channels: int) -> nn.Module:
    options = list_network_options(name)
    network: nn.Module = timm.create_model(name, pretrained=False, in_chans=channels, num_classes=0, **options)
    return network


def build_network(architecture: str, channels: int, seed: int = 0) -> nn.Module:
    """Build a timm network with weights drawn from the seed: [B, channels, H, W] -> [B, features].

    Leaves the caller's random generators untouched.  Raises UsageError if timm cannot build it.
    """
    parse_architecture(architecture)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reset the GPUs' generators, which fork_rng does not restore here.
        torch.default_generator.manual_seed(seed)
        try:
            if channels == 1:
                return build_encoder(architecture)
            return _create_network(architecture, channels)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise UsageError(f"timm makes no {architecture} with {channels} channel(s): {_tell(error)}") from error


def parse_architecture(name: str) -> str:
    """Return the name of a timm network unchanged; raises UsageError for any other text."""
    if not re.fullmatch(r"[a-z0-9_]{1,80}", name) or not timm.is_model(name):
        raise UsageError(f"timm has no network named {name[:80]!r}")
    return name


def build_grey_network(encoder: Encoder) -> tuple[nn.Module, float, float]:
    """Build a copy of the network for one grey channel with bone bright; return it with the mean and std of its pixels.

    Sums the first layer's weights over the channels, as timm does, and flips their sign for bone-dark input.  The rest
    of the contract (size, fit, window) does not concern the network.
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
    """Return the SHA-256 of a network's tensors and their names, independent of memory layout and device."""
    state = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    return hashlib.sha256(safetensors.torch.save(state)).hexdigest()


def list_expected_tensors(architecture: str, channels: int) -> dict[str, Tensor]:
    """Return the network's tensors on the meta device: a hostile config cannot make us allocate a huge network."""
    with torch.device("meta"):
        return build_network(architecture, channels).state_dict()


def join_encoder(
    module: nn.Module, contract: PixelContract, name: str, architecture: str, licence: str, training: TrainingSummary
) -> Encoder:
    """Build an `Encoder` on the CPU; runs the network once to count its features."""
    encoder = Encoder(module, contract, name, architecture, licence, training, 1, torch.device("cpu"))
    place_encoder(encoder, encoder.device)
    blank_1CSS = torch.zeros(1, contract.channels, contract.size, contract.size)
    encoder.feature_count = run_network(module, blank_1CSS, encoder.device).shape[1]
    return encoder


def place_encoder(encoder: Encoder, device: torch.device) -> Encoder:
    """Move an encoder to a device, channels last and in evaluation mode; return it."""
    encoder.module.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    encoder.device = device
    return encoder


@torch.inference_mode()
def run_network(module: nn.Module, input_BCSS: Tensor, device: torch.device) -> Tensor:
    """Run a network on prepared films; return float32 [B, features] on the CPU.

    Raises ChessError if the network cannot take this size or does not return one vector per film.
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
