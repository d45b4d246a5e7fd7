"""Projection and prediction heads of pre-training methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def build_projection_head(features: int, out: int) -> nn.Sequential:
    """MoCo v2's two-layer head, features -> features -> out (Chen et al. 2020, "Improved baselines")."""
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, out))


def build_normed_head(widths: Sequence[int], norm_last: bool = False) -> nn.Sequential:
    """Linear layers of these widths with batch normalisation and ReLU between, as BYOL, VICReg and MoCo v3 use them.

    norm_last: normalise the output as well, without scale and shift.  There are no biases but those of the norms.
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
    """Batch normalisation whose statistics are those of all ranks' batches together, on any device.

    `nn.SyncBatchNorm` does the same on accelerators only.  A process alone gets plain batch normalisation.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, D]; every rank must bring the same B."""
        if not (self.training and torch.distributed.is_initialized()):
            return super().forward(input)
        values_BD = input.float()
        count = len(values_BD) * torch.distributed.get_world_size()
        mean_D = sum_over_ranks(values_BD.sum(0)) / count
        centred_BD = values_BD - mean_D
        variance_D = sum_over_ranks(centred_BD.square().sum(0)) / count
        self._remember(mean_D.detach(), variance_D.detach() * count / max(count - 1, 1))
        normed_BD = centred_BD * torch.rsqrt(variance_D + self.eps)
        return (torch.addcmul(self.bias, normed_BD, self.weight) if self.affine else normed_BD).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean_D: Tensor, variance_D: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean_D, self.momentum)
        self.running_var.lerp_(variance_D, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, with gradient: what the losses of all ranks ask of it, summed too."""
    summed: Tensor = _Sum.apply(tensor)
    return summed


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total
