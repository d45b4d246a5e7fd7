"""How strong a perceptual network's loss is, so that networks can be compared at equal strength.

Networks differ in the size of their features: at one weight the loss of one outweighs all other terms, that of another
is hardly felt.  Strength is what noise of 0.05 on a film costs, weight included.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from chess_cxr.encoders.encoder import Encoder
from chess_cxr.tasks.config import PerceptualConfig
from chess_cxr.tasks.perceptual import build_perceptual

NOISE = 0.05


def measure_strength(network: str, encoder: Encoder, films: Sequence[np.ndarray], compare: PerceptualConfig) -> float:
    """Return the loss, at weight 1, of films [H, W] of one size with noise against the films without."""
    loss, _ = build_perceptual(network, encoder, compare)
    assert loss, "a loss without a network has no strength"
    film_B1HW = torch.from_numpy(np.stack(films))[:, None].float()
    noise_B1HW = NOISE * torch.randn(film_B1HW.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float(loss((film_B1HW + noise_B1HW).clamp(0, 1), film_B1HW))
