"""Weight decay of weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def spare_norms(given: Sequence[nn.Parameter] | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return torch's parameter groups, in which vectors and scalars have a group of their own without weight decay.

    Vectors and scalars are biases, and scales and offsets of normalisation layers: decay would pull a scale towards 0.
    given: parameters, or parameter groups whose other entries stay.
    """
    groups: Any = given if isinstance(given[0], dict) else [{"params": given}]
    spared: list[dict[str, Any]] = []
    for group in groups:
        weights = [parameter for parameter in group["params"] if parameter.ndim > 1]
        others = [parameter for parameter in group["params"] if parameter.ndim <= 1]
        spared += [group | {"params": weights}] if weights else []
        spared += [group | {"params": others, "weight_decay": 0.0}] if others else []
    return spared
