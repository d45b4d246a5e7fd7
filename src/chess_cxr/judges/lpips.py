"""LPIPS: the perceptual distance of two films (Zhang et al. 2018), with VGG16 and the published linear weights.

Implemented here, as the libraries that offer it download their backbone.  The linear weights were fitted to human
judgements of small colour photographs; on radiographs LPIPS is a convention, not a validated measure.

Tensor suffixes: B films, C channels, H, W pixels of a block.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from chess_cxr.judges.vgg16 import (
    BLOCK_ENDS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SMALLEST_SIDE,
    build_vgg16,
    read_vgg16_weights,
)
from chess_cxr.records import UsageError

MOST_PIXELS = 1 << 21  # the first block takes 2.2 GB for two films of this size


class Lpips(nn.Module):
    """Two batches [B, 3, H, W] in [0, 1] -> distances [B], 0 for equal films; differentiable."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        weights, network = read_vgg16_weights(), build_vgg16()
        network.load_state_dict(dict(weights.state))
        self.blocks = nn.ModuleList([network[start:end] for start, end in pairwise((0, *BLOCK_ENDS))])
        self.linear = nn.ParameterList([nn.Parameter(linear_C[:, None, None]) for linear_C in weights.linear])
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, first_B3HW: Tensor, second_B3HW: Tensor) -> Tensor:
        """Return the distance of each pair, float [B]."""
        first, second = ((films - self.mean) / self.std for films in (first_B3HW, second_B3HW))
        distance_B = torch.zeros(len(first), device=first.device, dtype=first.dtype)
        for block, linear_C11 in zip(self.blocks, self.linear, strict=True):
            first, second = block(first), block(second)
            square_BCHW = (_normalise(first) - _normalise(second)).square()
            distance_B = distance_B + (square_BCHW * linear_C11).sum(dim=1).mean(dim=(1, 2))
        return distance_B


def compute_lpips(first_HW: np.ndarray, second_HW: np.ndarray) -> float:
    """Return LPIPS of two films, float [H, W] in [0, 1], at their own size: 0 if equal, larger if less alike.

    The value depends on the size: state it with the result.  Repeats grey to three channels.  Raises UsageError for
    different sizes, sides below 16 pixels or more than two million pixels, ChessError if VGG16's file is missing.
    """
    first, second = np.asarray(first_HW, np.float32), np.asarray(second_HW, np.float32)
    if first.ndim != 2 or first.shape != second.shape:
        raise UsageError(f"LPIPS compares two films of one size, not {first.shape} with {second.shape}")
    if min(first.shape) < SMALLEST_SIDE or first.size > MOST_PIXELS:
        limits = f"{SMALLEST_SIDE} pixels a side to {MOST_PIXELS} in all"
        raise UsageError(f"LPIPS takes films of {limits}: resize both alike")
    for film_HW in (first, second):
        if not (film_HW.min() >= -1e-3 and film_HW.max() <= 1 + 1e-3):
            raise UsageError("LPIPS takes films in [0, 1]")
    network = _load_once()
    with torch.inference_mode():
        pair = [torch.from_numpy(film_HW).expand(1, 3, *film_HW.shape) for film_HW in (first, second)]
        return float(network(*pair))


@lru_cache(maxsize=1)
def _load_once() -> Lpips:
    return Lpips()


def _normalise(feature_BCHW: Tensor) -> Tensor:
    """Scale every pixel's feature vector to length 1; the small constant keeps the gradient finite at 0."""
    length_B1HW = (feature_BCHW.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
    return feature_BCHW / length_B1HW
