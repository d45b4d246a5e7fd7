"""Means of scores over films, with intervals by patient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from chess_cxr.evaluation.intervals import Interval, bootstrap_draws_by_patient
from chess_cxr.evaluation.metrics import Statistic
from chess_cxr.evaluation.ranked_scores import FloatArray, WeightArray, divide_known
from chess_cxr.records import UsageError


@dataclass(frozen=True)
class FilmMean(Interval):
    """Mean over films with its interval; it covers `films` films of `groups` patients, those with a finite score."""

    films: int = 0
    groups: int = 0


def summarise_films(
    scores: Sequence[Mapping[str, float]], groups: ArrayLike, seed: int = 0, replicates: int = 2000, level: float = 0.95
) -> dict[str, FilmMean]:
    """Average each score over films, with an interval over resamples of the groups (patients; films if unknown).

    scores: {name: score} of each film.  A mean leaves out films without a finite score (the PSNR of equal films is
    infinite).  The interval covers only the choice of films, for a fixed network.
    """
    statistic = build_mean_statistic(scores)
    group_N = np.asarray(groups)
    if len(group_N) != len(scores):
        raise UsageError(f"{len(group_N)} groups do not fit the scores of {len(scores)} films")
    intervals = bootstrap_draws_by_patient(group_N, [statistic], replicates, seed, level)
    known = {name: np.isfinite([film.get(name, math.nan) for film in scores]) for name in intervals}
    return {
        name: FilmMean(**vars(interval), films=int(known[name].sum()), groups=len(np.unique(group_N[known[name]])))
        for name, interval in intervals.items()
    }


def build_mean_statistic(scores: Sequence[Mapping[str, float]]) -> Statistic:
    """Build the statistic of means over films for `intervals`, such as for a paired bootstrap of two networks.

    scores: {name: score} of each film.  Means leave out non-finite scores.
    """
    names = list(dict.fromkeys(name for film in scores for name in film))
    value_NM = np.array([[film.get(name, math.nan) for name in names] for film in scores], dtype=np.float64)
    known_NM = np.isfinite(value_NM)
    value_NM = np.where(known_NM, value_NM, 0.0)

    def average(weight_RN: WeightArray) -> dict[str, FloatArray]:
        weight = np.asarray(weight_RN, dtype=np.float64)
        mean_RM = divide_known(weight @ value_NM, weight @ known_NM.astype(np.float64))
        return {name: mean_RM[:, place] for place, name in enumerate(names)}

    return average
