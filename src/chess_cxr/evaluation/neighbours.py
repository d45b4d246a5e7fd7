"""Nearest neighbours: films that an encoder finds alike vote on a label, without anything being fitted; retrieval.

Shape suffixes: N films, Q films to score, D features, C classes or findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chess_cxr.evaluation.metrics import Statistic, check_classes, check_findings
from chess_cxr.evaluation.ranked_scores import FloatArray, WeightArray, divide_known, mean_known
from chess_cxr.records import OnCount, UsageError

ROWS_AT_ONCE = 256
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200)
RETRIEVED = (1, 5, 10)  # the k of precision@k
TEMPERATURE = 0.1  # a neighbour of cosine c weighs exp(c / TEMPERATURE)
PRIOR = 1.0  # weight of the bank's own share in every score, that of a neighbour of cosine 0: none is 0 or 1


@dataclass(frozen=True)
class Neighbours:
    """A bank of labelled films; features have its mean taken off and length 1.

    label_NC: 1, 0, and NaN where a finding is unknown.  count: neighbours that vote.  notes: on how they were chosen.
    """

    mean_D: FloatArray
    unit_ND: FloatArray
    label_NC: FloatArray
    count: int
    multilabel: bool
    notes: tuple[str, ...] = ()

    def predict_scores(self, feature_QD: ArrayLike) -> FloatArray:
        """Return the weighted share of votes [Q, C]; rows of classes sum to 1."""
        unit_QD = make_unit(np.asarray(feature_QD, np.float64) - self.mean_D)
        return _vote(unit_QD @ self.unit_ND.T, self.label_NC, (self.count,))[0]


def fit_neighbours(
    feature_ND: ArrayLike,
    label: ArrayLike,
    patient_N: ArrayLike,
    *,
    names: Sequence[str],
    counts: Sequence[int] = COUNTS,
    val: tuple[ArrayLike, ArrayLike] | None = None,
) -> Neighbours:
    """Choose how many neighbours vote by the log-loss of the val films, and build the bank of labelled films.

    label: class index, int [N], or findings, float [N, L] with NaN.  val: features and labels of the val films; without
    them, or without a known label, the given films choose, each without its own patient's films.
    Raises UsageError where features hold NaN or infinity.
    """
    feature = np.asarray(feature_ND, np.float64)
    if feature.ndim != 2 or not len(feature) or not np.isfinite(feature).all():
        raise UsageError("features hold NaN or infinity, or there are none")
    multilabel = np.ndim(label) == 2
    label_NC = _encode(label, names, multilabel)
    mean_D = feature.mean(axis=0)
    unit_ND = make_unit(feature - mean_D)
    tried = sorted({min(count, len(feature)) for count in counts})
    judge_NC = None if val is None else _encode(val[1], names, multilabel)
    if val is None or judge_NC is None or np.isnan(judge_NC).all():
        patient = np.unique(np.asarray(patient_N), return_inverse=True)[1]
        cosine_QN, judge_NC = unit_ND @ unit_ND.T, label_NC
        cosine_QN[patient[:, None] == patient] = -np.inf
    else:
        cosine_QN = make_unit(np.asarray(val[0], np.float64) - mean_D) @ unit_ND.T
    losses = [_compute_loss(score_QC, judge_NC, multilabel) for score_QC in _vote(cosine_QN, label_NC, tried)]
    count = tried[int(np.argmin(losses))]
    edge = len(tried) > 1 and count == max(counts) < len(feature)  # more films might have voted
    notes = (f"k = {count} lies at the end of its grid, {tried[0]} to {tried[-1]}",) if edge else ()
    return Neighbours(mean_D, unit_ND, label_NC, count, multilabel, notes)


def measure_precision(bank: Neighbours, feature_QD: ArrayLike, label: ArrayLike) -> NDArray[np.float32]:
    """Return the share of the k nearest labelled films that have the query's class or finding: float32 [Q, C, K].

    For each k of `RETRIEVED`, among the films whose label is known; NaN where the query does not have it.  By chance it
    is the share of the class or finding in the bank.
    """
    query_QC = _encode(label, [""] * bank.label_NC.shape[1], bank.multilabel)
    cosine_QN = make_unit(np.asarray(feature_QD, np.float64) - bank.mean_D) @ bank.unit_ND.T
    precision = np.full((*query_QC.shape, len(RETRIEVED)), np.nan, np.float32)
    for column, label_N in enumerate(bank.label_NC.T):
        asked, known = np.flatnonzero(query_QC[:, column] == 1), np.flatnonzero(~np.isnan(label_N))
        if len(asked) and len(known):
            near_QK = np.argsort(-cosine_QN[np.ix_(asked, known)], axis=1, kind="stable")[:, : max(RETRIEVED)]
            hit_QK = label_N[known][near_QK]
            for place, count in enumerate(RETRIEVED):
                precision[asked, column, place] = hit_QK[:, :count].mean(axis=1)
    return precision


def build_precision_statistic(precision_QCK: ArrayLike, names: Sequence[str]) -> Statistic:
    """Build the statistic of precision_at_1 …: means over the queries of each class or finding, and over these."""
    value_QCK = np.asarray(precision_QCK, np.float64)
    known_QCK = ~np.isnan(value_QCK)
    value_QCK = np.where(known_QCK, value_QCK, 0.0)

    def average(weight_RN: WeightArray) -> dict[str, FloatArray]:
        weight = np.asarray(weight_RN, np.float64)
        found: dict[str, FloatArray] = {}
        for place, count in enumerate(RETRIEVED):
            known = known_QCK[:, :, place].astype(np.float64)
            mean_RC = divide_known(weight @ value_QCK[:, :, place], weight @ known)
            found[f"precision_at_{count}"] = mean_known(mean_RC, axis=1)
            found |= {f"precision_at_{count}/{name}": mean_RC[:, column] for column, name in enumerate(names)}
        return found

    return average


def _encode(label: ArrayLike, names: Sequence[str], multilabel: bool) -> FloatArray:
    """Return labels as 1, 0 and NaN, [N, C]."""
    return check_findings(label, names) if multilabel else np.eye(len(names))[check_classes(label, names)]


def find_nearest_of_all(
    unit_ND: NDArray[np.float32], count: int, on_rows: OnCount | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the nearest others of each film and their cosines, [N, K], nearest first; all pairs are compared.

    unit_ND: features less their mean, at length 1.  K is `count`, or N - 1 if that is less.
    """
    films = len(unit_ND)
    kept = max(0, min(count, films - 1))
    near_NK, cosine_NK = np.empty((films, kept), np.int64), np.empty((films, kept), np.float32)
    for start in range(0, films if kept else 0, ROWS_AT_ONCE):
        cosine_BN = unit_ND[start : start + ROWS_AT_ONCE] @ unit_ND.T
        rows = np.arange(len(cosine_BN))
        cosine_BN[rows, start + rows] = -np.inf
        some_BK = np.argpartition(-cosine_BN, kept - 1, axis=1)[:, :kept]
        some_BK.sort(axis=1)  # of equal cosines the first film comes first
        cosine_BK = np.take_along_axis(cosine_BN, some_BK, axis=1)
        order_BK = np.argsort(-cosine_BK, axis=1, kind="stable")
        part = slice(start, start + len(rows))
        near_NK[part] = np.take_along_axis(some_BK, order_BK, axis=1)
        cosine_NK[part] = np.take_along_axis(cosine_BK, order_BK, axis=1)
        if on_rows:
            on_rows(start + len(rows), films)
    return near_NK, cosine_NK


def make_unit(feature_ND: FloatArray) -> FloatArray:
    """Return vectors at length 1, [N, D] or one [D]; a vector of zeros stays."""
    unit_ND: FloatArray = feature_ND / np.maximum(np.linalg.norm(feature_ND, axis=-1, keepdims=True), 1e-12)
    return unit_ND


def _vote(cosine_QN: FloatArray, label_NC: FloatArray, counts: Sequence[int]) -> list[FloatArray]:
    """Return the weighted shares of the nearest films that know each finding, [Q, C], one for each count."""
    known_NC = ~np.isnan(label_NC)
    share_C = np.nan_to_num(label_NC).sum(axis=0) / np.maximum(known_NC.sum(axis=0), 1)
    scores = [np.empty((len(cosine_QN), label_NC.shape[1])) for _ in counts]
    for pattern in np.unique(known_NC, axis=1).T:  # findings that the same films know share their neighbours
        columns = np.flatnonzero((known_NC == pattern[:, None]).all(axis=0))
        bank = np.flatnonzero(pattern)
        most = min(max(counts), len(bank))
        near_QK = np.argsort(-cosine_QN[:, bank], axis=1, kind="stable")[:, :most]
        near_cosine_QK = np.take_along_axis(cosine_QN[:, bank], near_QK, axis=1)
        weight_QK = np.exp(near_cosine_QK / TEMPERATURE)
        vote_QKC = label_NC[bank][:, columns][near_QK] * weight_QK[..., None]
        for score_QC, count in zip(scores, counts, strict=True):
            total_Q1 = weight_QK[:, :count].sum(axis=1, keepdims=True) + PRIOR
            score_QC[:, columns] = (vote_QKC[:, :count].sum(axis=1) + PRIOR * share_C[columns]) / total_Q1
    return scores


def _compute_loss(score_NC: FloatArray, label_NC: FloatArray, multilabel: bool) -> float:
    known_NC: NDArray[np.bool_] = ~np.isnan(label_NC)
    score_NC = np.clip(score_NC, 1e-6, 1 - 1e-6)
    right = np.log(score_NC) * np.nan_to_num(label_NC)
    wrong = np.log1p(-score_NC) * np.nan_to_num(1 - label_NC) if multilabel else 0.0
    return float(-(right + wrong)[known_NC].mean())
