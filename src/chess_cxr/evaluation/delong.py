"""DeLong's test of two areas under ROC curves on the same films, without resampling.

DeLong et al. (1988) assume independent films; several films of one patient make the test overconfident.  If a patient
has several films, the variance of Obuchowski (1997) for clustered data replaces DeLong's; with one film per patient
they are equal.  Midranks make both fast (Sun & Xu 2014).

Shape suffixes: N films, K sets of scores, P patients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from chess_cxr.evaluation.intervals import Interval, compute_reach
from chess_cxr.evaluation.ranked_scores import FloatArray
from chess_cxr.records import UsageError

_NO_VARIANCE = 1e-20  # a variance below this is a rounding error


@dataclass(frozen=True)
class AreaEstimate:
    """AUROCs of K sets of scores on the same films, and their covariance; `clustered`: over patients, not films.

    Areas are NaN without both classes, covariances with fewer than two units (films or patients) of either class.
    """

    auroc_K: FloatArray
    covariance_KK: FloatArray
    clustered: bool


@dataclass(frozen=True)
class AreaTest:
    """Difference of two paired AUROCs (first - second) with its interval and two-sided p-value."""

    first: float
    second: float
    value: float
    low: float
    high: float
    level: float
    p: float
    clustered: bool


def estimate_areas(positive_N: ArrayLike, score_KN: ArrayLike, patient_N: ArrayLike | None = None) -> AreaEstimate:
    """Estimate AUROCs and their covariance.

    positive_N: whether each film shows the finding (bool, or 1 and 0).  score_KN: finite, one row per set of scores.
    patient_N: the patient of each film; None for independent films.  Raises UsageError if shapes or values do not fit.
    """
    positive, score, cluster = _check(positive_N, score_KN, patient_N)
    clustered = len(np.unique(cluster)) < len(cluster)
    win_KX, win_KY = _compute_placements(score[:, positive], score[:, ~positive])
    auroc_K = win_KX.mean(axis=1) if win_KX.size and win_KY.size else np.full(len(score), math.nan)
    covariance_KK = _compute_covariance(win_KX - auroc_K[:, None], win_KY - auroc_K[:, None], positive, cluster)
    return AreaEstimate(auroc_K, covariance_KK, clustered)


def estimate_area_interval(
    positive_N: ArrayLike, score_N: ArrayLike, patient_N: ArrayLike | None = None, level: float = 0.95
) -> Interval:
    """Return the interval of one AUROC, symmetric on the logit scale, hence between 0 and 1.

    Bounds are NaN without a variance: for an area of 0 or 1, or a class with one film or patient.
    """
    found = estimate_areas(positive_N, np.asarray(score_N)[None], patient_N)
    area, variance = float(found.auroc_K[0]), float(found.covariance_KK[0, 0])
    if not (0.0 < area < 1.0 and variance > _NO_VARIANCE):
        return Interval(area, math.nan, math.nan, level)
    half = compute_reach(level) * math.sqrt(variance) / (area * (1 - area))
    logit = math.log(area / (1 - area))
    return Interval(area, 1 / (1 + math.exp(half - logit)), 1 / (1 + math.exp(-half - logit)), level)


def compare_areas(
    positive_N: ArrayLike,
    first_N: ArrayLike,
    second_N: ArrayLike,
    patient_N: ArrayLike | None = None,
    level: float = 0.95,
) -> AreaTest:
    """Test whether two sets of scores for the same films have the same AUROC.

    Arguments as in `estimate_areas`.  If both sets rank all pairs alike, p = 1.  p and the interval are NaN if the
    areas differ without variance, or if a class has fewer than two patients.
    """
    found = estimate_areas(positive_N, np.stack([np.asarray(first_N), np.asarray(second_N)]), patient_N)
    first, second = (float(area) for area in found.auroc_K)
    contrast = np.array([1.0, -1.0])
    variance = float(contrast @ found.covariance_KK @ contrast)
    gap, half, p = first - second, math.nan, math.nan
    if variance > _NO_VARIANCE:
        half = compute_reach(level) * math.sqrt(variance)
        p = float(2 * stats.norm.sf(abs(gap) / math.sqrt(variance)))
    elif not math.isnan(variance) and abs(gap) < 1e-12:
        half, p = 0.0, 1.0
    return AreaTest(first, second, gap, gap - half, gap + half, level, p, found.clustered)


def _compute_placements(score_KX: FloatArray, score_KY: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the share of negatives below each positive [K, X], and of positives above each negative [K, Y]."""
    here, there = score_KX.shape[1], score_KY.shape[1]
    if not here or not there:
        return np.full(score_KX.shape, math.nan), np.full(score_KY.shape, math.nan)
    rank_KN = stats.rankdata(np.concatenate([score_KX, score_KY], axis=1), axis=1)
    win_KX = (rank_KN[:, :here] - stats.rankdata(score_KX, axis=1)) / there
    win_KY = 1.0 - (rank_KN[:, here:] - stats.rankdata(score_KY, axis=1)) / here
    return win_KX, win_KY


def _compute_covariance(
    gap_KX: FloatArray, gap_KY: FloatArray, positive_N: NDArray[np.bool_], cluster_N: NDArray[np.intp]
) -> FloatArray:
    """Sum placements over each patient, within and between the classes (Obuchowski 1997, section 3)."""
    clusters = int(cluster_N.max()) + 1 if len(cluster_N) else 0
    here, there = cluster_N[positive_N], cluster_N[~positive_N]
    here_units, there_units = len(np.unique(here)), len(np.unique(there))
    if here_units < 2 or there_units < 2:
        return np.full((len(gap_KX), len(gap_KX)), math.nan)
    sum_KP = np.stack([np.bincount(here, gap, clusters) for gap in gap_KX]) / len(here)
    rest_KP = np.stack([np.bincount(there, gap, clusters) for gap in gap_KY]) / len(there)
    within_KK = (
        here_units / (here_units - 1) * sum_KP @ sum_KP.T + there_units / (there_units - 1) * rest_KP @ rest_KP.T
    )
    between_KK = clusters / (clusters - 1) * sum_KP @ rest_KP.T
    return within_KK + between_KK + between_KK.T


def _check(
    positive_N: ArrayLike, score_KN: ArrayLike, patient_N: ArrayLike | None
) -> tuple[NDArray[np.bool_], FloatArray, NDArray[np.intp]]:
    positive, score = np.asarray(positive_N, dtype=np.float64), np.asarray(score_KN, dtype=np.float64)
    if positive.ndim != 1 or score.ndim != 2 or score.shape[1] != len(positive):
        raise UsageError(f"labels of shape {positive.shape} do not fit scores of shape {score.shape}")
    if not np.all((positive == 0.0) | (positive == 1.0)):
        raise UsageError("areas need labels of 1 (present) and 0 (absent): leave films of unknown label out")
    if not np.all(np.isfinite(score)):
        raise UsageError("scores hold NaN or infinity: the model that made them has diverged")
    patient = np.arange(len(positive)) if patient_N is None else np.asarray(patient_N)
    if patient.shape != positive.shape:
        raise UsageError(f"{len(patient)} patients do not fit {len(positive)} films")
    return positive == 1.0, score, np.unique(patient, return_inverse=True)[1]
