"""Pointwise convolutions of maps of one pixel, which networks make of small views in their last stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class _AsLinearLayers(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and not kwargs:
            map_BC11, weight, bias, _, padding, _, groups = args
            if map_BC11.shape[2:] == weight.shape[2:] == (1, 1) and groups == 1 and tuple(padding) == (0, 0):
                return F.linear(map_BC11.flatten(1), weight.flatten(1), bias)[..., None, None]
        return func(*args, **(kwargs or {}))


def compute_pointwise_as_linear(device: torch.device) -> AbstractContextManager[object]:
    """Compute pointwise convolutions of maps of one pixel as linear layers, on CPUs.

    oneDNN multiplies such maps by the weights one film at a time, which takes more than twice as long.
    """
    return _AsLinearLayers() if device.type == "cpu" else nullcontext()
