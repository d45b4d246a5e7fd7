"""Skipped steps and frozen networks: count the one, restore the running statistics of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm


class SkippedSteps:
    """Counts of a run's skipped steps, saved in every checkpoint.

    total: steps with a non-finite loss or gradient.  in_a_row: such steps since the last completed step.
    overflowed: steps with too large a float16 scale, which is then halved; harmless.
    """

    def __init__(self) -> None:
        self.total = self.in_a_row = self.overflowed = 0

    def count(self, problem: str, overflowed: bool) -> None:
        """Count one step; it was completed if `problem` is ""."""
        if overflowed:
            self.overflowed += 1
        elif problem:
            self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        else:
            self.in_a_row = 0

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts as tensors."""
        return {name: torch.tensor(count) for name, count in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned."""
        for name in vars(self):
            setattr(self, name, int(state[name]))


class NormStatistics:
    """Buffers that a forward pass changes: running statistics of normalisation layers, vectors of spectral norms."""

    def __init__(self, network: nn.Module) -> None:
        layers = [layer for layer in network.modules() if isinstance(layer, _NormBase | _SpectralNorm)]
        self._live = [tensor for layer in layers for tensor in layer.buffers(recurse=False)]
        self._kept = [tensor.clone() for tensor in self._live]

    def keep(self) -> None:
        """Save the current buffers."""
        if self._live:
            torch._foreach_copy_(self._kept, self._live)

    def put_back(self) -> None:
        """Restore the saved buffers."""
        if self._live:
            torch._foreach_copy_(self._live, self._kept)


@contextmanager
def keep_frozen(network: nn.Module) -> Iterator[None]:
    """Freeze a network: no gradient, and running statistics restored at the end.

    BatchNorm still normalises by the batch, as it will after unfreezing: so the heads learn on the features that they
    will see later, and a momentum copy in training mode gives the same features.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    statistics = NormStatistics(network)
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        statistics.put_back()
        for parameter in trained:
            parameter.requires_grad_(True)
