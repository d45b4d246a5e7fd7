"""Steps that are not made, and networks that do not move: what is counted, and what is put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm


class SkippedSteps:
    """How many steps of a run were not made, and why; every checkpoint holds it.

    total: a loss or a gradient was not finite.  in_a_row: of these, the ones since the last step that was made.
    overflowed: the scale of float16 was too large; it has been halved since, and nothing is wrong with the run.
    """

    def __init__(self) -> None:
        self.total = self.in_a_row = self.overflowed = 0

    def count(self, problem: str, overflowed: bool) -> None:
        """Count one step: made where there is no `problem`."""
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
        """Continue with what `state_dict` returned."""
        for name in vars(self):
            setattr(self, name, int(state[name]))


class NormStatistics:
    """Running statistics of normalisation layers, and spectral norms' vectors: what a forward pass itself changes."""

    def __init__(self, network: nn.Module) -> None:
        layers = [layer for layer in network.modules() if isinstance(layer, _NormBase | _SpectralNorm)]
        self._live = [tensor for layer in layers for tensor in layer.buffers(recurse=False)]
        self._kept = [tensor.clone() for tensor in self._live]

    def keep(self) -> None:
        """Note the statistics as they are."""
        if self._live:
            torch._foreach_copy_(self._kept, self._live)

    def put_back(self) -> None:
        """Make the statistics again what they were when they were kept."""
        if self._live:
            torch._foreach_copy_(self._live, self._kept)


@contextmanager
def keep_frozen(network: nn.Module) -> Iterator[None]:
    """Give a network no gradient, and put the running statistics of its BatchNorm back in the end.

    It goes on normalising by each batch, as it will once it thaws: heads learn on the features they are to see later,
    and a momentum copy that normalises by the batch still makes the same of a film.
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
