"""Regress what is known of films out of their features, to see what is left of a finding.

Linear: what a straight line of the known columns predicts of a feature is taken off.  A finding that goes with the
columns loses with them, so the difference says how much may rest on them, not how much does.

Shape suffixes: N films, D features, A known columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from chess_cxr.evaluation.ranked_scores import FloatArray
from chess_cxr.records import UsageError

RIDGE = 1e-6  # of the mean square of the known columns: columns that repeat each other have no single solution


@dataclass(frozen=True)
class Residuals:
    """A regression of features on known columns: their means, and the slopes of each feature."""

    known_mean_A: FloatArray
    slope_AD: FloatArray

    def take_off(self, feature_ND: ArrayLike, known_NA: ArrayLike) -> FloatArray:
        """Return the features without what the known columns predict of them; means stay."""
        shift_ND: FloatArray = (np.asarray(known_NA, np.float64) - self.known_mean_A) @ self.slope_AD
        left_ND: FloatArray = np.asarray(feature_ND, np.float64) - shift_ND
        return left_ND


def fit_residuals(feature_ND: ArrayLike, known_NA: ArrayLike) -> Residuals:
    """Regress features on known columns, by least squares with a small ridge, on the given (training) films."""
    feature, known = np.asarray(feature_ND, np.float64), np.asarray(known_NA, np.float64)
    if feature.ndim != 2 or known.ndim != 2 or len(feature) != len(known) or not len(known):
        raise UsageError(f"known columns of shape {known.shape} do not fit features of shape {feature.shape}")
    mean_A = known.mean(axis=0)
    centred_NA = known - mean_A
    gram_AA = centred_NA.T @ centred_NA
    ridge = RIDGE * max(float(np.trace(gram_AA)) / max(1, len(gram_AA)), 1e-12)
    product_AD = centred_NA.T @ (feature - feature.mean(axis=0))
    return Residuals(mean_A, np.linalg.solve(gram_AA + ridge * np.eye(len(gram_AA)), product_AD))
