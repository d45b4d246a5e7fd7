"""Projection and prediction heads of pre-training methods."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from chess_cxr.training.sync_norm import normalise_over_ranks


def build_projection_head(features: int, out: int) -> nn.Sequential:
    """Build MoCo v2's two-layer head, features -> features -> out (Chen et al. 2020, "Improved baselines")."""
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, out))


def build_normed_head(widths: Sequence[int], norm_last: bool = False) -> nn.Sequential:
    """Build linear layers of these widths with BatchNorm and ReLU between them, as in BYOL, VICReg and MoCo v3.

    norm_last: normalise the output too, without scale and shift.  The linear layers have no bias.
    """
    layers: list[nn.Module] = []
    for index, (width, out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        last = index == len(widths) - 2
        layers.append(nn.Linear(width, out, bias=False))
        if not last:
            layers += [BatchNormOverRanks(out), nn.ReLU(inplace=True)]
        elif norm_last:
            layers.append(BatchNormOverRanks(out, affine=False))
    return nn.Sequential(*layers)


class BatchNormOverRanks(nn.BatchNorm1d):
    """Batch normalisation with the statistics of all ranks; a single process gets plain batch normalisation."""

    over_ranks = True  # talks to other ranks

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, D]; B must be the same on every rank."""
        alone = not (self.training and torch.distributed.is_initialized())
        return super().forward(input) if alone else normalise_over_ranks(self, input)
