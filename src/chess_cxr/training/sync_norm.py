"""Batch normalisation over all ranks: a batch spread over many ranks is normalised as on one process."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norm(network: nn.Module) -> None:
    """Make every BatchNorm of a network, including timm's, use the statistics of all ranks in training mode.

    torch's `SyncBatchNorm` works on GPUs only, so tests on the CPU could not cover it.  Weights keep their names and
    values.  MoCo should not use this: its shuffled BatchNorm needs separate statistics for queries and keys.
    """
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            cast(Any, layer).forward = partial(_normalise, layer)


def normalise_over_ranks(layer: _BatchNorm, batch: Tensor) -> Tensor:
    """Normalise [B, C, …] with the statistics of all ranks and update the layer's running statistics."""
    dims = [dim for dim in range(batch.ndim) if dim != 1]
    count = batch.numel() // batch.shape[1] * dist.get_world_size()
    whole = batch.float()
    mean = sum_over_ranks(whole.sum(dims, keepdim=True)) / count
    variance = sum_over_ranks((whole - mean).square().sum(dims, keepdim=True)) / count
    _update_statistics(layer, mean.detach().flatten(), variance.detach().flatten() * count / max(count - 1, 1))
    normalised: Tensor = (whole - mean) * torch.rsqrt(variance + layer.eps)
    if layer.affine:
        normalised = normalised * layer.weight.view(mean.shape) + layer.bias.view(mean.shape)
    return normalised.to(batch.dtype)


def _normalise(layer: _BatchNorm, batch: Tensor) -> Tensor:
    if not (layer.training and dist.is_initialized()):
        alone: Tensor = type(layer).forward(layer, batch)
        return alone
    normalised = normalise_over_ranks(layer, batch)
    for name in ("drop", "act"):  # timm's BatchNormAct2d ends with an activation
        part = getattr(layer, name, None)
        normalised = part(normalised) if part is not None else normalised
    return normalised


@torch.no_grad()
def _update_statistics(layer: _BatchNorm, mean_C: Tensor, variance_C: Tensor) -> None:
    seen = cast(Tensor, layer.num_batches_tracked).add_(1)
    share = 1 / float(seen) if layer.momentum is None else layer.momentum
    cast(Tensor, layer.running_mean).lerp_(mean_C, share)
    cast(Tensor, layer.running_var).lerp_(variance_C, share)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, with gradient: the backward pass sums the gradients of all ranks."""
    summed: Tensor = _Sum.apply(tensor)
    return summed


class _Sum(torch.autograd.Function):
    """Sum over all ranks; its backward sums the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
