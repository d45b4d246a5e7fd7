"""Results of a model on its test films, which tasks share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chess_cxr.evaluation.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Metrics of a model on its test films, with 95 % intervals by patient.

    A task adds its own fields, describes them in `describe_basis`, and may override the other lines.

    encoder: name of the encoder that the training began with.  seed: of the training and of the bootstrap.
    """

    metrics: Mapping[str, Interval]
    encoder: str
    seed: int

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON values; a number that does not exist is None."""
        described: dict[str, Any] = blank_unknown(asdict(self))
        return described

    def as_text(self) -> str:
        """Return a line for each metric, one for the films, and notes."""
        films = f"({self.describe_basis()}; 95 % bootstrap by patient, seed {self.seed})"
        return "\n".join([*self.list_metrics(), films, *self.list_notes()])

    def list_metrics(self) -> list[str]:
        """Return a line for each metric."""
        return [f"{name:26s} {m.value:.3f} [{m.low:.3f}, {m.high:.3f}]" for name, m in self.metrics.items()]

    def describe_basis(self) -> str:
        """Describe the films of the test and of the training."""
        raise NotImplementedError

    def list_notes(self) -> Sequence[str]:
        """Return what a reader of the numbers should know, a line each."""
        return ()


def list_kinds(kinds: Sequence[str]) -> str:
    """List kinds of films, and say if some of them are synthetic."""
    return ", ".join(kinds) + (" (SYNTHETIC)" if {"phantom", "ct"} & set(kinds) else "")


def blank_unknown(value: Any) -> Any:
    """Return JSON values in which NaN and infinity are None."""
    if isinstance(value, dict):
        return {name: blank_unknown(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [blank_unknown(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
