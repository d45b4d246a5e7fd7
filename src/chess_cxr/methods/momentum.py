"""Networks that follow another one by an exponential moving average."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from chess_cxr.records import UsageError

Network = TypeVar("Network", bound=nn.Module)


def copy_frozen(network: Network) -> Network:
    """Copy a network for following it: no gradient ever reaches the copy."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(followers: Iterable[nn.Module], leaders: Iterable[nn.Module], momentum: float) -> None:
    """Keep the share `momentum` of every follower's parameter and take the rest from its leader, all in one call."""
    moving: list[Tensor] = [parameter for network in followers for parameter in network.parameters()]
    target: list[Tensor] = [parameter for network in leaders for parameter in network.parameters()]
    torch._foreach_lerp_(moving, target, 1 - momentum)


def compute_momentum(start: float, end: float, step: int, steps: int) -> float:
    """Return the momentum after `step` of `steps` steps: half a cosine from `start` to `end` (BYOL, Grill et al. 2020).

    It stays at `start` where the run's length is not known (`steps` 0), and at `end` beyond the last step.
    """
    progress = min(step / steps, 1.0) if steps else 0.0
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


class MomentumSchedule(nn.Module):
    """Counts the steps of a run, in its state, and gives each its momentum (`compute_momentum`)."""

    step: Tensor

    def __init__(self, start: float, end: float, steps: int) -> None:
        super().__init__()
        if not (0 <= start <= 1 and 0 <= end <= 1):
            raise UsageError(f"a momentum runs from {start} to {end}; choose numbers from 0 to 1")
        self.start, self.end, self.steps = start, end, steps
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def advance(self) -> float:
        """Count a step and return the momentum to end it with."""
        # a number on an accelerator is asked for only where it matters
        now = 0 if self.start == self.end else int(self.step)
        self.step += 1
        return compute_momentum(self.start, self.end, now, self.steps)
