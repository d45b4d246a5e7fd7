"""Fit calibration and operating points of a classifier on val films, and measure them on test films.

Shapes: M films, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from chess_cxr.evaluation.reliability import fit_platt, fit_temperature
from chess_cxr.tasks.classify.labels import LabelledRows
from chess_cxr.tasks.classify.operating import POINTS, Operating, build_uncalibrated

RULE_OF_POINT = dict(zip(POINTS, RULES, strict=True))
ENOUGH_FOR_CLASSES = 2 * LEAST_FILMS  # val films, for the one temperature of all classes


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

    return {
        point: tuple(choose(column, rule) for column in range(len(usable_L))) for point, rule in RULE_OF_POINT.items()
    }


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
    points = {str(rule): point for point, rule in RULE_OF_POINT.items()}
    rows = [
        {"label": row.pop("name"), "point": points[row["rule"]]} | clean_row(row) for row in table.to_dict("records")
    ]
    return [row for row in rows if operating.thresholds[row["point"]][chosen.names.index(row["label"])] is not None]


def clean_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a row of a table as JSON values, None for NaN and infinity."""
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
    return {name: None if isinstance(it, float) and not math.isfinite(it) else it for name, it in plain.items()}
