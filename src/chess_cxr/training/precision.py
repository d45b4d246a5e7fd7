"""Mixed precision: autocast for losses, and loss scaling for float16 gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.amp import GradScaler

Precision = Literal["float32", "bfloat16", "float16"]
_KINDS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def compute_losses(
    losses: Iterable[tuple[str, Tensor]], precision: Precision, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Yield each loss, computed under autocast; the caller's code between two losses runs without it.

    Weights, gradients and optimiser state remain float32.  With float32 this changes nothing.
    """
    pairs = iter(losses)
    while True:
        with torch.autocast(device.type, _KINDS[precision]) if precision != "float32" else nullcontext():
            pair = next(pairs, None)
        if pair is None:
            return
        yield pair


class LossScaling:
    """A `GradScaler` for each named loss in float16; does nothing in other precisions.

    float16 ends at 65,504 and loses precision below 6e-5: losses are scaled up before the backward pass, as far as no
    gradient overflows (Micikevicius et al. 2018, "Mixed precision training").
    """

    def __init__(self, names: Iterable[str], precision: Precision, device: torch.device) -> None:
        self._scalers = {name: GradScaler(device.type) for name in names} if precision == "float16" else {}
        self._device = device

    def scale(self, name: str, loss: Tensor) -> Tensor:
        """Return the scaled loss, for the backward pass."""
        scaled: Tensor = self._scalers[name].scale(loss) if name in self._scalers else loss
        return scaled

    def unscale(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients of an optimiser's parameters by the scale."""
        if name in self._scalers:
            self._scalers[name].unscale_(optimizer)

    def may_overflow(self, name: str) -> Tensor | None:
        """Return whether the scale may have caused a non-finite gradient: it can if it is above 1."""
        return self.scale(name, torch.ones((), device=self._device)) > 1 if name in self._scalers else None

    def list_tensors(self, name: str) -> list[Tensor]:
        """List what `update` changes."""
        scaler = self._scalers.get(name)
        return [tensor for tensor in (scaler._scale, scaler._growth_tracker) if tensor is not None] if scaler else []

    def update(self, name: str) -> None:
        """Halve the scale after an overflow, double it after many steps without one."""
        if name in self._scalers:
            self._scalers[name].update()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the scale of each loss and the number of steps since it last changed."""
        state: dict[str, Tensor] = {}
        for name, scaler in self._scalers.items():
            values = scaler.state_dict()
            state[f"{name}.scale"] = torch.tensor(values["scale"], dtype=torch.float64)
            state[f"{name}.growth"] = torch.tensor(values["_growth_tracker"])
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned."""
        for name, scaler in self._scalers.items():
            values = {"scale": float(state[f"{name}.scale"]), "_growth_tracker": int(state[f"{name}.growth"])}
            scaler.load_state_dict(scaler.state_dict() | values)
