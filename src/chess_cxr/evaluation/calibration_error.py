"""Brier score and expected calibration error, as sums over films: any number of weightings is one product.

Shape suffixes: K films that count, N weighted films, B bins, R replicates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from chess_cxr.evaluation.ranked_scores import FloatArray, WeightArray, divide_known, weigh

ECE_BINS = 15


def assign_bins(confidence_K: FloatArray, bins: int = ECE_BINS) -> NDArray[np.intp]:
    """Assign each film to a bin, from 0; bins hold about equally many films, and equal values share a bin.

    Returns fewer bins than requested if many films have the same value, such as a saturated 1.0.
    """
    if not len(confidence_K):
        return np.zeros(0, dtype=np.intp)
    edge_B = np.quantile(confidence_K, np.arange(1, bins) / bins, method="higher")
    _, bin_K = np.unique(np.searchsorted(edge_B, confidence_K, side="right"), return_inverse=True)
    return bin_K


class CalibrationError:
    """Brier score and expected calibration error of one set of probabilities.

    confidence_K: predicted probability.  hit_K: 1 if it came true, else 0.  square_K: squared error of each film.
    row_K: indices of these films among the N weighted films.
    ece: mean distance between confidence and share of hits over bins of equal mass (Guo et al. 2017, eq. 3, with bins
    of equal width).  The bins do not depend on the weights.
    """

    def __init__(
        self,
        confidence_K: FloatArray,
        hit_K: FloatArray,
        square_K: FloatArray,
        row_K: NDArray[np.intp],
        film_count: int,
    ) -> None:
        bin_K = assign_bins(confidence_K)
        bins = int(bin_K.max()) + 1 if len(bin_K) else 0
        value = np.concatenate([square_K, np.ones(len(row_K)), confidence_K - hit_K])
        row = np.concatenate([np.zeros_like(bin_K), np.ones_like(bin_K), bin_K + 2])
        self._sums = sparse.csr_array((value, (row, np.tile(row_K, 3))), shape=(bins + 2, film_count))

    def compute(self, weight_NR: WeightArray) -> dict[str, FloatArray]:
        """Return {"brier": value_R, "ece": value_R}; NaN for weightings without films."""
        sum_KR = weigh(self._sums, weight_NR)
        return {
            "brier": divide_known(sum_KR[0], sum_KR[1]),
            "ece": divide_known(np.abs(sum_KR[2:]).sum(axis=0), sum_KR[1]),
        }
