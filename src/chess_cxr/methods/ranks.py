"""Collectives for losses over all ranks of a run; a single process counts as one rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chess_cxr.methods.full_precision import full_precision


def get_rank() -> int:
    """Return this process's rank, 0 outside distributed training."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def get_world() -> int:
    """Return the number of ranks, 1 outside distributed training."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def take_own(everyone: Tensor, own: int) -> Tensor:
    """Return this rank's `own` rows of a tensor gathered over all ranks."""
    first = get_rank() * own
    return everyone[first : first + own]


def gather_ranks(tensor: Tensor) -> Tensor:
    """Concatenate a tensor over all ranks along its first axis, without gradient; shapes must agree."""
    if not torch.distributed.is_initialized():
        return tensor.detach()
    tensor = tensor.detach().contiguous()
    parts = [torch.empty_like(tensor) for _ in range(get_world())]
    torch.distributed.all_gather(parts, tensor)
    return torch.cat(parts)


def gather_ranks_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenate a tensor over all ranks along its first axis, with gradient.

    The gradients of all ranks' losses with respect to a row are summed on the rank that made it.  If each rank's loss
    is a mean over its own films, and the loop averages gradients over ranks, then many ranks get the same gradient as
    one process with the whole batch.
    """
    if not torch.distributed.is_initialized():
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.own = len(tensor)
        return gather_ranks(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # all_reduce works in place, and autograd may still use this gradient elsewhere
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return take_own(total, ctx.own)


def contrast_over_ranks(query_BD: Tensor, key_ND: Tensor, temperature: float) -> Tensor:
    """Contrast each query with its key against the keys of all ranks, in rank order: mean InfoNCE loss in nats."""
    with full_precision(query_BD.device):
        own = torch.arange(len(query_BD), device=query_BD.device) + get_rank() * len(query_BD)
        return F.cross_entropy(query_BD @ key_ND.T / temperature, own)


def draw_shared_permutation(length: int, device: torch.device) -> Tensor:
    """Draw a permutation on rank 0 and share it with all ranks."""
    permutation = torch.randperm(length).to(device)
    if torch.distributed.is_initialized():
        torch.distributed.broadcast(permutation, 0)
    return permutation
