"""Momentum encoders: exponential moving averages of a trained network, and schedules of their momentum."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from chess_cxr.records import UsageError
from chess_cxr.training.late import advance_count, read_count

Network = TypeVar("Network", bound=nn.Module)


def copy_frozen(network: Network) -> Network:
    """Copy a network; the copy gets no gradient."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(followers: Iterable[nn.Module], leaders: Iterable[nn.Module], momentum: float) -> None:
    """Update each follower's parameters: momentum * follower + (1 - momentum) * leader."""
    moving: list[Tensor] = [parameter for network in followers for parameter in network.parameters()]
    target: list[Tensor] = [parameter for network in leaders for parameter in network.parameters()]
    torch._foreach_lerp_(moving, target, 1 - momentum)


def compute_momentum(start: float, end: float, step: int, steps: int) -> float:
    """Return the momentum after `step` of `steps` steps: half a cosine from `start` to `end` (BYOL, Grill et al. 2020).

    Stays at `start` for a run of unknown length (`steps` 0), and at `end` after the last step.
    """
    progress = min(step / steps, 1.0) if steps else 0.0
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


class MomentumSchedule(nn.Module):
    """Counts the steps of a run in its state dict and computes the momentum of each (`compute_momentum`)."""

    step: Tensor

    def __init__(self, start: float, end: float, steps: int) -> None:
        super().__init__()
        if not (0 <= start <= 1 and 0 <= end <= 1):
            raise UsageError(f"a momentum runs from {start} to {end}; choose numbers from 0 to 1")
        self.start, self.end, self.steps = start, end, steps
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def advance(self) -> float:
        """Count a step and return its momentum."""
        now = read_count(self, "step")
        advance_count(self, "step")
        return compute_momentum(self.start, self.end, now, self.steps)
