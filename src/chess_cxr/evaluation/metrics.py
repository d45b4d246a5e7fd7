"""Classification metrics of weighted films, so that a thousand bootstrap replicates are one call.

Shape suffixes: N films, C classes, L findings, R replicates.  A row of `weight_RN` is a bootstrap replicate: how often
each film was drawn.  A `Statistic` maps such rows to one value per replicate and metric; it is fastest if weight_RN.T
is contiguous float32, as `intervals` makes it.

A metric of one class against the rest has the class after a slash ("auroc/Edema"); without a slash it is the mean over
the classes or findings that have a value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chess_cxr.evaluation.calibration_error import CalibrationError
from chess_cxr.evaluation.ranked_scores import (
    FloatArray,
    RankedScores,
    ScoreTally,
    WeightArray,
    build_indicator,
    divide_known,
    mean_known,
    weigh,
)
from chess_cxr.records import UsageError

Statistic = Callable[[WeightArray], dict[str, FloatArray]]
TaskKind = Literal["multiclass", "multilabel"]

LEVELS = (0.8, 0.9, 0.95)  # specificities at which to compute the sensitivity, and vice versa


def compute_multiclass(
    label_N: ArrayLike, score_NC: ArrayLike, class_names: Sequence[str], **options: bool
) -> dict[str, float]:
    """Compute the metrics of films with one class each; arguments as in `build_multiclass_statistic`."""
    statistic = build_multiclass_statistic(label_N, score_NC, class_names, **options)
    return evaluate_once(statistic, len(np.asarray(label_N)))


def compute_multilabel(
    label_NL: ArrayLike, score_NL: ArrayLike, finding_names: Sequence[str], **options: bool
) -> dict[str, float]:
    """Compute the metrics of films with several findings each; arguments as in `build_multilabel_statistic`."""
    statistic = build_multilabel_statistic(label_NL, score_NL, finding_names, **options)
    return evaluate_once(statistic, len(np.asarray(label_NL)))


def evaluate_once(statistic: Statistic, film_count: int) -> dict[str, float]:
    """Evaluate a statistic on all films, each once."""
    return {metric: float(value_R[0]) for metric, value_R in statistic(np.ones((1, film_count))).items()}


def build_multiclass_statistic(
    label_N: ArrayLike,
    score_NC: ArrayLike,
    class_names: Sequence[str],
    *,
    operating_points: bool = False,
    probabilities: bool = False,
) -> Statistic:
    """Build the statistic of films with one class each: weight_RN -> {metric: value_R}.

    label_N: class indices 0..C-1.  score_NC: finite, higher means more likely; the prediction is the largest (the first
    of equals).
    Metrics: accuracy, balanced_accuracy, macro_f1, and auroc and auprc of each class against the rest.  Means leave out
    classes without a value: an area needs films with and without the class, a recall films of the class, and F1 films
    or predictions of the class.
    operating_points: add sensitivity_at_specificity_0.9 and specificity_at_sensitivity_0.9 of each class, and those of
    the other `LEVELS`, with thresholds chosen on these same films; `evaluation.operating_points` evaluates thresholds
    chosen on other films.
    probabilities: score_NC are probabilities whose rows sum to 1; add brier (squared error summed over the classes,
    0..2; Brier 1950) and ece (of the predicted class; biased upwards for few films).
    Raises UsageError if shapes, labels or scores do not fit.
    """
    score = check_scores(score_NC, class_names)
    label = check_classes(label_N, class_names)
    if len(label) != len(score):
        raise UsageError(f"{len(label)} labels but scores for {len(score)} films")
    confusion = Confusion(label, score)
    curves = [RankedScores(label == c, score[:, c]) for c in range(len(class_names))]
    error = _build_class_error(label, check_probabilities(score, sum_to_one=True)) if probabilities else None

    def statistic(weight_RN: WeightArray) -> dict[str, FloatArray]:
        weight_NR = _turn(weight_RN)
        by_class = _stack([_describe_ranking(curve.tally(weight_NR), operating_points) for curve in curves])
        return {
            **confusion.compute(weight_NR),
            **_average(by_class),
            **(error.compute(weight_NR) if error else {}),
            **_spread(by_class, class_names),
        }

    return statistic


def build_multilabel_statistic(
    label_NL: ArrayLike,
    score_NL: ArrayLike,
    finding_names: Sequence[str],
    *,
    operating_points: bool = False,
    probabilities: bool = False,
) -> Statistic:
    """Build the statistic of films with several findings each, auroc and auprc: weight_RN -> {metric: value_R}.

    label_NL: 1 present, 0 absent, NaN unknown (the film does not count for that finding).  score_NL: finite, higher
    means more likely.  auprc is average precision, without interpolation.  A finding without both labels is NaN, and
    means leave it out.
    operating_points: as in `build_multiclass_statistic`.  probabilities: score_NL are probabilities of the findings;
    add brier (squared error, 0..1) and ece of each.
    Raises UsageError if shapes, labels or scores do not fit.
    """
    score = check_scores(score_NL, finding_names)
    label = check_findings(label_NL, finding_names)
    if label.shape != score.shape:
        raise UsageError(f"labels of shape {label.shape} but scores of shape {score.shape}")
    known = [np.flatnonzero(~np.isnan(column)) for column in label.T]
    curves = [RankedScores(label[rows, j] == 1.0, score[rows, j], rows, len(label)) for j, rows in enumerate(known)]
    errors = []
    if probabilities:
        check_probabilities(score)
        errors = [
            _build_finding_error(label[rows, j], score[rows, j], rows, len(label)) for j, rows in enumerate(known)
        ]

    def statistic(weight_RN: WeightArray) -> dict[str, FloatArray]:
        weight_NR = _turn(weight_RN)
        by_finding = _stack([_describe_ranking(curve.tally(weight_NR), operating_points) for curve in curves])
        if errors:
            by_finding |= _stack([error.compute(weight_NR) for error in errors])
        return _average(by_finding) | _spread(by_finding, finding_names)

    return statistic


def build_binary_statistic(
    label_N: ArrayLike, score_N: ArrayLike, name: str = "positive", **options: bool
) -> Statistic:
    """Build the statistic of one finding, label_N and score_N [N]: `build_multilabel_statistic` with one column."""
    label, score = np.asarray(label_N, dtype=np.float64), np.asarray(score_N, dtype=np.float64)
    if label.ndim != 1 or score.ndim != 1:
        raise UsageError(f"one finding has one label and one score per film, not {label.shape} and {score.shape}")
    return build_multilabel_statistic(label[:, None], score[:, None], (name,), **options)


def build_ordinal_statistic(
    label_N: ArrayLike, score_NC: ArrayLike, class_names: Sequence[str], **options: bool
) -> Statistic:
    """Build the statistic of ordered classes, class_names from low to high: `build_multiclass_statistic` and two more.

    weighted_kappa: agreement beyond chance with quadratic weights (Cohen 1968); NaN if all labels and predictions are
    one class.  rank_error: mean distance between predicted and true rank, in ranks.
    """
    nominal = build_multiclass_statistic(label_N, score_NC, class_names, **options)
    confusion = Confusion(check_classes(label_N, class_names), check_scores(score_NC, class_names))

    def statistic(weight_RN: WeightArray) -> dict[str, FloatArray]:
        return confusion.compute_ranks(_turn(weight_RN)) | nominal(weight_RN)

    return statistic


class Confusion:
    """The confusion matrix of weighted films, and metrics computed from it."""

    def __init__(self, label_N: NDArray[np.intp], score_NC: FloatArray) -> None:
        self._classes = score_NC.shape[1]
        cell_N = label_N * self._classes + score_NC.argmax(axis=1)
        self._cells = build_indicator(cell_N, np.arange(len(label_N)), (self._classes**2, len(label_N)))

    def compute(self, weight_NR: WeightArray) -> dict[str, FloatArray]:
        """Return accuracy, balanced_accuracy and macro_f1, [R] each."""
        count_RCC = self._count(weight_NR)
        hit_RC = np.diagonal(count_RCC, axis1=1, axis2=2)
        true_RC, predicted_RC = count_RCC.sum(axis=2), count_RCC.sum(axis=1)
        return {
            "accuracy": divide_known(hit_RC.sum(axis=1), true_RC.sum(axis=1)),
            "balanced_accuracy": mean_known(divide_known(hit_RC, true_RC), axis=1),
            "macro_f1": mean_known(divide_known(2.0 * hit_RC, true_RC + predicted_RC), axis=1),
        }

    def compute_ranks(self, weight_NR: WeightArray) -> dict[str, FloatArray]:
        """Return weighted_kappa and rank_error, [R] each."""
        count_RCC = self._count(weight_NR)
        distance_CC = np.abs(np.subtract.outer(np.arange(self._classes), np.arange(self._classes)))
        total_R, true_RC, predicted_RC = count_RCC.sum(axis=(1, 2)), count_RCC.sum(axis=2), count_RCC.sum(axis=1)
        chance_R = divide_known(np.einsum("rc,cd,rd->r", true_RC, distance_CC**2, predicted_RC), total_R)
        return {
            "weighted_kappa": 1.0 - divide_known((count_RCC * distance_CC**2).sum(axis=(1, 2)), chance_R),
            "rank_error": divide_known((count_RCC * distance_CC).sum(axis=(1, 2)), total_R),
        }

    def _count(self, weight_NR: WeightArray) -> FloatArray:
        """Return [R, true class, predicted class]."""
        return weigh(self._cells, weight_NR).astype(np.float64).T.reshape(-1, self._classes, self._classes)


def check_classes(label_N: ArrayLike, class_names: Sequence[str]) -> NDArray[np.intp]:
    """Return class indices as integers; raises UsageError for NaN and values outside 0..C-1."""
    label = np.asarray(label_N)
    if label.ndim != 1 or label.dtype.kind not in "iufb":
        raise UsageError(f"classes must be one class index per film, not {label.dtype} of shape {label.shape}")
    if not np.all(np.isfinite(label)):
        raise UsageError("multi-class labels hold NaN: leave films of unknown class out")
    if np.any(label != np.floor(label)) or np.any(label < 0) or np.any(label >= len(class_names)):
        raise UsageError(f"classes must be whole numbers from 0 to {len(class_names) - 1}, one per class name")
    return label.astype(np.intp)


def check_findings(label_NL: ArrayLike, finding_names: Sequence[str]) -> FloatArray:
    """Return findings as float64 of 1, 0 and NaN; raises UsageError for other values."""
    label = np.asarray(label_NL, dtype=np.float64)
    if label.ndim != 2 or label.shape[1] != len(finding_names):
        raise UsageError(f"multi-label labels of shape {label.shape} do not fit {len(finding_names)} finding names")
    if not np.all(np.isnan(label) | (label == 0.0) | (label == 1.0)):
        raise UsageError("multi-label labels must be 1 (present), 0 (absent) or NaN (unknown)")
    return label


def check_scores(score_NC: ArrayLike, names: Sequence[str]) -> FloatArray:
    """Return scores as float64 [N, C]; raises UsageError unless there is a film, and one finite column per name."""
    score = np.asarray(score_NC, dtype=np.float64)
    if score.ndim != 2 or score.shape[1] != len(names):
        raise UsageError(f"scores of shape {score.shape} do not fit {len(names)} names: one column per name")
    if len(score) == 0:
        raise UsageError("there are no films to score")
    if not np.all(np.isfinite(score)):
        raise UsageError("scores hold NaN or infinity: the model that made them has diverged")
    if len(set(names)) != len(names):
        raise UsageError("two classes or findings have the same name")
    return score


def check_probabilities(score_NC: FloatArray, sum_to_one: bool = False) -> FloatArray:
    """Return the scores unchanged; raises UsageError if they are not probabilities."""
    if np.any(score_NC < 0.0) or np.any(score_NC > 1.0):
        raise UsageError("calibration needs probabilities from 0 to 1, and these scores leave that range")
    # the rows of float32 probabilities sum to 1 within about 1e-6
    if sum_to_one and not np.allclose(score_NC.sum(axis=1), 1.0, atol=1e-3):
        raise UsageError("calibration of classes needs probabilities whose rows sum to 1")
    return score_NC


def _describe_ranking(tally: ScoreTally, operating_points: bool) -> dict[str, FloatArray]:
    values = {"auroc": tally.compute_auroc(), "auprc": tally.compute_auprc()}
    if operating_points:
        values |= {f"sensitivity_at_specificity_{level:g}": tally.find_sensitivity(level) for level in LEVELS}
        values |= {f"specificity_at_sensitivity_{level:g}": tally.find_specificity(level) for level in LEVELS}
    return values


def _build_class_error(label_N: NDArray[np.intp], probability_NC: FloatArray) -> CalibrationError:
    square_N = ((probability_NC - np.eye(probability_NC.shape[1])[label_N]) ** 2).sum(axis=1)
    hit_N = (probability_NC.argmax(axis=1) == label_N).astype(np.float64)
    return CalibrationError(probability_NC.max(axis=1), hit_N, square_N, np.arange(len(label_N)), len(label_N))


def _build_finding_error(
    label_K: FloatArray, probability_K: FloatArray, row_K: NDArray[np.intp], film_count: int
) -> CalibrationError:
    return CalibrationError(probability_K, label_K, (probability_K - label_K) ** 2, row_K, film_count)


def _turn(weight_RN: WeightArray) -> WeightArray:
    """Return the weights as contiguous [N, R]."""
    return np.ascontiguousarray(np.asarray(weight_RN).T)


def _stack(value_by_column: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    return {metric: np.stack([values[metric] for values in value_by_column]) for metric in value_by_column[0]}


def _average(value_CR: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    return {metric: mean_known(value, axis=0) for metric, value in value_CR.items()}


def _spread(value_CR: Mapping[str, FloatArray], names: Sequence[str]) -> dict[str, FloatArray]:
    return {f"{metric}/{name}": value[c] for metric, value in value_CR.items() for c, name in enumerate(names)}
