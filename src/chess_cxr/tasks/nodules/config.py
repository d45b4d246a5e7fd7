"""How a nodule generator is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chess_cxr.tasks.config import SAME, PerceptualConfig


@dataclass(frozen=True)
class NodulesConfig:
    """How a nodule generator is trained.

    Args:
        mode: inpaint changes the region around the mask alone; film makes whole films.
        size: side of what it makes, in pixels.
        film_size: longest side of the films that it paints into while it learns; 256 pixels for a film of 35 cm are
            1.4 mm a pixel.
        width: of its networks; 64 in the paper, 8 to 16 for a CPU.
        latent: length of the style vector.
        perceptual: network of its perceptual loss: same (ENCODER), none, random, imagenet, chess:FILE, or an encoder.
        perceptual_weight: weight of the perceptual loss.
        compare: how the perceptual loss compares features.
        feature_matching: weight of the feature matching loss.
        kld: weight of the Kullback-Leibler divergence of the style vector.
        r1: weight of the discriminator's gradient penalty.
        ema: decay of the averaged generator.
        steps: optimisation steps.
        batch: films a step.
        learning_rate: of the generator; the discriminator's is four times that.
        checkpoint_every: steps between checkpoints.
        threads: batches prepared at a time.
        seed: of everything random.
    """

    mode: Literal["inpaint", "film"] = "inpaint"
    size: Literal[64, 128, 256, 512] = 64
    film_size: int = 256
    width: int = 16
    latent: int = 64
    perceptual: str = SAME
    perceptual_weight: float = 10.0
    compare: PerceptualConfig = PerceptualConfig(resolution="film")
    feature_matching: float = 10.0
    kld: float = 0.05
    r1: float = 0.0
    ema: float = 0.995
    steps: int = 3000
    batch: int = 8
    learning_rate: float = 2e-4
    checkpoint_every: int = 500
    threads: int = 1
    seed: int = 0
