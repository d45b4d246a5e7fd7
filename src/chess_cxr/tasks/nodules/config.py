"""The configuration of a nodule generator and its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chess_cxr.tasks.config import SAME, PerceptualConfig


@dataclass(frozen=True)
class NodulesConfig:
    """The configuration of a nodule generator and its training.

    Args:
        network: spade (Park et al. 2019) or flow (flow matching of the lesion alone; mode inpaint).
        mode: inpaint changes only the region around the mask; film makes whole films.
        size: side of the generated image in pixels.
        film_size: longest side of the training films in pixels; at 256, a film of 35 cm has 1.4 mm per pixel.
        width: channels of the networks; 64 in the paper, 8 to 16 for a CPU.
        latent: length of the style vector; spade only.
        perceptual: network of the perceptual loss: same (ENCODER), none, random, imagenet, chess:FILE, or an encoder.
        perceptual_weight: weight of the perceptual loss.
        compare: comparison of features in the perceptual loss.
        balance: set the stage weights on training films, so that each stage of the network costs a fifth of L1.
        feature_matching: weight of the feature matching loss; spade only.
        kld: weight of the Kullback-Leibler divergence of the style vector; spade only.
        r1: weight of the discriminator's gradient penalty; spade only.
        vary: make nodules differ: they are told size and contrast, and a style vector that can be found again; spade
            and inpaint only; `--no-vary` turns it off.
        ema: decay of the averaged generator.
        steps: number of optimisation steps.
        batch: films per step.
        learning_rate: learning rate of the generator; the discriminator's is four times higher.
        checkpoint_every: steps between checkpoints.
        threads: number of batches prepared in parallel.
        seed: random seed.
        begin_from: a model folder of the same network, size and width, from whose weights to begin.
    """

    network: Literal["spade", "flow"] = "spade"
    mode: Literal["inpaint", "film"] = "inpaint"
    size: Literal[64, 128, 256, 512] = 64
    film_size: int = 256
    width: int = 16
    latent: int = 64
    perceptual: str = SAME
    perceptual_weight: float = 10.0
    compare: PerceptualConfig = PerceptualConfig(resolution="film")
    balance: bool = False
    feature_matching: float = 10.0
    kld: float = 0.05
    r1: float = 0.0
    vary: bool = True
    ema: float = 0.995
    steps: int = 3000
    batch: int = 8
    learning_rate: float = 2e-4
    checkpoint_every: int = 500
    threads: int = 1
    seed: int = 0
    begin_from: str = ""
