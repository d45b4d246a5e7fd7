"""Calibration and operating points of a classifier: fitted on val films, measured on test films.

Shapes: M films, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chess_cxr.evaluation.metrics import TaskKind
from chess_cxr.evaluation.operating_points import (
    LEAST_FILMS,
    RULES,
    ThresholdRule,
    choose_threshold,
    compute_operating_points,
)
from chess_cxr.evaluation.reliability import Scaling, fit_platt, fit_temperature
from chess_cxr.records import ChessError, UsageError
from chess_cxr.tasks.classify.labels import LabelledRows

POINTS = dict(zip(("youden", "sensitivity_90", "specificity_90"), RULES, strict=True))
DEFAULT_POINT = "youden"
ENOUGH_FOR_CLASSES = 2 * LEAST_FILMS  # val films, for the one temperature of all classes


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


def fit_operating(chosen: LabelledRows, score_ML: np.ndarray) -> Operating:
    """Fit temperature (classes, order) or Platt scaling (findings), and thresholds, to the probabilities of val films.

    A finding is scaled if at least `LEAST_FILMS` val films have it and as many do not; classes share one temperature if
    there are `ENOUGH_FOR_CLASSES` val films.  A label has thresholds if it is calibrated, and that many films with and
    without it.
    """
    val, names, kind = chosen.split == "val", chosen.names, chosen.kind
    if not val.any():
        told = f"probabilities are not calibrated, and there is no threshold: no val film ({_tell_enough(kind)})"
        return build_uncalibrated(names, kind, (told,))
    label_ML = chosen.label_NL[val]
    with_L, without_L = (label_ML == 1).sum(0), (label_ML == 0).sum(0)
    enough_L = np.minimum(with_L, without_L) >= LEAST_FILMS
    if kind == "multiclass":
        scaling = fit_temperature(chosen.label[val], score_ML, names, kind)
        calibrated_L = np.full(len(names), len(label_ML) >= ENOUGH_FOR_CLASSES)
    else:
        scaling, calibrated_L = fit_platt(label_ML, score_ML, names), enough_L
    slope_L, offset_L = np.where(calibrated_L, scaling.slope_C, 1.0), np.where(calibrated_L, scaling.offset_C, 0.0)
    scaled = Operating(kind, _to_tuple(slope_L), _to_tuple(offset_L), _to_tuple(calibrated_L))
    usable_L = calibrated_L & enough_L
    few = [
        f"{name} ({present} with and {absent} without it)"
        for name, present, absent, usable in zip(names, with_L, without_L, usable_L, strict=True)
        if not usable
    ]
    left = tuple(f"{name}: " for name, known in zip(names, calibrated_L, strict=True) if not known)
    return replace(
        scaled,
        thresholds=_choose_thresholds(label_ML, scaled.calibrate(score_ML), usable_L),
        notes=(
            *((_tell_few(few, len(label_ML), bool(calibrated_L.any()), kind),) if few else ()),
            *(note for note in scaling.notes if calibrated_L.any() and not note.startswith(left)),
        ),
    )


def _to_tuple(value_L: np.ndarray) -> tuple[Any, ...]:
    return tuple(value_L.tolist())


def _choose_thresholds(
    label_ML: np.ndarray, score_ML: np.ndarray, usable_L: np.ndarray
) -> dict[str, tuple[float | None, ...]]:
    def choose(column: int, rule: ThresholdRule) -> float | None:
        known = ~np.isnan(label_ML[:, column])
        threshold = choose_threshold(label_ML[known, column], score_ML[known, column], rule)
        return threshold if usable_L[column] and math.isfinite(threshold) else None

    return {point: tuple(choose(column, rule) for column in range(len(usable_L))) for point, rule in POINTS.items()}


def _tell_enough(kind: TaskKind) -> str:
    each = f"{LEAST_FILMS} val films with and {LEAST_FILMS} without a label are enough"
    return f"{each}, of {ENOUGH_FOR_CLASSES} in all" if kind == "multiclass" else each


def _tell_few(few: Sequence[str], films: int, calibrated: bool, kind: TaskKind) -> str:
    what = "no threshold" if kind == "multiclass" and calibrated else "not calibrated, no threshold"
    return f"{what}: {', '.join(few)} among {films} val films; {_tell_enough(kind)}"


def measure_operating(
    operating: Operating, chosen: LabelledRows, scores: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Return a row for each label with thresholds and each operating point: what it gives on val and on test films.

    scores: uncalibrated probabilities [M, L] by split.  Intervals are by patient, see `evaluation.operating_points`.
    """
    if not any(threshold is not None for row in operating.thresholds.values() for threshold in row):
        return []
    val, test = chosen.split == "val", chosen.split == "test"
    table = compute_operating_points(
        chosen.label[val], operating.calibrate(scores["val"]), chosen.label[test],
        operating.calibrate(scores["test"]), chosen.patient[test], chosen.names, chosen.kind,
    )  # fmt: skip
    points = {str(rule): point for point, rule in POINTS.items()}
    rows = [
        {"label": row.pop("name"), "point": points[row["rule"]]} | clean_row(row) for row in table.to_dict("records")
    ]
    return [row for row in rows if operating.thresholds[row["point"]][chosen.names.index(row["label"])] is not None]


def clean_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a row of a table as JSON values, None for NaN and infinity."""
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
    return {name: None if isinstance(it, float) and not math.isfinite(it) else it for name, it in plain.items()}


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
