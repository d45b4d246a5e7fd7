"""Confidence intervals over patients, training draws or both.

Choose by the variation that the interval must cover:

- `bootstrap_by_patient`: the choice of test patients, for one fixed model.
- `interval_of_draws`: the choice of training films, for one fixed test set.
- `bootstrap_draws_by_patient`: both, for the mean over draws; for tables of label fractions.

`interval_of_rate` is for a share of films and needs no resampling; `interval_of_draws` is Student's.  The others are
percentile intervals (Efron & Tibshirani 1993, ch. 13).  Replicates without a value (no film of a class was drawn) are
dropped and counted in `undefined`.  Shape suffixes: N films, P patients, R replicates, D draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from chess_cxr.evaluation.metrics import Statistic
from chess_cxr.evaluation.ranked_scores import FloatArray, WeightArray, mean_known
from chess_cxr.records import UsageError

IndexStatistic = Callable[[NDArray[np.intp]], Mapping[str, float]]

_WEIGHTS_PER_BLOCK = 800_000  # 3 MB of float32: the block stays in the cache while each class and draw reads it
_REPLICATES_PER_BLOCK = 16  # at least, to fill a cache line
_WHOLE_IN_FLOAT32 = 2**23  # float32 represents all integers up to twice this number


@dataclass(frozen=True)
class Interval:
    """A value on all films and its interval; `undefined` of the `replicates` had no value and were dropped."""

    value: float
    low: float
    high: float
    level: float = 0.95
    replicates: int = 0
    undefined: int = 0


@dataclass(frozen=True)
class Difference(Interval):
    """First minus second, with the two-sided p-value, which is never below 2 / (replicates + 1)."""

    p: float = math.nan


@dataclass(frozen=True)
class DrawReplicates:
    """A metric of D training draws, on the whole test set (value_D) and on R resamples of its patients (value_DR)."""

    value_D: FloatArray
    value_DR: FloatArray


def bootstrap_by_patient(
    patient_N: ArrayLike, statistic: IndexStatistic, replicates: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """Return the interval of each metric over resamples of the patients, each with all its films.

    statistic: takes film indices (with repeats, sorted) and returns {metric: value}, NaN for no value.
    Covers only the choice of test patients, for a fixed model.
    """
    return {
        metric: summarise(float(value_D[0]), value_DR[0], level)
        for metric, (value_D, value_DR) in _replicate_indices(patient_N, statistic, replicates, seed).items()
    }


def paired_bootstrap_by_patient(
    patient_N: ArrayLike,
    first: IndexStatistic,
    second: IndexStatistic,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Difference]:
    """Return the difference first - second of two sets of predictions, on the same resampled patients.

    Covers only the choice of test patients.  p is two-sided, from the share of replicates on either side of zero.
    """
    one = _replicate_indices(patient_N, first, replicates, seed)
    other = _replicate_indices(patient_N, second, replicates, seed)
    return {
        metric: summarise_difference(
            float(one[metric][0][0] - other[metric][0][0]), one[metric][1][0] - other[metric][1][0], level
        )
        for metric in one
        if metric in other
    }


def interval_of_draws(value_D: ArrayLike, level: float = 0.95) -> Interval:
    """Return Student's t interval of the mean over independent training draws, scored on the same test films.

    Covers only the choice of training films.  Leaves out and counts NaN draws.  The interval of a single draw is NaN.
    """
    value = np.asarray(value_D, dtype=np.float64)
    known = value[~np.isnan(value)]
    mean = float(known.mean()) if len(known) else math.nan
    half = math.nan
    if len(known) > 1:
        half = float(stats.t.ppf(0.5 + level / 2, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known)))
    return Interval(mean, mean - half, mean + half, level, len(value), len(value) - len(known))


def interval_of_rate(hit_N: ArrayLike, patient_N: ArrayLike, level: float = 0.95) -> Interval:
    """Return Wilson's interval of a share of films, with the effective number of films (Rao & Scott 1992).

    hit_N: 1 or 0 for each film.  Films of one patient tend to agree, so the number of films is divided by the design
    effect: the variance over patients divided by that of independent films, if it is above 1.  A share of 0 or 1 has no
    design effect; there the number of patients counts.  Unlike a bootstrap, it keeps its coverage for few films and for
    shares near 0 and 1.  NaN without films.
    """
    hit = np.asarray(hit_N, dtype=np.float64)
    _, code_N = np.unique(np.asarray(patient_N), return_inverse=True)
    if len(code_N) != len(hit):
        raise UsageError(f"{len(code_N)} patients do not fit {len(hit)} films")
    if not len(hit):
        return Interval(math.nan, math.nan, math.nan, level)
    rate, films, patients = float(hit.mean()), len(hit), int(code_N.max()) + 1
    counted = float(patients)
    if 0.0 < rate < 1.0 and patients > 1:
        gap_P = np.bincount(code_N, hit - rate)
        variance = patients / (patients - 1) * float(gap_P @ gap_P) / films**2
        counted = films / max(1.0, variance * films / (rate * (1 - rate)))
    reach = compute_reach(level)
    middle = (rate + reach**2 / (2 * counted)) / (1 + reach**2 / counted)
    half = reach * math.sqrt(rate * (1 - rate) / counted + (reach / (2 * counted)) ** 2) / (1 + reach**2 / counted)
    low, high = middle - half, middle + half
    # without rounding errors, Wilson's bounds equal a share of 0 or 1 exactly
    return Interval(rate, low if rate > 0.0 else 0.0, high if rate < 1.0 else 1.0, level)


def bootstrap_draws_by_patient(
    patient_N: ArrayLike, statistics: Sequence[Statistic], replicates: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """Return the interval of the mean over training draws, over both test patients and draws.

    statistics: one per draw, on the same test films, such as from `metrics.build_multiclass_statistic`.
    `average_draws` combines the two sources of variation; with a single draw only the test patients vary.
    """
    parts = replicate_draws(patient_N, statistics, replicates, seed)
    return {metric: average_draws(part, seed, level) for metric, part in parts.items()}


def paired_bootstrap_draws_by_patient(
    patient_N: ArrayLike,
    first: Sequence[Statistic],
    second: Sequence[Statistic],
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Difference]:
    """Return the difference of two means over the same training draws, with the same resamples for both."""
    one = replicate_draws(patient_N, first, replicates, seed)
    other = replicate_draws(patient_N, second, replicates, seed)
    return {metric: subtract_draws(one[metric], other[metric], seed, level) for metric in one if metric in other}


def replicate_draws(
    patient_N: ArrayLike, statistics: Sequence[Statistic], replicates: int = 1000, seed: int = 0
) -> dict[str, DrawReplicates]:
    """Evaluate every draw on the whole test set and on the same resamples of its patients.

    The resamples depend only on patient_N, replicates and seed, so results of two calls can be paired.
    """
    if not statistics:
        raise UsageError("there is no draw to average")
    film_count = len(np.asarray(patient_N))
    whole = [statistic(np.ones((1, film_count))) for statistic in statistics]
    blocks: list[list[dict[str, FloatArray]]] = [[] for _ in statistics]
    for weight_RN in _resample_patients(patient_N, replicates, seed):
        for draw, statistic in enumerate(statistics):
            blocks[draw].append(statistic(weight_RN))
    return {
        metric: DrawReplicates(
            np.array([values[metric][0] for values in whole]),
            np.stack([np.concatenate([block[metric] for block in draw]) for draw in blocks]),
        )
        for metric in whole[0]
    }


def average_draws(part: DrawReplicates, seed: int = 0, level: float = 0.95) -> Interval:
    """Return the interval of the mean over draws, resampling patients and draws in each replicate.

    Patients and draws are crossed, and resampling both is slightly conservative (pigeonhole bootstrap, Owen 2007).
    Resampling D draws underestimates their variance by a factor (D - 1) / D, so their deviations are widened by the
    square root of D / (D - 1) (Hesterberg 2015, section 4.3).
    """
    return summarise(_mean_of(part.value_D), resample_draws(part.value_DR, seed), level)


def subtract_draws(first: DrawReplicates, second: DrawReplicates, seed: int = 0, level: float = 0.95) -> Difference:
    """Return the interval and p-value of a difference of means over the same patients and draws.

    Raises UsageError for different numbers of draws or replicates.
    """
    if first.value_DR.shape != second.value_DR.shape:
        raise UsageError(
            f"cannot pair {first.value_DR.shape} with {second.value_DR.shape} draws x replicates: use the same draws"
        )
    gap_DR = first.value_DR - second.value_DR
    return summarise_difference(_mean_of(first.value_D - second.value_D), resample_draws(gap_DR, seed), level)


def _mean_of(value_D: FloatArray) -> float:
    return float(mean_known(value_D[None], axis=1)[0])


def resample_draws(value_DR: FloatArray, seed: int) -> FloatArray:
    """Return the mean over draws in each replicate, with the draws resampled as well; see `average_draws`."""
    draw_count, replicates = value_DR.shape
    mean_R = mean_known(value_DR, axis=0)
    if draw_count == 1:
        return mean_R
    pick_DR = np.random.default_rng((seed, 1)).integers(draw_count, size=(draw_count, replicates))
    picked_R = mean_known(np.take_along_axis(value_DR, pick_DR, axis=0), axis=0)
    return mean_R + math.sqrt(draw_count / (draw_count - 1)) * (picked_R - mean_R)


def _resample_patients(patient_N: ArrayLike, replicates: int, seed: int) -> Iterator[WeightArray]:
    """Yield blocks [R, N] of how often each film is drawn, `replicates` rows in all; `block.T` is contiguous."""
    patient = np.asarray(patient_N)
    if patient.ndim != 1 or len(patient) == 0:
        raise UsageError("the bootstrap needs one patient name for each of at least one film")
    if replicates < 1:
        raise UsageError("the bootstrap needs at least one replicate")
    names, code_N, films_P = np.unique(patient, return_inverse=True, return_counts=True)
    exact = len(names) * int(films_P.max()) < _WHOLE_IN_FLOAT32
    generator = np.random.default_rng((seed, 0))
    block = max(_REPLICATES_PER_BLOCK, _WEIGHTS_PER_BLOCK // len(patient))
    for start in range(0, replicates, block):
        rows = min(block, replicates - start)
        drawn_RP = generator.integers(len(names), size=(rows, len(names)))
        slot_RP = drawn_RP + np.arange(rows)[:, None] * len(names)
        count_RP = np.bincount(slot_RP.ravel(), minlength=rows * len(names)).reshape(rows, len(names))
        count_PR: WeightArray = np.ascontiguousarray(count_RP.T, dtype=np.float32 if exact else np.float64)
        yield count_PR[code_N].T


def _replicate_indices(
    patient_N: ArrayLike, statistic: IndexStatistic, replicates: int, seed: int
) -> dict[str, tuple[FloatArray, FloatArray]]:
    film_N = np.arange(len(np.asarray(patient_N)))
    whole = statistic(film_N)
    values = {metric: np.empty(replicates) for metric in whole}
    row = 0
    for weight_RN in _resample_patients(patient_N, replicates, seed):
        for weight_N in weight_RN:
            for metric, value in statistic(np.repeat(film_N, weight_N.astype(np.intp))).items():
                values[metric][row] = value
            row += 1
    return {metric: (np.array([whole[metric]]), values[metric][None]) for metric in whole}


def summarise(value: float, value_R: FloatArray, level: float) -> Interval:
    """Return the percentile interval of replicates."""
    low, high = _percentiles(value_R, level)
    return Interval(value, low, high, level, len(value_R), int(np.isnan(value_R).sum()))


def summarise_difference(value: float, value_R: FloatArray, level: float) -> Difference:
    """Return the percentile interval of a difference's replicates, and its two-sided p."""
    known = value_R[~np.isnan(value_R)]
    low, high = _percentiles(value_R, level)
    p = math.nan
    if len(known) and not math.isnan(value):
        side = min(int((known <= 0).sum()), int((known >= 0).sum()))
        p = min(1.0, 2 * (side + 1) / (len(known) + 1))
    return Difference(value, low, high, level, len(value_R), len(value_R) - len(known), p)


def compute_reach(level: float) -> float:
    """Return the half-width of a two-sided normal interval of this level, in standard errors."""
    _check_level(level)
    return float(stats.norm.ppf((1 + level) / 2))


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise UsageError(f"the level of an interval lies between 0 and 1, not {level}")


def _percentiles(value_R: FloatArray, level: float) -> tuple[float, float]:
    _check_level(level)
    known = value_R[~np.isnan(value_R)]
    if len(known) == 0:
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
