"""ROC and precision-recall metrics of one class against the rest, for any number of film weightings at once.

The bootstrap needs the same areas under a thousand weightings of the same films.  They change only at the scores of the
class's own films, so the rest is summed between these thresholds: two sparse products with a block of weights and a
cumulative sum over thresholds, for all replicates of the block at once.

Shape suffixes: N films, R replicates, G distinct scores of the class's films, lowest first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

FloatArray = NDArray[np.float64]
WeightArray = NDArray[np.floating[Any]]

_ROWS = 32  # thresholds per product with a triangle of ones, which computes cumulative sums
_ROUNDING = 1e-12  # shares such as 0.9 are inexact in binary, and a threshold that meets its level exactly must count


class RankedScores:
    """Films of one class against the rest, sorted once by score.

    positive_K: bool.  score_K: finite, higher means more likely.  row_K: indices of these films among the `film_count`
    weighted films; None for all films in order.
    """

    def __init__(
        self,
        positive_K: NDArray[np.bool_],
        score_K: FloatArray,
        row_K: NDArray[np.intp] | None = None,
        film_count: int | None = None,
    ) -> None:
        rows = np.arange(len(score_K)) if row_K is None else row_K
        threshold, place = np.unique(score_K[positive_K], return_inverse=True)
        rest, rest_rows = score_K[~positive_K], rows[~positive_K]
        above = np.searchsorted(threshold, rest, side="left")
        tied = np.append(threshold, math.nan)[above] == rest
        # a multiple of _ROWS, with at least one more than the scores: the threshold above all films
        count = (len(threshold) // _ROWS + 1) * _ROWS
        shape = (count, len(score_K) if film_count is None else film_count)
        self._present = build_indicator(place, rows[positive_K], shape)
        self._between = build_indicator(above[~tied], rest_rows[~tied], shape)
        self._tied = build_indicator(above[tied], rest_rows[tied], shape) if tied.any() else None

    def tally(self, weight_NR: WeightArray) -> ScoreTally:
        """Sum the weights [N, R] of the class and of the rest at each threshold."""
        present_GR = weigh(self._present, weight_NR)
        passed_GR = _run_sum(present_GR)
        found_GR = passed_GR[-1] - passed_GR + present_GR
        below_GR = _run_sum(weigh(self._between, weight_NR))
        if self._tied is None:
            return ScoreTally(present_GR, found_GR, below_GR)
        tied_GR = weigh(self._tied, weight_NR)
        below_GR += _run_sum(tied_GR) - tied_GR
        return ScoreTally(present_GR, found_GR, below_GR, tied_GR)

    def auroc(self, weight_RN: WeightArray) -> FloatArray:
        """Return `ScoreTally.compute_auroc` for each row of weights."""
        return self.tally(weight_RN.T).compute_auroc()

    def auprc(self, weight_RN: WeightArray) -> FloatArray:
        """Return `ScoreTally.compute_auprc` for each row of weights."""
        return self.tally(weight_RN.T).compute_auprc()


@dataclass(frozen=True)
class ScoreTally:
    """Sums of weights at rising thresholds, the last above all films.

    present_GR: of the class at exactly this score.  found_GR: of the class here or above.  below_GR: of the rest below.
    tied_GR: of the rest at exactly this score; None without ties.
    Every result is NaN for weightings without the class or without the rest.
    """

    present_GR: WeightArray
    found_GR: WeightArray
    below_GR: WeightArray
    tied_GR: WeightArray | None = None

    def compute_auroc(self) -> FloatArray:
        """Return the probability that a film of the class scores above one of the rest; ties count half."""
        below_GR = self.below_GR if self.tied_GR is None else self.below_GR + self.tied_GR * np.float32(0.5)
        wins_R = np.multiply(self.present_GR, below_GR, dtype=np.float64).sum(axis=0)
        return divide_known(wins_R, self._class_R * self._rest_R)

    def compute_auprc(self) -> FloatArray:
        """Return the average precision: the precision at each threshold, weighted by the recall gained there."""
        flagged_GR = self.below_GR[-1] - self.below_GR + self.found_GR
        # without flagged films the numerator is 0 too: divide by any positive number
        np.maximum(flagged_GR, np.finfo(flagged_GR.dtype).tiny, out=flagged_GR)
        gain_GR = np.divide(self.found_GR, flagged_GR, out=flagged_GR)
        gain_GR *= self.present_GR
        area_R = divide_known(gain_GR.sum(axis=0, dtype=np.float64), self._class_R)
        return _keep_where(self._rest_R > 0, area_R)

    def find_sensitivity(self, specificity: float) -> FloatArray:
        """Return the largest sensitivity of a threshold with at least this specificity, without interpolation."""
        place_R = (self.below_GR < specificity * (1 - _ROUNDING) * self._rest_R).sum(axis=0)
        share_R = divide_known(_pick(self.found_GR, place_R), self._class_R)
        return _keep_where(self._rest_R > 0, share_R)

    def find_specificity(self, sensitivity: float) -> FloatArray:
        """Return the largest specificity of a threshold with at least this sensitivity, without interpolation."""
        place_R = (self.found_GR >= sensitivity * (1 - _ROUNDING) * self._class_R).sum(axis=0) - 1
        share_R = divide_known(_pick(self.below_GR, place_R), self._rest_R)
        return _keep_where(self._class_R > 0, share_R)

    @property
    def _class_R(self) -> FloatArray:
        return np.asarray(self.found_GR[0], dtype=np.float64)

    @property
    def _rest_R(self) -> FloatArray:
        return np.asarray(self.below_GR[-1], dtype=np.float64)


def build_indicator(row: NDArray[np.intp], column: NDArray[np.intp], shape: tuple[int, int]) -> sparse.csr_array:
    """Return a sparse matrix with ones at these places; with `weigh` it sums the weights of each row's films."""
    return sparse.csr_array((np.ones(len(row), np.float32), (row, column)), shape=shape)


def weigh(matrix_KN: sparse.csr_array, weight_NR: WeightArray) -> WeightArray:
    """Return matrix @ weights [K, R] in the precision of the weights; float32 is exact for integers below 2**24."""
    product: WeightArray = matrix_KN.astype(weight_NR.dtype, copy=False) @ weight_NR
    return product


def divide_known(numerator: WeightArray, denominator: NDArray[np.generic]) -> FloatArray:
    """Divide in float64; NaN, without a warning, if the denominator is not above zero."""
    bottom = np.asarray(denominator, dtype=np.float64)
    ratio: FloatArray = np.divide(
        numerator, bottom, out=np.full(np.broadcast_shapes(numerator.shape, bottom.shape), math.nan), where=bottom > 0
    )
    return ratio


def mean_known(value: FloatArray, axis: int) -> FloatArray:
    """Return the mean over `axis` of the values that are not NaN; NaN, without a warning, if there are none."""
    known = ~np.isnan(value)
    return divide_known(np.where(known, value, 0.0).sum(axis=axis), known.sum(axis=axis))


def _run_sum(value_GR: WeightArray) -> WeightArray:
    """Return the cumulative sum over rows, a multiple of _ROWS; twice as fast as np.cumsum here."""
    block_BKR = value_GR.reshape(-1, _ROWS, value_GR.shape[1])
    sum_BKR: WeightArray = np.tri(_ROWS, dtype=value_GR.dtype) @ block_BKR
    sum_BKR[1:] += np.cumsum(sum_BKR[:-1, -1], axis=0)[:, None]
    return sum_BKR.reshape(value_GR.shape)


def _keep_where(known_R: NDArray[np.bool_], value_R: FloatArray) -> FloatArray:
    value_R[~known_R] = math.nan
    return value_R


def _pick(value_GR: WeightArray, place_R: NDArray[np.intp]) -> WeightArray:
    picked_R: WeightArray = np.take_along_axis(value_GR, place_R[None], axis=0)[0]
    return picked_R
