"""How far probabilities lie from what happened, as sums over films, so that any number of weightings is one product.

Shape suffixes: K films that count, N weighted films, B bins, R replicates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from chess_cxr.evaluation.ranked_scores import FloatArray, WeightArray, divide_known, weigh

ECE_BINS = 15


def assign_bins(confidence_K: FloatArray, bins: int = ECE_BINS) -> NDArray[np.intp]:
    """Return the bin of each film, from 0: bins hold about as many films each, and equal values share one.

    Values that many films share (a saturated 1.0) leave fewer bins than asked for.
    """
    if not len(confidence_K):
        return np.zeros(0, dtype=np.intp)
    edge_B = np.quantile(confidence_K, np.arange(1, bins) / bins, method="higher")
    _, bin_K = np.unique(np.searchsorted(edge_B, confidence_K, side="right"), return_inverse=True)
    return bin_K


class CalibrationError:
    """Brier score and expected calibration error of one set of probabilities.

    confidence_K: the probability given.  hit_K: 1 where it came true, else 0.  square_K: squared error of each film.
    row_K: which of the N weighted films these are.
    ece: mean distance between confidence and share of hits over bins of equal mass (Guo et al. 2017, eq. 3, whose bins
    are of equal width).  The bins are those of all K films, whatever the weights.
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
        """Return {"brier": value_R, "ece": value_R}; NaN for weightings without a film."""
        sum_KR = weigh(self._sums, weight_NR)
        return {
            "brier": divide_known(sum_KR[0], sum_KR[1]),
            "ece": divide_known(np.abs(sum_KR[2:]).sum(axis=0), sum_KR[1]),
        }
