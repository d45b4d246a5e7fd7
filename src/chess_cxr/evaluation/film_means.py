"""Means over films with intervals by patient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from chess_cxr.evaluation.intervals import Interval, bootstrap_draws_by_patient
from chess_cxr.evaluation.metrics import FloatArray, Statistic, WeightArray
from chess_cxr.evaluation.ranked_scores import divide_known
from chess_cxr.records import UsageError


@dataclass(frozen=True)
class FilmMean(Interval):
    """Mean over films with its interval; `films` of the `groups` had a value, the others were left out."""

    films: int = 0
    groups: int = 0


def summarise_films(
    scores: Sequence[Mapping[str, float]],
    groups: ArrayLike,
    seed: int = 0,
    replicates: int = 2000,
    level: float = 0.95,
) -> dict[str, FilmMean]:
    """Average each score over films, with an interval over resamples of the groups (patients; films where unknown).

    scores: of each film, from `score_suppression`.  A film without a score, with NaN or infinity (the PSNR of two equal
    films) is left out of its mean; `films` says how many are in it.  Covers other films only: one network, as it is.
    """
    statistic = build_mean_statistic(scores)
    group_N = np.asarray(groups)
    if len(group_N) != len(scores):
        raise UsageError(f"{len(group_N)} groups do not fit the scores of {len(scores)} films")
    intervals = bootstrap_draws_by_patient(group_N, [statistic], replicates, seed, level)
    summary = {}
    for name, interval in intervals.items():
        known = np.isfinite([film.get(name, math.nan) for film in scores])
        count = len(np.unique(group_N[known]))
        summary[name] = FilmMean(**vars(interval), films=int(known.sum()), groups=count)
    return summary


def build_mean_statistic(scores: Sequence[Mapping[str, float]]) -> Statistic:
    """Make means of scores a statistic of `intervals`, whose paired bootstrap compares two networks on the same films.

    scores: of each film.  What is not finite is left out of its mean.
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
