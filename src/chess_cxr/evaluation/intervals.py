"""Confidence intervals that resample patients, and training draws with them.

What an interval covers is part of its meaning, and three different ones live here:

- `bootstrap_by_patient`: one fixed model, other test patients.  Says nothing about another training sample.
- `interval_of_draws`: one fixed test set, other training draws.  Says nothing about other test patients.
- `bootstrap_draws_by_patient`: both at once, for the mean over draws.  This is the one for a table of label fractions.

`interval_of_rate` needs no resampling: it is for a share of films.  The others but Student's are percentile intervals
(Efron & Tibshirani 1993, ch. 13).  Replicates in which a metric has no value (a class was not drawn) are dropped and
counted in `undefined`.  Shape suffixes: N films, P patients, R replicates, D draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from chess_cxr.evaluation.metrics import FloatArray, Statistic, WeightArray, mean_known
from chess_cxr.records import UsageError

IndexStatistic = Callable[[NDArray[np.intp]], Mapping[str, float]]

# A block of weights is read once for each class and draw: 3 MB of float32 stay in a processor's cache meanwhile.
_WEIGHTS_PER_BLOCK = 800_000
_REPLICATES_PER_BLOCK = 16  # at least: fewer would not fill a line of the cache
_WHOLE_IN_FLOAT32 = 2**23  # twice as much is the first whole number that float32 cannot tell from its neighbour


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
    """First minus second, with `p`: two-sided, against no difference; never below 2 / (replicates + 1)."""

    p: float = math.nan


def describe_intervals(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    """Return intervals as JSON-ready values; a number that does not exist is None."""
    return {
        name: {key: number if math.isfinite(number) else None for key, number in asdict(interval).items()}
        for name, interval in intervals.items()
    }


@dataclass(frozen=True)
class DrawReplicates:
    """One metric of D training draws on the whole test set (value_D) and on R resamples of its patients (value_DR)."""

    value_D: FloatArray
    value_DR: FloatArray


def bootstrap_by_patient(
    patient_N: ArrayLike, statistic: IndexStatistic, replicates: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """Interval of each metric over resamples of the patients, all films of a drawn patient staying together.

    statistic: takes film indices (with repeats, sorted) and returns {metric: value}; NaN where it has none.
    Covers the choice of test patients only: the model, and the labelled films it learned from, are taken as they are.
    """
    return {
        metric: _summarise(float(value_D[0]), value_DR[0], level)
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
    """Difference first - second of two sets of predictions for the same films, both on the same resampled patients.

    Covers the choice of test patients only.  p is two-sided, from the share of replicates on either side of zero.
    """
    one = _replicate_indices(patient_N, first, replicates, seed)
    other = _replicate_indices(patient_N, second, replicates, seed)
    return {
        metric: _summarise_difference(
            float(one[metric][0][0] - other[metric][0][0]), one[metric][1][0] - other[metric][1][0], level
        )
        for metric in one
        if metric in other
    }


def interval_of_draws(value_D: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of the mean over independent training draws, all scored on the same test films.

    Covers the choice of labelled training films only; draws whose value is NaN are left out and counted.  One draw
    alone has no interval (NaN).
    """
    value = np.asarray(value_D, dtype=np.float64)
    known = value[~np.isnan(value)]
    mean = float(known.mean()) if len(known) else math.nan
    half = math.nan
    if len(known) > 1:
        half = float(stats.t.ppf(0.5 + level / 2, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known)))
    return Interval(mean, mean - half, mean + half, level, len(value), len(value) - len(known))


def interval_of_rate(hit_N: ArrayLike, patient_N: ArrayLike, level: float = 0.95) -> Interval:
    """Wilson's interval of a share of films, with as many films as count for independent (Rao & Scott 1992).

    hit_N: 1 or 0 a film.  Several films of a patient that agree are worth less than as many patients: the films are
    divided by the ratio of the variance over patients to that of independent films, where it is above 1.  A share of 0
    or 1 does not show that ratio, and counts patients.  For few films, or shares near 0 and 1, it keeps what it says
    where percentiles of a bootstrap do not.  No film: NaN.
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
    # Wilson's bounds meet a share of 0 or 1 exactly, but for rounding.
    return Interval(rate, low if rate > 0.0 else 0.0, high if rate < 1.0 else 1.0, level)


def bootstrap_draws_by_patient(
    patient_N: ArrayLike,
    statistics: Sequence[Statistic],
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Interval of the mean over training draws, under other test patients and other draws at once.

    statistics: one per draw, over the same test films (`metrics.build_multiclass_statistic` and its sibling).
    See `average_draws` for how the two sources of variation are joined; with one draw only the test patients vary.
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
    """Difference of two means over the same training draws: patients and draws are resampled alike for both."""
    one = replicate_draws(patient_N, first, replicates, seed)
    other = replicate_draws(patient_N, second, replicates, seed)
    return {metric: subtract_draws(one[metric], other[metric], seed, level) for metric in one if metric in other}


def replicate_draws(
    patient_N: ArrayLike, statistics: Sequence[Statistic], replicates: int = 1000, seed: int = 0
) -> dict[str, DrawReplicates]:
    """Evaluate every draw on the whole test set and on the same resamples of its patients.

    The resamples depend on patient_N, replicates and seed alone, so two calls with equal ones can be compared pairwise.
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
    """Interval of the mean over draws.  Replicate = other patients, other draws (with replacement), averaged.

    Patients and draws are crossed, and resampling both is slightly conservative (Owen 2007, the pigeonhole bootstrap).
    D draws resampled with replacement vary too little by (D - 1) / D, so their deviations are widened by the root of
    D / (D - 1) (Hesterberg 2015, section 4.3).
    """
    return _summarise(_mean_of(part.value_D), _resample_draws(part.value_DR, seed), level)


def subtract_draws(first: DrawReplicates, second: DrawReplicates, seed: int = 0, level: float = 0.95) -> Difference:
    """Interval and p of the difference of means over the same draws; both sides share patients and draws.

    Raises UsageError where the two do not hold the same number of draws and replicates.
    """
    if first.value_DR.shape != second.value_DR.shape:
        raise UsageError(
            f"cannot pair {first.value_DR.shape} with {second.value_DR.shape} draws x replicates: use the same draws"
        )
    gap_DR = first.value_DR - second.value_DR
    return _summarise_difference(_mean_of(first.value_D - second.value_D), _resample_draws(gap_DR, seed), level)


def _mean_of(value_D: FloatArray) -> float:
    return float(mean_known(value_D[None], axis=1)[0])


def _resample_draws(value_DR: FloatArray, seed: int) -> FloatArray:
    draw_count, replicates = value_DR.shape
    mean_R = mean_known(value_DR, axis=0)
    if draw_count == 1:
        return mean_R
    pick_DR = np.random.default_rng((seed, 1)).integers(draw_count, size=(draw_count, replicates))
    picked_R = mean_known(np.take_along_axis(value_DR, pick_DR, axis=0), axis=0)
    return mean_R + math.sqrt(draw_count / (draw_count - 1)) * (picked_R - mean_R)


def _resample_patients(patient_N: ArrayLike, replicates: int, seed: int) -> Iterator[WeightArray]:
    """Yield blocks [R, N] of how often each film is drawn, `replicates` rows in all.

    The replicates of a film lie side by side in memory (`block.T` is contiguous).
    """
    patient = np.asarray(patient_N)
    if patient.ndim != 1 or len(patient) == 0:
        raise UsageError("the bootstrap needs one patient name for each of at least one film")
    if replicates < 1:
        raise UsageError("the bootstrap needs at least one replicate")
    names, code_N, films_P = np.unique(patient, return_inverse=True, return_counts=True)
    exact = len(names) * int(films_P.max()) < _WHOLE_IN_FLOAT32
    # One generator a replicate would be slow, one for all would make a block's size change the numbers.
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


def _summarise(value: float, value_R: FloatArray, level: float) -> Interval:
    low, high = _percentiles(value_R, level)
    return Interval(value, low, high, level, len(value_R), int(np.isnan(value_R).sum()))


def _summarise_difference(value: float, value_R: FloatArray, level: float) -> Difference:
    known = value_R[~np.isnan(value_R)]
    low, high = _percentiles(value_R, level)
    p = math.nan
    if len(known) and not math.isnan(value):
        side = min(int((known <= 0).sum()), int((known >= 0).sum()))
        p = min(1.0, 2 * (side + 1) / (len(known) + 1))
    return Difference(value, low, high, level, len(value_R), len(value_R) - len(known), p)


def compute_reach(level: float) -> float:
    """Return how many standard errors a two-sided normal interval of this level reaches to either side."""
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
