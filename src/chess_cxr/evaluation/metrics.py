"""Classification metrics that take film weights, so that a thousand bootstrap replicates are one call.

Shape suffixes: N films, C classes, L findings, R replicates.  A bootstrap replicate is a row of `weight_RN`: how often
each film was drawn.  A statistic is a function from such rows to one value per replicate and metric (`Statistic`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chess_cxr.records import UsageError

FloatArray = NDArray[np.float64]
Statistic = Callable[[FloatArray], dict[str, FloatArray]]


def compute_multiclass(label_N: ArrayLike, score_NC: ArrayLike, class_names: Sequence[str]) -> dict[str, float]:
    """Compute accuracy, balanced_accuracy, macro_f1, auroc and auroc/<class> of one film, one class.

    label_N: class indices 0..C-1.  score_NC: finite, higher means more likely; the largest is the prediction (the first
    of equals).  auroc is the mean of the one-against-rest areas.  A class with no film, or with every film, has no area
    (NaN); a class with no film has no recall, and one neither present nor predicted has no F1: means are over the rest.
    Raises UsageError where shapes, labels or scores do not fit.
    """
    return _evaluate_once(build_multiclass_statistic(label_N, score_NC, class_names), len(np.asarray(label_N)))


def compute_multilabel(label_NL: ArrayLike, score_NL: ArrayLike, finding_names: Sequence[str]) -> dict[str, float]:
    """Compute auroc, auprc (means) and auroc/<finding>, auprc/<finding> of films with several findings each.

    label_NL: 1 present, 0 absent, NaN unknown (the film does not count for that finding).  score_NL: finite, higher
    means more likely.  auprc is average precision (no interpolation).  A finding without both classes is NaN, and the
    means are over the rest.  Raises UsageError where shapes, labels or scores do not fit.
    """
    return _evaluate_once(build_multilabel_statistic(label_NL, score_NL, finding_names), len(np.asarray(label_NL)))


def build_multiclass_statistic(label_N: ArrayLike, score_NC: ArrayLike, class_names: Sequence[str]) -> Statistic:
    """Return the statistic behind `compute_multiclass`, for the bootstrap: weight_RN -> {metric: value_R}."""
    score = _check_scores(score_NC, class_names)
    label = check_classes(label_N, class_names)
    if len(label) != len(score):
        raise UsageError(f"{len(label)} labels but scores for {len(score)} films")
    class_count = len(class_names)
    cell_NK = np.eye(class_count * class_count)[label * class_count + score.argmax(axis=1)]
    curves = [RankedScores(label == c, score[:, c]) for c in range(class_count)]

    def statistic(weight_RN: FloatArray) -> dict[str, FloatArray]:
        confusion_RCC = (weight_RN @ cell_NK).reshape(-1, class_count, class_count)
        hit_RC = np.diagonal(confusion_RCC, axis1=1, axis2=2)
        true_RC, predicted_RC = confusion_RCC.sum(axis=2), confusion_RCC.sum(axis=1)
        auroc_CR = np.stack([curve.auroc(weight_RN) for curve in curves])
        return {
            "accuracy": _divide(hit_RC.sum(axis=1), weight_RN.sum(axis=1)),
            "balanced_accuracy": mean_known(_divide(hit_RC, true_RC), axis=1),
            "macro_f1": mean_known(_divide(2.0 * hit_RC, true_RC + predicted_RC), axis=1),
            "auroc": mean_known(auroc_CR, axis=0),
            **{f"auroc/{name}": auroc_CR[c] for c, name in enumerate(class_names)},
        }

    return statistic


def build_multilabel_statistic(label_NL: ArrayLike, score_NL: ArrayLike, finding_names: Sequence[str]) -> Statistic:
    """Return the statistic behind `compute_multilabel`, for the bootstrap: weight_RN -> {metric: value_R}."""
    score = _check_scores(score_NL, finding_names)
    label = check_findings(label_NL, finding_names)
    if label.shape != score.shape:
        raise UsageError(f"labels of shape {label.shape} but scores of shape {score.shape}")
    known = [np.flatnonzero(~np.isnan(column)) for column in label.T]
    curves = [RankedScores(label[rows, j] == 1.0, score[rows, j]) for j, rows in enumerate(known)]

    def statistic(weight_RN: FloatArray) -> dict[str, FloatArray]:
        weights = [weight_RN if len(rows) == len(label) else weight_RN[:, rows] for rows in known]
        values = {
            "auroc": np.stack([curve.auroc(weight) for curve, weight in zip(curves, weights, strict=True)]),
            "auprc": np.stack([curve.auprc(weight) for curve, weight in zip(curves, weights, strict=True)]),
        }
        means = {metric: mean_known(value_LR, axis=0) for metric, value_LR in values.items()}
        return means | {
            f"{metric}/{name}": value_LR[j]
            for metric, value_LR in values.items()
            for j, name in enumerate(finding_names)
        }

    return statistic


class RankedScores:
    """Films of one class against the rest, sorted by score once; areas for any number of weightings of them.

    positive_N: bool.  score_N: finite.  Both areas are NaN for weightings that leave one side empty.
    """

    def __init__(self, positive_N: NDArray[np.bool_], score_N: FloatArray) -> None:
        self._order = np.argsort(score_N, kind="stable")
        ranked_N = score_N[self._order]
        self._first = np.flatnonzero(np.r_[True, ranked_N[1:] != ranked_N[:-1]][: len(ranked_N)])
        self._positive = positive_N[self._order].astype(np.float64)

    def auroc(self, weight_RN: FloatArray) -> FloatArray:
        """Chance that a film of the class scores above one of the rest, ties counted half (Mann-Whitney)."""
        present_RG, absent_RG = self._tally(weight_RN)
        below_RG = np.cumsum(absent_RG, axis=1) - 0.5 * absent_RG
        wins_R = np.einsum("rg,rg->r", present_RG, below_RG)
        return _divide(wins_R, present_RG.sum(axis=1) * absent_RG.sum(axis=1))

    def auprc(self, weight_RN: FloatArray) -> FloatArray:
        """Average precision: precision at each distinct threshold, weighted by the recall gained there."""
        present_RG, absent_RG = (tally[:, ::-1] for tally in self._tally(weight_RN))
        found_RG = np.cumsum(present_RG, axis=1)
        flagged_RG = found_RG + np.cumsum(absent_RG, axis=1)
        precision_RG = np.divide(found_RG, flagged_RG, out=np.zeros_like(found_RG), where=flagged_RG > 0)
        total_R = present_RG.sum(axis=1)
        area_R = _divide(np.einsum("rg,rg->r", present_RG, precision_RG), total_R)
        return np.where(absent_RG.sum(axis=1) > 0, area_R, np.nan)

    def _tally(self, weight_RN: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Weight of the class and of the rest at each distinct score, lowest first: two arrays [R, G]."""
        ranked_RN = weight_RN[:, self._order]
        present_RN = ranked_RN * self._positive
        absent_RN = ranked_RN - present_RN
        if len(self._first) == len(self._order):
            return present_RN, absent_RN
        return np.add.reduceat(present_RN, self._first, axis=1), np.add.reduceat(absent_RN, self._first, axis=1)


def check_classes(label_N: ArrayLike, class_names: Sequence[str]) -> NDArray[np.intp]:
    """Return class indices as integers, or raise UsageError: NaN and values outside 0..C-1 have no class."""
    label = np.asarray(label_N)
    if label.ndim != 1 or label.dtype.kind not in "iufb":
        raise UsageError(f"multi-class labels must be one class index a film, not {label.dtype} of shape {label.shape}")
    if not np.all(np.isfinite(label)):
        raise UsageError("multi-class labels hold NaN: leave films of unknown class out")
    if np.any(label != np.floor(label)) or np.any(label < 0) or np.any(label >= len(class_names)):
        raise UsageError(f"multi-class labels must be whole numbers from 0 to {len(class_names) - 1}, one a class name")
    return label.astype(np.intp)


def check_findings(label_NL: ArrayLike, finding_names: Sequence[str]) -> FloatArray:
    """Return findings as float64 of 1, 0 and NaN, or raise UsageError."""
    label = np.asarray(label_NL, dtype=np.float64)
    if label.ndim != 2 or label.shape[1] != len(finding_names):
        raise UsageError(f"multi-label labels of shape {label.shape} do not fit {len(finding_names)} finding names")
    if not np.all(np.isnan(label) | (label == 0.0) | (label == 1.0)):
        raise UsageError("multi-label labels must be 1 (present), 0 (absent) or NaN (unknown)")
    return label


def mean_known(value: FloatArray, axis: int) -> FloatArray:
    """Mean over `axis` of what is not NaN; NaN where nothing is known, without a warning."""
    known = ~np.isnan(value)
    return _divide(np.where(known, value, 0.0).sum(axis=axis), known.sum(axis=axis))


def _evaluate_once(statistic: Statistic, film_count: int) -> dict[str, float]:
    return {metric: float(value_R[0]) for metric, value_R in statistic(np.ones((1, film_count))).items()}


def _check_scores(score_NC: ArrayLike, names: Sequence[str]) -> FloatArray:
    score = np.asarray(score_NC, dtype=np.float64)
    if score.ndim != 2 or score.shape[1] != len(names):
        raise UsageError(f"scores of shape {score.shape} do not fit {len(names)} names: one column a name")
    if len(score) == 0:
        raise UsageError("there are no films to score")
    if not np.all(np.isfinite(score)):
        raise UsageError("scores hold NaN or infinity: the model that made them has diverged")
    if len(set(names)) != len(names):
        raise UsageError("two classes or findings have the same name")
    return score


def _divide(numerator: NDArray[np.float64], denominator: NDArray[np.generic]) -> FloatArray:
    bottom = np.asarray(denominator, dtype=np.float64)
    ratio: FloatArray = np.divide(numerator, bottom, out=np.full(np.shape(numerator), math.nan), where=bottom > 0)
    return ratio
