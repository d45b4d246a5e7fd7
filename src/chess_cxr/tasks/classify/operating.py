"""Calibration and operating points of a classifier: what makes its probabilities, and from where on they mean yes.

Shapes: M films, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from chess_cxr.evaluation.scaling import Scaling
from chess_cxr.records import ChessError, UsageError

if TYPE_CHECKING:
    from chess_cxr.evaluation.metrics import TaskKind

POINTS = ("youden", "sensitivity_90", "specificity_90")
DEFAULT_POINT = "youden"


@dataclass(frozen=True)
class Operating:
    """What a classifier's probabilities become, and from where on they count as yes.

    slope, offset, calibrated: of each label, see `evaluation.reliability`; a label that is not calibrated keeps its
    probabilities.  thresholds: by operating point, of each label; None without one.
    notes: which labels have too few val films.
    """

    kind: TaskKind
    slope: tuple[float, ...]
    offset: tuple[float, ...]
    calibrated: tuple[bool, ...]
    thresholds: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def calibrate(self, probability_ML: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities, float32 [M, L]: the only place where a model's numbers are scaled."""
        scaling = Scaling(self.kind, np.array(self.slope), np.array(self.offset), math.nan, math.nan)
        known_L = np.array(self.calibrated)
        if not len(probability_ML) or not known_L.any():
            return probability_ML.astype(np.float32)
        return np.where(known_L, scaling.apply(probability_ML), probability_ML).astype(np.float32)


def build_uncalibrated(labels: Sequence[str], kind: TaskKind = "multilabel", notes: tuple[str, ...] = ()) -> Operating:
    """Build what leaves all probabilities as they are and knows no threshold."""
    count = len(labels)
    return Operating(kind, (1.0,) * count, (0.0,) * count, (False,) * count, notes=notes)


def describe_operating(operating: Operating) -> dict[str, Any]:
    """Return calibration and thresholds as JSON values, for a model's config.json."""
    return {
        "method": "temperature" if operating.kind == "multiclass" else "platt",
        "slope": list(operating.slope),
        "offset": list(operating.offset),
        "calibrated": list(operating.calibrated),
        "thresholds": {point: list(row) for point, row in operating.thresholds.items()},
        "notes": list(operating.notes),
    }


def parse_operating(block: object, labels: Sequence[str], kind: TaskKind) -> Operating:
    """Read what `describe_operating` wrote; a model of version 0.1 has None.  Raises ChessError for anything else."""
    if block is None:
        return build_uncalibrated(labels, kind)
    if not isinstance(block, Mapping):
        raise ChessError("the operating points of a classifier are an object")
    lines = [block.get(name) for name in ("slope", "offset", "calibrated")]
    thresholds, notes = block.get("thresholds"), block.get("notes")
    right = (
        _are_values(lines[0], labels, -100, 100)
        and _are_values(lines[1], labels, -100, 100)
        and isinstance(lines[2], list)
        and len(lines[2]) == len(labels)
        and all(type(value) is bool for value in lines[2])
        and isinstance(thresholds, Mapping)
        and set(thresholds) <= set(POINTS)
        and all(_are_values(row, labels, 0, 1, optional=True) for row in thresholds.values())
        and isinstance(notes, list)
        and all(type(note) is str for note in notes)
    )
    if not right:
        raise ChessError("the operating points of this classifier are none that exist")
    slope, offset, calibrated = (tuple(values) for values in lines)  # type: ignore[arg-type]
    rows = {point: tuple(row) for point, row in thresholds.items()}  # type: ignore[union-attr]
    return Operating(kind, slope, offset, calibrated, rows, tuple(notes))  # type: ignore[arg-type]


def _are_values(values: object, labels: Sequence[str], low: float, high: float, optional: bool = False) -> bool:
    return (
        isinstance(values, list)
        and len(values) == len(labels)
        and all(
            (optional and value is None) or (type(value) in (int, float) and low <= value <= high) for value in values
        )
    )


def check_point(point: str) -> None:
    """Raise UsageError for the name of no operating point."""
    if point not in POINTS:
        raise UsageError(f"no operating point named {point[:40]!r}; there are {', '.join(POINTS)}")
