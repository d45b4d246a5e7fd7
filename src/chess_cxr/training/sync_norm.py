"""BatchNorm over all ranks: a batch that is spread over many ranks is normalised as one process would do it."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norm(network: nn.Module) -> None:
    """Make every BatchNorm of a network, timm's too, take its statistics over all ranks while it trains.

    torch's own `SyncBatchNorm` refuses tensors on the CPU, so could be tested nowhere but on GPUs; this one is plain
    arithmetic and two sums over the ranks a layer.  Names and values of the weights stay what they were.
    MoCo is better off without: its keys are normalised in other company than their queries on purpose.
    """
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            cast(Any, layer).forward = partial(_normalise, layer)


def _normalise(layer: _BatchNorm, batch: Tensor) -> Tensor:
    if not (layer.training and dist.is_initialized()):
        alone: Tensor = type(layer).forward(layer, batch)
        return alone
    dims = [dim for dim in range(batch.ndim) if dim != 1]
    count = batch.numel() // batch.shape[1] * dist.get_world_size()
    whole = batch.float()
    mean = _Sum.apply(whole.sum(dims, keepdim=True)) / count
    variance = _Sum.apply((whole - mean).square().sum(dims, keepdim=True)) / count
    _follow(layer, mean.detach().flatten(), variance.detach().flatten() * count / (count - 1))
    normalised: Tensor = (whole - mean) * torch.rsqrt(variance + layer.eps)
    if layer.affine:
        shape = mean.shape
        normalised = normalised * layer.weight.view(shape) + layer.bias.view(shape)
    normalised = normalised.to(batch.dtype)
    for name in ("drop", "act"):  # timm's BatchNormAct2d ends with an activation
        part = getattr(layer, name, None)
        normalised = part(normalised) if part is not None else normalised
    return normalised


@torch.no_grad()
def _follow(layer: _BatchNorm, mean_C: Tensor, variance_C: Tensor) -> None:
    seen = cast(Tensor, layer.num_batches_tracked).add_(1)
    share = 1 / float(seen) if layer.momentum is None else layer.momentum
    cast(Tensor, layer.running_mean).lerp_(mean_C, share)
    cast(Tensor, layer.running_var).lerp_(variance_C, share)


class _Sum(torch.autograd.Function):
    """The sum over all ranks; what the losses of all ranks ask of it reaches each."""

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
