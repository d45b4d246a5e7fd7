"""Compute losses in float32 even under autocast: a similarity in bfloat16 has only three digits."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that disables autocast."""
    # meta tensors, used to count a step's work, have no autocast
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def normalise(embedded_BD: Tensor) -> Tensor:
    """Scale each row to length 1, in float32."""
    return F.normalize(embedded_BD.float(), dim=1)
