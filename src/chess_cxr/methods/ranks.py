"""Collectives for losses over all ranks of a run; a single process counts as one rank."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
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


@dataclass(frozen=True)
class Node:
    """Consecutive ranks, such as those of one machine: the first one's number, how many, and their process group."""

    first: int
    ranks: int
    group: Any = None


def get_node() -> Node:
    """Return the ranks of this machine, as torchrun numbers them; all ranks where it is unknown.

    Call it on all ranks, as the first call makes the process groups.
    """
    world, local = get_world(), int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    if not 0 < local < world or world % local:
        return Node(0, world)
    return _make_node(torch.distributed.group.WORLD, local)


@cache
def _make_node(_everyone: Any, local: int) -> Node:
    groups = [torch.distributed.new_group(list(range(at, at + local))) for at in range(0, get_world(), local)]
    number = get_rank() // local
    return Node(number * local, local, groups[number])


def take_own(everyone: Tensor, own: int, node: Node | None = None) -> Tensor:
    """Return this rank's `own` rows of a tensor gathered over all ranks, or those of a node."""
    first = (get_rank() - (node.first if node else 0)) * own
    return everyone[first : first + own]


def gather_ranks(tensor: Tensor, node: Node | None = None) -> Tensor:
    """Concatenate a tensor over all ranks, or those of a node, along its first axis, without gradient.

    Shapes must agree.
    """
    if not torch.distributed.is_initialized():
        return tensor.detach()
    tensor = tensor.detach().contiguous()
    parts = [torch.empty_like(tensor) for _ in range(node.ranks if node else get_world())]
    torch.distributed.all_gather(parts, tensor, node.group if node else None)
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


def draw_shared_permutation(own: int, device: torch.device, node: Node) -> Tensor:
    """Draw a permutation of a node's films, `own` of each rank, on its first rank and share it with the others.

    The random numbers are those of a permutation of all ranks' films, so that they go on alike on any number of nodes.
    """
    permutation = torch.randperm(own * get_world())
    if node.ranks < get_world():
        of_node = permutation - node.first * own
        permutation = of_node[(of_node >= 0) & (of_node < node.ranks * own)]
    permutation = permutation.to(device, non_blocking=True)
    if torch.distributed.is_initialized():
        torch.distributed.broadcast(permutation, node.first, node.group)
    return permutation
