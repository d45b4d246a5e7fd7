"""Holm's correction of p-values for multiple tests."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chess_cxr.records import UsageError


def correct_holm(p_K: ArrayLike) -> NDArray[np.float64]:
    """Return the corrected p-values of a family of K tests (Holm 1979).

    Controls the probability of any false positive in the family, for any dependence between the tests.
    NaN (a test that could not be made) remains NaN and does not count.  Raises UsageError for values outside 0..1.
    """
    p = np.asarray(p_K, dtype=np.float64)
    if p.ndim != 1 or np.any(p < 0.0) or np.any(p > 1.0):
        raise UsageError("Holm's correction takes one list of p-values from 0 to 1")
    known = np.flatnonzero(~np.isnan(p))
    rising = known[np.argsort(p[known], kind="stable")]
    corrected = np.full(len(p), math.nan)
    corrected[rising] = np.minimum(np.maximum.accumulate(p[rising] * np.arange(len(rising), 0, -1)), 1.0)
    return corrected
