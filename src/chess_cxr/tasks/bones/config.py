"""The configuration of a bone network and its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chess_cxr.tasks.config import SAME, PerceptualConfig


@dataclass(frozen=True)
class BonesConfig:
    """The configuration of a bone network and its training.

    Args:
        size: longest side of the network's input films in pixels; its bone image is scaled to each film's own size.
        crop: side of the training crops in pixels.
        decoder: decoder of the U-Net: full, or tiny for a CPU.
        head: how bone is read from the decoder: linear, or softplus as in version 0.1, which loses faint bone.
        perceptual: network of the perceptual loss: same (ENCODER), none, random, imagenet, chess:FILE, or an encoder.
        perceptual_weight: weight of the perceptual loss; L1 and 1 - MS-SSIM have weight 1.
        compare: comparison of features in the perceptual loss.
        balance: set the stage weights on training films, so that each stage costs a fifth of L1.
        keep_nodules: weight of the loss on nodules that are added to film and target; 0 leaves them out.
        strengthen_bone: largest factor by which training brightens the bone of a film; 1 leaves it as it is.
        spread: learn also how far the bone image may be off; `--no-spread` does not.
        caution: how many times the expected error is left in the film as bone; needs the spread.
        steps: number of optimisation steps.
        batch: pairs per step.
        learning_rate: learning rate of AdamW.
        encoder_rate: learning rate of the encoder, relative to the decoder's.
        weight_decay: weight decay of AdamW.
        checkpoint_every: steps between checkpoints.
        threads: number of batches prepared in parallel.
        seed: random seed.
        begin_from: a bone model of the same network, from whose weights to begin: a folder, or bones-small.
    """

    size: int = 512
    crop: int = 256
    decoder: Literal["tiny", "full"] = "full"
    head: Literal["linear", "softplus"] = "linear"
    perceptual: str = SAME
    perceptual_weight: float = 1.0
    compare: PerceptualConfig = PerceptualConfig()
    balance: bool = False
    keep_nodules: float = 1.0
    strengthen_bone: float = 1.0
    spread: bool = True
    caution: float = 0.0
    steps: int = 3000
    batch: int = 8
    learning_rate: float = 1e-3
    encoder_rate: float = 0.3
    weight_decay: float = 1e-4
    checkpoint_every: int = 500
    threads: int = 1
    seed: int = 0
    begin_from: str = ""
