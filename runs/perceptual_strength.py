"""How strong a perceptual network's loss is, so that networks can be compared at equal strength.

Networks differ in the size of their features: at one weight the loss of one outweighs all other terms, that of another
is hardly felt.  Strength is what noise, blur, brightness and mottle of one RMS cost, weight included (geometric mean).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from chess_cxr.encoders.encoder import Encoder
from chess_cxr.tasks.config import PerceptualConfig
from chess_cxr.tasks.perceptual import build_perceptual, draw_disturbances


def measure_strength(network: str, encoder: Encoder, films: Sequence[np.ndarray], compare: PerceptualConfig) -> float:
    """Return the loss, at weight 1, of disturbed films [H, W] of one size against the films as they are."""
    return float(np.exp(np.mean(np.log(list(measure_strengths(network, encoder, films, compare).values())))))


def measure_strengths(
    network: str, encoder: Encoder, films: Sequence[np.ndarray], compare: PerceptualConfig
) -> dict[str, float]:
    """Return the loss by kind of disturbance."""
    loss, _ = build_perceptual(network, encoder, compare)
    assert loss, "a loss without a network has no strength"
    film_B1HW = torch.from_numpy(np.stack(films))[:, None].float()
    with torch.no_grad():
        return {
            name: float(loss(film_B1HW + change_B1HW, film_B1HW))
            for name, change_B1HW in draw_disturbances(film_B1HW).items()
        }
