"""How a bone network is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chess_cxr.tasks.config import SAME, PerceptualConfig


@dataclass(frozen=True)
class BonesConfig:
    """How a bone network is trained.

    Args:
        size: longest side of films at which the network works, in pixels; its bone image is brought to each film's own.
        crop: side of the squares that it sees at a time.
        decoder: of its U-Net: full, or tiny for a CPU.
        perceptual: network of its perceptual loss: same (ENCODER), none, random, imagenet, chess:FILE, or an encoder.
        perceptual_weight: share of the perceptual loss beside L1 and 1 - MS-SSIM.
        compare: how the perceptual loss compares features.
        steps: optimisation steps.
        batch: pairs a step.
        learning_rate: of AdamW.
        encoder_rate: learning rate of the encoder as a share of the decoder's.
        weight_decay: of AdamW.
        checkpoint_every: steps between checkpoints.
        threads: batches prepared at a time.
        seed: of everything random.
    """

    size: int = 512
    crop: int = 256
    decoder: Literal["tiny", "full"] = "full"
    perceptual: str = SAME
    perceptual_weight: float = 1.0
    compare: PerceptualConfig = PerceptualConfig()
    steps: int = 3000
    batch: int = 8
    learning_rate: float = 1e-3
    encoder_rate: float = 0.3
    weight_decay: float = 1e-4
    checkpoint_every: int = 500
    threads: int = 1
    seed: int = 0
