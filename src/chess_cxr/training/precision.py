"""Mixed precision: in which numbers a loss is computed, and how its gradients survive float16."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.amp import GradScaler

Precision = Literal["float32", "bfloat16", "float16"]
_KINDS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def compute_losses(
    losses: Iterable[tuple[str, Tensor]], precision: Precision, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Yield what `losses` yields, each computed under autocast; what the caller does between two is not.

    Weights, gradients, optimiser and everything else that is kept stay float32.  With float32 nothing is changed.
    """
    pairs = iter(losses)
    while True:
        with torch.autocast(device.type, _KINDS[precision]) if precision != "float32" else nullcontext():
            pair = next(pairs, None)
        if pair is None:
            return
        yield pair


class LossScaling:
    """A `GradScaler` for each named loss in float16, nothing in other precisions.

    float16 ends at 65,504 and has little below 6e-5: losses are scaled up before their gradients are computed, as far
    as no gradient overflows (Micikevicius et al. 2018, "Mixed precision training").
    """

    def __init__(self, names: Iterable[str], precision: Precision, device: torch.device) -> None:
        self._scalers = {name: GradScaler(device.type) for name in names} if precision == "float16" else {}

    def scale(self, name: str, loss: Tensor) -> Tensor:
        """Return the loss whose gradients are to be computed."""
        scaled: Tensor = self._scalers[name].scale(loss) if name in self._scalers else loss
        return scaled

    def unscale(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Turn the gradients that an optimiser will see into those of the loss itself."""
        if name in self._scalers:
            self._scalers[name].unscale_(optimizer)

    def may_overflow(self, name: str) -> bool:
        """Return whether a gradient that is not finite may be the scale's fault: only a scale above 1 adds to it."""
        return name in self._scalers and self._scalers[name].get_scale() > 1

    def update(self, name: str) -> None:
        """Halve the scale after an overflow, double it after many steps without one."""
        if name in self._scalers:
            self._scalers[name].update()

    def state_dict(self) -> dict[str, Tensor]:
        """Return each loss's scale and the steps since it last changed."""
        state: dict[str, Tensor] = {}
        for name, scaler in self._scalers.items():
            values = scaler.state_dict()
            state[f"{name}.scale"] = torch.tensor(values["scale"], dtype=torch.float64)
            state[f"{name}.growth"] = torch.tensor(values["_growth_tracker"])
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue with what `state_dict` returned."""
        for name, scaler in self._scalers.items():
            values: dict[str, Any] = {
                "scale": float(state[f"{name}.scale"]),
                "_growth_tracker": int(state[f"{name}.growth"]),
            }
            scaler.load_state_dict(scaler.state_dict() | values)
