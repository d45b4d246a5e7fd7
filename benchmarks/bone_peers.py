"""Peers of the bone network, retrained from their papers: both predict the film without bone directly.

- "unet": a plain U-Net (Ronneberger et al. 2015), as the family of DeBoNet (Rajaraman et al. 2022) has it: random
  weights, five scales, mean absolute error and 1 - MS-SSIM.
- "resnet_bs": after ResNet-BS (Rajaraman et al. 2021): residual blocks at full resolution without normalisation, each
  scaled by 0.1, and a long skip; the same losses, weighted 0.16 and 0.84.  8 blocks of 24 channels, not 16 of 64: those
  take 28 s a step of four squares of 256² on a core, so 17 steps in the time of 200 of ours.

`runs/bone_folds.py` trains them on the folds of our network, for the same CPU seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chess_cxr.tasks.bones.network import predict_maps
from chess_cxr.tasks.bones.objective import compute_ms_ssim_loss
from chess_cxr.tasks.bones.views import PairViews, TrainingPair, draw_pair_batch

SAVE_EVERY = 60.0  # CPU seconds


class PlainUNet(nn.Module):
    """A U-Net with a ResNet-18 encoder of random weights."""

    ms_ssim_share = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.unet = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=1)

    def forward(self, film_B1HW: Tensor) -> Tensor:
        """Return films without bone."""
        height, width = film_B1HW.shape[-2:]
        padded = F.pad(film_B1HW, (0, -width % 32, 0, -height % 32), mode="replicate")
        film: Tensor = torch.sigmoid(self.unet(padded))[..., :height, :width]
        return film


class ResNetBS(nn.Module):
    """Residual blocks at full resolution."""

    ms_ssim_share = 0.84

    def __init__(self, blocks: int = 8, width: int = 24) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.middle = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, film_B1HW: Tensor) -> Tensor:
        """Return films without bone."""
        begun = hidden = self.first(film_B1HW)
        for block in self.blocks:
            hidden = hidden + 0.1 * block(hidden)
        film: Tensor = self.last(begun + self.middle(hidden))
        return film


PEERS: dict[str, type[PlainUNet] | type[ResNetBS]] = {"unet": PlainUNet, "resnet_bs": ResNetBS}


@dataclass(frozen=True)
class PeerSuppressor:
    """A trained peer, used as a `BoneSuppressor`: what it takes from a film is film minus result."""

    network: nn.Module
    size: int
    tile: int

    def predict_maps(self, film_HW: np.ndarray) -> np.ndarray:
        """Return what is taken from a film, float32 [1, H, W]."""
        return (film_HW - self.suppress(film_HW))[None]

    def suppress(self, film_HW: np.ndarray) -> np.ndarray:
        """Return a film without its bones."""
        result_HW: np.ndarray = predict_maps(self.network, film_HW, self.size, self.tile)[0]
        return result_HW


def train_peer(
    name: str, pairs: Sequence[TrainingPair], seconds: float, crop: int, batch: int, seed: int, file: Path
) -> nn.Module:
    """Train a peer for CPU seconds, or go on where `file` says that it was stopped.

    Adam at 1e-3, which falls to 0 with half a cosine over the seconds; our augmentation.
    """
    torch.manual_seed(seed)
    network = PEERS[name]()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    share, optimizer = network.ms_ssim_share, torch.optim.Adam(network.parameters(), lr=1e-3)
    step, used = 0, 0.0
    if file.exists():
        state = torch.load(file, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step, used = state["step"], state["used"]
    saved = used
    network.train()
    while used < seconds:
        started = time.process_time()
        rng = np.random.default_rng([seed, step])
        chosen = [pairs[int(number)] for number in rng.integers(0, len(pairs), batch)]
        batch_of = draw_pair_batch(chosen, range(step * batch, (step + 1) * batch), seed, PairViews(crop))
        result = network(batch_of.film_B1HW)
        truth = batch_of.bone_free_B1HW
        loss = (1 - share) * F.l1_loss(result, truth) + share * compute_ms_ssim_loss(result, truth)
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * min(1.0, used / seconds)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step, used = step + 1, used + time.process_time() - started
        if used - saved > SAVE_EVERY or used >= seconds:
            saved, growing = used, file.with_suffix(".partial")
            torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                        "used": used}, growing)  # fmt: skip
            growing.replace(file)
    return network.eval()
