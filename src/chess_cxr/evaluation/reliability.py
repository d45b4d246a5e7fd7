"""Calibration of probabilities: scaling fitted on validation films, and reliability plots.

A scaling has one slope and one offset per class on the log scale: classes get softmax(slope * log p + offset), findings
sigmoid(slope * logit p + offset).  Neither changes the order of the films of a finding; a temperature does not change
the predicted class.

Shape suffixes: M films, C classes or L findings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from chess_cxr.evaluation.calibration_error import assign_bins
from chess_cxr.evaluation.intervals import interval_of_rate
from chess_cxr.evaluation.metrics import TaskKind, check_classes, check_findings, check_probabilities, check_scores
from chess_cxr.evaluation.ranked_scores import FloatArray
from chess_cxr.evaluation.scaling import Scaling, take_logs
from chess_cxr.records import UsageError

_FLATTEST, _STEEPEST = 0.01, 20.0  # bounds of the slope: a few films can demand any slope
_FARTHEST = 30.0  # bound of the offset, on both sides


def fit_temperature(label: ArrayLike, probability_MC: ArrayLike, class_names: Sequence[str], kind: TaskKind) -> Scaling:
    """Fit one temperature for all classes on validation films (Guo et al. 2017, section 4.2).

    label: class indices [M], or findings [M, L] of 1, 0 and NaN.  Without a known label the scaling changes nothing,
    and has a note.  Raises UsageError if arrays do not fit or are not probabilities.
    """
    targets, score_MC = _prepare(label, probability_MC, class_names, kind)
    none, zero_C = np.ones(len(class_names)), np.zeros(len(class_names))
    before = _compute_loss(targets, score_MC, kind)
    if math.isnan(before):
        return Scaling(kind, none, zero_C, before, before, ("no validation film has a label: nothing was scaled",))
    edges = math.log(_FLATTEST), math.log(_STEEPEST)
    # the loss is convex in the slope, so it has a single minimum in the logarithm of the slope
    found = optimize.minimize_scalar(
        lambda log_slope: _compute_loss(targets, math.exp(log_slope) * score_MC, kind),
        bounds=edges,
        method="bounded",
        options={"xatol": 1e-6},
    )
    slope = math.exp(found.x)
    notes: tuple[str, ...] = ()
    if min(abs(found.x - edge) for edge in edges) < 1e-3:
        value = f"{1 / slope:.3g}"
        notes = (f"the temperature stands at the end of its range, {value}: too few validation films to fit it",)
    return Scaling(kind, np.full(len(none), slope), zero_C, before, float(found.fun), notes)


def fit_platt(label_ML: ArrayLike, probability_ML: ArrayLike, finding_names: Sequence[str]) -> Scaling:
    """Fit a slope and an offset for each finding on validation films (Platt 1999, with softened targets).

    Slopes are at least 0, to keep the order of the films.  A finding without both labels keeps its probabilities, with
    a note.  Raises UsageError if arrays do not fit or are not probabilities.
    """
    targets, score_ML = _prepare(label_ML, probability_ML, finding_names, "multilabel")
    slope_L, offset_L, notes = np.ones(len(finding_names)), np.zeros(len(finding_names)), []
    for j, name in enumerate(finding_names):
        known = ~np.isnan(targets[:, j])
        if len(np.unique(targets[known, j])) < 2:
            notes.append(f"{name}: validation films do not show both presence and absence; left as it is")
            continue
        slope_L[j], offset_L[j] = _fit_line(targets[known, j], score_ML[known, j])
        if slope_L[j] == 0.0:
            notes.append(f"{name}: on validation films the probability says nothing; every film gets the same one")
    before = _compute_loss(targets, score_ML, "multilabel")
    after = _compute_loss(targets, slope_L * score_ML + offset_L, "multilabel")
    return Scaling("multilabel", slope_L, offset_L, before, after, tuple(notes))


def compute_reliability(
    label: ArrayLike,
    probability_MC: ArrayLike,
    class_names: Sequence[str],
    patient_M: ArrayLike,
    kind: TaskKind,
    *,
    bins: int = 10,
    level: float = 0.95,
) -> pd.DataFrame:
    """Return the points of a reliability plot: bins of about equally many films, from low to high confidence.

    Columns: name ("predicted class" for classes, else the finding), bin, films, patients, lowest, highest, confidence
    (mean probability), rate (share that came true) and its interval low, high (`intervals.interval_of_rate`).
    """
    probability = check_probabilities(check_scores(probability_MC, class_names), sum_to_one=kind == "multiclass")
    patient = np.asarray(patient_M)
    if bins < 1 or len(patient) != len(probability):
        raise UsageError(f"{bins} bins, {len(patient)} patients and {len(probability)} films do not make a plot")
    if kind == "multiclass":
        label_M = check_classes(label, class_names)
        columns = {"predicted class": (probability.argmax(axis=1) == label_M, probability.max(axis=1))}
    else:
        label_ML = check_findings(label, class_names)
        columns = {name: (label_ML[:, j], probability[:, j]) for j, name in enumerate(class_names)}
    rows = []
    for name, (hit, confidence) in columns.items():
        known = np.flatnonzero(~np.isnan(hit))
        bin_K = assign_bins(confidence[known], bins)
        for number in np.unique(bin_K):
            films = known[bin_K == number]
            interval = interval_of_rate(hit[films], patient[films], level)
            rows.append(
                {"name": name, "bin": int(number), "films": len(films), "patients": len(np.unique(patient[films]))}
                | {"lowest": confidence[films].min(), "highest": confidence[films].max()}
                | {"confidence": confidence[films].mean()}
                | {"rate": interval.value, "low": interval.low, "high": interval.high, "level": level}
            )
    return pd.DataFrame(rows)


def _prepare(
    label: ArrayLike, probability_MC: ArrayLike, names: Sequence[str], kind: TaskKind
) -> tuple[NDArray[np.generic], FloatArray]:
    probability = check_probabilities(check_scores(probability_MC, names), sum_to_one=kind == "multiclass")
    targets = check_classes(label, names) if kind == "multiclass" else check_findings(label, names)
    if len(targets) != len(probability):
        raise UsageError(f"{len(targets)} labels but probabilities of {len(probability)} films")
    return targets, take_logs(probability, kind)


def _compute_loss(targets: NDArray[np.generic], score_MC: FloatArray, kind: TaskKind) -> float:
    """Return the mean log-loss in nats; NaN without a known label."""
    if kind == "multiclass":
        chosen_M = score_MC[np.arange(len(targets)), targets.astype(np.intp)]
        return float(np.mean(special.logsumexp(score_MC, axis=1) - chosen_M))
    known = ~np.isnan(targets)
    if not known.any():
        return math.nan
    return float(np.mean(np.logaddexp(0.0, score_MC[known]) - targets[known] * score_MC[known]))


def _fit_line(target_K: FloatArray, score_K: FloatArray) -> tuple[float, float]:
    positives, negatives = float(target_K.sum()), float(len(target_K) - target_K.sum())
    soft_K = np.where(target_K == 1.0, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def compute_loss(line: FloatArray) -> tuple[float, FloatArray]:
        score = line[0] * score_K + line[1]
        gap_K = special.expit(score) - soft_K
        loss = np.mean(np.logaddexp(0.0, score) - soft_K * score)
        return float(loss), np.array([np.mean(gap_K * score_K), np.mean(gap_K)])

    found = optimize.minimize(
        compute_loss,
        np.array([1.0, 0.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, _STEEPEST), (-_FARTHEST, _FARTHEST)],
        options={"gtol": 1e-8, "ftol": 1e-14},
    )
    return float(found.x[0]), float(found.x[1])
