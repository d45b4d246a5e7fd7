"""ROC curves averaged over classes and label draws, with a band over patients and draws.

Curves are averaged at equal false-positive rates (vertical averaging, Fawcett 2006, section 8.1); tied scores are
joined by a straight line, so that the area under a curve is its AUROC.

Shape suffixes: N films, C classes or findings, R replicates, G points of a curve, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from chess_cxr.benchmarking.predictions import PredictionSet, TaskFilms
from chess_cxr.evaluation.intervals import average_draws, replicate_draws
from chess_cxr.evaluation.metrics import Statistic, check_classes, check_findings, check_scores
from chess_cxr.evaluation.ranked_scores import FloatArray, WeightArray, divide_known, mean_known

POINTS = 51
MEAN = ""


def compute_roc_curves(
    task: TaskFilms, sets: Sequence[PredictionSet], replicates: int = 200, seed: int = 0, level: float = 0.95
) -> pd.DataFrame:
    """Return the mean ROC curve of some draws for each class or finding, and of all of them (name "").

    sets: the draws of one encoder and subset.  Columns: name, false_positive_rate (0 … 1 in equal steps),
    sensitivity, low, high (pointwise, over resampled test patients and, where there are several, draws).
    A class that is never, or always, there has no rows, and counts in no mean.
    Raises UsageError where scores do not fit the films or there are none.
    """
    statistics = [build_roc_statistic(task, one.test_MC) for one in sets]
    parts = replicate_draws(task.test.patient_M, statistics, replicates, seed)
    rows = []
    for key, part in parts.items():
        name, _, place = key.rpartition("/")
        interval = average_draws(part, seed, level)
        if not np.isnan(interval.value):
            rows.append((name, int(place) / (POINTS - 1), interval.value, interval.low, interval.high))
    return pd.DataFrame(rows, columns=["name", "false_positive_rate", "sensitivity", "low", "high"])


def build_roc_statistic(task: TaskFilms, score_NC: ArrayLike) -> Statistic:
    """Return the sensitivity at each false-positive rate as a statistic: weight_RN -> {"name/point": value_R}."""
    score = check_scores(score_NC, task.class_names)
    if task.kind == "multiclass":
        label_NC = np.eye(len(task.class_names))[check_classes(task.test.label, task.class_names)]
    else:
        label_NC = check_findings(task.test.label, task.class_names)

    def statistic(weight_RN: WeightArray) -> dict[str, FloatArray]:
        curve_CRG = np.stack(
            [_compute_curves(label_NC[:, column], score[:, column], weight_RN) for column in range(score.shape[1])]
        )
        named = zip((MEAN, *task.class_names), (mean_known(curve_CRG, axis=0), *curve_CRG), strict=True)
        return {f"{name}/{point}": curve_RG[:, point] for name, curve_RG in named for point in range(POINTS)}

    return statistic


def _compute_curves(label_N: FloatArray, score_N: FloatArray, weight_RN: WeightArray) -> FloatArray:
    """Sensitivity at equal steps of the false-positive rate, for each weighting: [R, G], NaN without both labels."""
    known = np.flatnonzero(~np.isnan(label_N))
    order = known[np.argsort(-score_N[known], kind="stable")]
    last_T = _find_last_of_ties(score_N[order])
    weight_RK = np.asarray(weight_RN)[:, order]
    positive_RT = np.cumsum(weight_RK * (label_N[order] == 1.0), axis=1)[:, last_T]
    negative_RT = np.cumsum(weight_RK * (label_N[order] == 0.0), axis=1)[:, last_T]
    curve_RG = np.full((len(weight_RK), POINTS), np.nan)
    if not len(order):
        return curve_RG
    rate_G = np.linspace(0.0, 1.0, POINTS)
    sensitivity_RT = divide_known(positive_RT, positive_RT[:, -1:])
    false_RT = divide_known(negative_RT, negative_RT[:, -1:])
    for row in range(len(curve_RG)):
        if positive_RT[row, -1] > 0 and negative_RT[row, -1] > 0:
            curve_RG[row] = np.interp(rate_G, np.r_[0.0, false_RT[row]], np.r_[0.0, sensitivity_RT[row]])
    return curve_RG


def _find_last_of_ties(score_K: FloatArray) -> NDArray[np.intp]:
    """Return the place of the last film of each run of equal scores."""
    return np.flatnonzero(np.r_[score_K[1:] != score_K[:-1], len(score_K) > 0])
