"""Intervals and tests of a pre-training recipe that was run several times with different seeds.

A recipe's value is the mean over its runs.  Three things vary: test patients and label draws, which are resampled as in
`intervals`, and the seed, of which there are few runs.  The seed's part is Student's: to every replicate of the mean a
deviation s / sqrt(S) * t is added, with t drawn from S - 1 degrees of freedom and s the standard deviation over the S
runs on the whole test set.  So where seeds vary most, the interval is Student's t interval over runs; where patients
do, the percentile interval.  One run says nothing of its seed, and its interval covers patients and draws alone.

Shape suffixes: S runs, D draws, R replicates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from chess_cxr.evaluation.intervals import (
    Difference,
    DrawReplicates,
    Interval,
    resample_draws,
    summarise,
    summarise_difference,
)
from chess_cxr.evaluation.ranked_scores import FloatArray, mean_known
from chess_cxr.records import UsageError

_STREAM = 4  # of the random generator


def average_runs(runs: Sequence[DrawReplicates], seed: int = 0, level: float = 0.95) -> Interval:
    """Return the mean over the runs of a recipe, and its interval over patients, draws and seeds."""
    whole = _average(runs)
    value_R = resample_draws(whole.value_DR, seed) + _draw_seeds(runs, (seed, _STREAM, 0))
    return summarise(float(list_runs(runs).mean()), value_R, level)


def subtract_runs(
    first: Sequence[DrawReplicates], second: Sequence[DrawReplicates], seed: int = 0, level: float = 0.95
) -> Difference:
    """Return the difference of two recipes, paired by patients and draws; their seeds have nothing in common.

    Raises UsageError for different numbers of draws or replicates.
    """
    one, other = _average(first), _average(second)
    if one.value_DR.shape != other.value_DR.shape:
        raise UsageError("cannot pair recipes with different draws or replicates")
    gap_R = resample_draws(one.value_DR - other.value_DR, seed)
    gap_R = gap_R + _draw_seeds(first, (seed, _STREAM, 0)) - _draw_seeds(second, (seed, _STREAM, 1))
    return summarise_difference(float(list_runs(first).mean() - list_runs(second).mean()), gap_R, level)


def list_runs(runs: Sequence[DrawReplicates]) -> FloatArray:
    """Return the value of each run on the whole test set, mean over draws: [S]."""
    return np.array([float(mean_known(run.value_D[None], axis=1)[0]) for run in runs])


def compute_spread(runs: Sequence[DrawReplicates]) -> float:
    """Return the standard deviation over runs; NaN for a single one."""
    return float(list_runs(runs).std(ddof=1)) if len(runs) > 1 else math.nan


def _average(runs: Sequence[DrawReplicates]) -> DrawReplicates:
    if not runs or len({run.value_DR.shape for run in runs}) > 1:
        raise UsageError("the runs of a recipe need the same draws and replicates, and there must be one at least")
    return DrawReplicates(
        np.mean([run.value_D for run in runs], axis=0), np.mean([run.value_DR for run in runs], axis=0)
    )


def _draw_seeds(runs: Sequence[DrawReplicates], stream: tuple[int, ...]) -> FloatArray:
    """Return the deviation of a recipe's mean that its seeds may cause, for each replicate."""
    replicates = runs[0].value_DR.shape[1]
    if len(runs) < 2:
        return np.zeros(replicates)
    drawn_R = np.random.default_rng(stream).standard_t(len(runs) - 1, replicates)
    deviation_R: FloatArray = compute_spread(runs) / math.sqrt(len(runs)) * np.asarray(drawn_R)
    return deviation_R
