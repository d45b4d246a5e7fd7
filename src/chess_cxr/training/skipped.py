"""Skipped steps and frozen networks: count the one, restore the running statistics of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm

_COUNTS = ("total", "in_a_row", "overflowed")


class Verdict:
    """Whether a step is finite so far, on its device: `fine` is a boolean scalar.

    problem: number of the first non-finite value, -1 for none.  value: that value.
    overflowed: whether too large a float16 scale may be the cause.
    """

    def __init__(self, fine: Tensor) -> None:
        self.fine = self._begun = fine
        self.problem = torch.full((), -1, device=fine.device)
        self.value = torch.zeros((), device=fine.device)
        self.overflowed = torch.zeros_like(fine)

    def judge(self, number: int, value: Tensor, may_overflow: Tensor | None = None) -> None:
        """Judge value `number` of the step: 2 i is loss i, and 2 i + 1 the norm of its gradient."""
        finite = torch.isfinite(value)
        first = self.fine & ~finite
        self.problem = torch.where(first, number, self.problem)
        self.value = torch.where(first, value, self.value)
        if may_overflow is not None:
            self.overflowed = self.overflowed | (first & may_overflow)
        self.fine = self.fine & finite

    def is_skipped(self) -> Tensor:
        """Return whether the step is to be counted as skipped."""
        return self._begun & ~self.fine & ~self.overflowed


def explain_problem(problem: float, value: float, names: Sequence[str]) -> str:
    """Say why a step was skipped, "" if it was not, from the numbers of its verdict and the names of all losses."""
    if problem < 0:
        return ""
    thing = f"gradient of the {names[int(problem) // 2]} loss" if problem % 2 else f"{names[int(problem) // 2]} loss"
    return f"the {thing} became {value}"


class SkippedSteps:
    """Counts of a run's skipped steps, saved in every checkpoint; they are on its device.

    total: steps with a non-finite loss or gradient.  in_a_row: such steps since the last completed step.
    overflowed: steps with too large a float16 scale, which is then halved; harmless.
    newest: step, problem and value of the newest skipped step since the run was begun or continued; step 0 for none.
    """

    def __init__(self, device: torch.device) -> None:
        self.total, self.in_a_row, self.overflowed = (torch.zeros((), dtype=torch.int64, device=device) for _ in "tio")
        self.newest = tuple(torch.zeros((), device=device, dtype=kind) for kind in (torch.int64, torch.int64, None))

    def begin(self, most: int) -> Verdict:
        """Return the verdict of a new step, which is fine so far; after `most` skipped steps in a row it is not."""
        return Verdict(self.in_a_row < most)

    def count(self, verdict: Verdict, step: int) -> None:
        """Count one step."""
        skipped = verdict.is_skipped()
        self.total = self.total + skipped
        self.overflowed = self.overflowed + verdict.overflowed
        self.in_a_row = torch.where(verdict.fine, 0, self.in_a_row + skipped)
        found = (torch.full_like(self.total, step), verdict.problem, verdict.value)
        self.newest = tuple(torch.where(skipped, new, old) for new, old in zip(found, self.newest, strict=True))

    def list_numbers(self) -> dict[str, Tensor]:
        """Return all numbers by name."""
        return self.state_dict() | dict(
            zip(("newest_step", "newest_problem", "newest_value"), self.newest, strict=True)
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts as tensors."""
        return {name: getattr(self, name) for name in _COUNTS}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned."""
        for name in _COUNTS:
            setattr(self, name, state[name].to(self.total.device))


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

    def put_back(self, fine: Tensor | None = None) -> None:
        """Restore the saved buffers; unless `fine` is true."""
        if fine is not None:
            for live, kept in zip(self._live, self._kept, strict=True):
                torch.where(fine, live, kept, out=live)
        elif self._live:
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
