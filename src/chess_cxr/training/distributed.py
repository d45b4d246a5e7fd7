"""What ranks under `torchrun` must agree on."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn


def join_ranks() -> tuple[int, int]:
    """Join the process group that `torchrun` describes, if any; return (rank, world size)."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(leave_ranks)
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def leave_ranks() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_ranks() -> None:
    """Return when every rank has come here."""
    if dist.is_initialized():
        dist.barrier()


def agree_on_mean(value: float, device: torch.device) -> float:
    """Return the mean of a number over the ranks: one that is not finite anywhere is not finite everywhere."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared)
    return float(shared) / dist.get_world_size()


def choose_device() -> torch.device:
    """Return this rank's accelerator, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def copy_from_first_rank(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if dist.is_initialized():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the ranks, in one collective."""
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    means = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
