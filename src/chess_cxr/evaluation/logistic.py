"""L2-penalised logistic regression, many fits at once on one set of films.

With an L2 penalty, the solution lies in the span of the films and does not depend on the axes.  So the features are
rotated once to their min(N, D) principal directions, without loss, where the Hessian is nearly diagonal: with this
scaling, L-BFGS needs tens of steps.  Folds and findings are solved together and share each pass over the features.

Shape suffixes: N films, D features, K principal directions, C classes or findings, G fits side by side, X 1 or C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg, optimize, special

from chess_cxr.evaluation.ranked_scores import FloatArray

_RANK = 1e-10  # directions with less than this part of the largest variance are rounding errors of float32 features


@dataclass(frozen=True)
class TurnedFeatures:
    """Features rotated to their principal directions: coordinate_NK, mean square spread_K, and the directions."""

    coordinate_NK: FloatArray
    spread_K: FloatArray
    direction_DK: FloatArray


@dataclass(frozen=True)
class Targets:
    """The targets of G fits: label_NC of 0 and 1, and weight_NGX, which sums to 1 over the films of a fit (0: no fit).

    One softmax over the C columns (X = 1), or with `multilabel` one sigmoid per column, each with its weights (X = C).
    """

    multilabel: bool
    label_NC: FloatArray
    weight_NGX: FloatArray


@dataclass(frozen=True)
class LogisticFit:
    """Coefficients along principal directions, weight_KGC, and intercept_GC."""

    weight_KGC: FloatArray
    intercept_GC: FloatArray

    def compute_scores(self, coordinate_NK: FloatArray) -> FloatArray:
        """Return the linear scores (log-odds) [N, G, C]."""
        score_NM = coordinate_NK @ self.weight_KGC.reshape(-1, self.intercept_GC.size)
        return score_NM.reshape(-1, *self.intercept_GC.shape) + self.intercept_GC


def turn_features(feature_ND: FloatArray) -> TurnedFeatures:
    """Rotate centred features to principal directions (K <= min(N, D)); all-zero features give K = 0."""
    film_count, feature_count = feature_ND.shape
    if film_count < feature_count:
        square_N, turned_NK = linalg.eigh(feature_ND @ feature_ND.T, driver="evd")
        keep = square_N > max(square_N[-1], 0.0) * _RANK
        root_K = np.sqrt(square_N[keep])
        direction_DK = feature_ND.T @ (turned_NK[:, keep] / root_K)
        coordinate_NK = turned_NK[:, keep] * root_K
    else:
        square_D, direction_DD = linalg.eigh(feature_ND.T @ feature_ND, driver="evd")
        direction_DK = direction_DD[:, square_D > max(square_D[-1], 0.0) * _RANK]
        coordinate_NK = feature_ND @ direction_DK
    spread_K = np.mean(coordinate_NK**2, axis=0)
    return TurnedFeatures(coordinate_NK, spread_K, direction_DK)


def solve_logistic(
    turned: TurnedFeatures,
    targets: Targets,
    strength_C: FloatArray,
    start: LogisticFit | None = None,
    tolerance: float = 1e-5,
) -> LogisticFit:
    """Minimise, for each fit, mean log-loss + strength_C / 2 * squared coefficients, without penalty on intercepts.

    tolerance: largest remaining gradient component, in coordinates scaled to unit curvature.
    """
    fits, columns = targets.weight_NGX.shape[1], targets.label_NC.shape[1]
    direction_count = len(turned.spread_K)
    share_C = np.clip(targets.label_NC.mean(axis=0), 1e-3, 1 - 1e-3)
    curvature_C = share_C * (1 - share_C)
    step_KC = 1 / np.sqrt(curvature_C * turned.spread_K[:, None] + strength_C)
    # the intercepts form a row below the K rows of coefficients
    step_JGC = np.vstack([step_KC, 1 / np.sqrt(curvature_C)])[:, None].repeat(fits, axis=1)
    if start is None:
        start = LogisticFit(np.zeros((direction_count, fits, columns)), np.log(share_C)[None].repeat(fits, axis=0))

    def compute_loss(scaled: FloatArray) -> tuple[float, FloatArray]:
        theta_JGC = scaled.reshape(step_JGC.shape) * step_JGC
        fit = LogisticFit(theta_JGC[:-1], theta_JGC[-1])
        score_NGC = fit.compute_scores(turned.coordinate_NK)
        loss_NGX, slope_NGC = compute_film_losses(targets, score_NGC)
        slope_NGC *= targets.weight_NGX
        penalty_KGC = strength_C * fit.weight_KGC
        loss = float(np.vdot(targets.weight_NGX, loss_NGX) + 0.5 * np.vdot(penalty_KGC, fit.weight_KGC))
        slope_KM = turned.coordinate_NK.T @ slope_NGC.reshape(len(slope_NGC), -1)
        slope_KGC = slope_KM.reshape(penalty_KGC.shape) + penalty_KGC
        return loss, (np.concatenate([slope_KGC, slope_NGC.sum(axis=0)[None]]) * step_JGC).ravel()

    theta = np.concatenate([start.weight_KGC, start.intercept_GC[None]])
    found = optimize.minimize(
        compute_loss,
        (theta / step_JGC).ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 500, "maxfun": 1000, "gtol": tolerance, "ftol": 0.0, "maxcor": 10},
    )
    theta_JGC = found.x.reshape(step_JGC.shape) * step_JGC
    return LogisticFit(theta_JGC[:-1], theta_JGC[-1])


def compute_film_losses(targets: Targets, score_NGC: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return each film's unweighted log-loss [N, G, X] in nats, and its gradient [N, G, C] by the scores."""
    label_NGC = targets.label_NC[:, None]
    if targets.multilabel:
        return np.logaddexp(0.0, score_NGC) - label_NGC * score_NGC, special.expit(score_NGC) - label_NGC
    top_NG1 = score_NGC.max(axis=2, keepdims=True)
    power_NGC = np.exp(score_NGC - top_NG1)
    total_NG1 = power_NGC.sum(axis=2, keepdims=True)
    loss_NG1 = np.log(total_NG1) + top_NG1 - (label_NGC * score_NGC).sum(axis=2, keepdims=True)
    return loss_NG1, power_NGC / total_NG1 - label_NGC
