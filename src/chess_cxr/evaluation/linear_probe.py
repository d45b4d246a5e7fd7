"""Linear probe: logistic regression on frozen features, with a penalty chosen by cross-validation.

Shape suffixes: N films, D features, C classes or findings, G folds, X 1 or C (one column for all classes, or each).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from chess_cxr.evaluation.label_fractions import assign_folds
from chess_cxr.evaluation.logistic import Targets, TurnedFeatures, compute_film_losses, solve_logistic, turn_features
from chess_cxr.evaluation.metrics import check_classes, check_findings
from chess_cxr.evaluation.ranked_scores import FloatArray
from chess_cxr.records import UsageError

# Strong to weak, in half decades from 0.03 to 1e-6; the path ends early if the held-out loss keeps rising.
# Stronger penalties predict little but the class shares, but with 30 films a noisy loss would sometimes choose them.
STRENGTHS = tuple(10.0 ** (-1.5 - 0.5 * step) for step in range(10))
DEFAULT_STRENGTH = 1e-2
_MOST_FOLDS = 5
_PATIENCE = 2
_CONSTANT = 1e-6  # a feature that varies by less than this share of its size is constant, up to float32 rounding


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe on features scaled as (feature - mean_D) * scale_D; scale_D is 0 for constant features.

    strength_C: the penalty of each column, NaN for columns that could not be fitted (see `notes`).  validation: every
    tried strength with its held-out log-loss in nats, one number for all classes or one for each fitted finding; empty
    without held-out films.  notes: deviations from the request, one line each.
    """

    multilabel: bool
    mean_D: FloatArray
    scale_D: FloatArray
    coefficient_DC: FloatArray
    intercept_C: FloatArray
    strength_C: FloatArray
    validation: tuple[tuple[float, FloatArray], ...] = ()
    notes: tuple[str, ...] = ()

    def predict_scores(self, feature_ND: ArrayLike) -> FloatArray:
        """Return probabilities [N, C]: of each class (rows sum to 1), or of each finding by itself."""
        feature = _check_features(feature_ND)
        if feature.shape[1] != len(self.mean_D):
            raise UsageError(f"the probe was fitted on {len(self.mean_D)} features, not on {feature.shape[1]}")
        score_NC = ((feature - self.mean_D) * self.scale_D) @ self.coefficient_DC + self.intercept_C
        probability: FloatArray = special.expit(score_NC) if self.multilabel else special.softmax(score_NC, axis=1)
        return probability

    def fold_scaling(self) -> tuple[FloatArray, FloatArray]:
        """Return weight_CD and bias_C of a linear layer with the same scores on features without scaling."""
        weight_CD: FloatArray = (self.coefficient_DC * self.scale_D[:, None]).T
        return weight_CD, self.intercept_C - weight_CD @ self.mean_D


def fit_linear_probe(
    feature_ND: ArrayLike,
    label: ArrayLike,
    patient_N: ArrayLike,
    *,
    names: Sequence[str],
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearProbe:
    """Fit a softmax probe for classes (label: int [N]), or a logistic probe per finding (label: float [N, L] with NaN).

    names: of the C classes or L findings.  A class without a training film gets probability 0; a finding with only one
    label gets one score for all films; both get a note.
    Minimises mean log-loss + strength / 2 * sum of squared coefficients, without penalty on the intercept, on features
    that are standardised over the given films and divided by sqrt(D): so a strength means the same for any number of
    features.  (scikit-learn's C on standardised features is 1 / (strength * N * D).)
    Chooses the strength with the least held-out log-loss in stratified cross-validation by patient, with up to 5 folds;
    each finding has its own.  If fewer than two folds have all classes in training, or a finding is never held out, it
    takes DEFAULT_STRENGTH and adds a note.
    The same arguments give the same probe.
    Raises UsageError if the arrays do not fit each other or contain infinity or NaN (except unknown findings).
    """
    feature = _check_features(feature_ND)
    patient = np.asarray(patient_N)
    multilabel = np.ndim(label) == 2
    label_NC, known_NC = _encode_labels(label, names)
    if not len(feature) == len(label_NC) == len(patient):
        counts = f"{len(feature)} rows of features, {len(label_NC)} labels, {len(patient)} patients"
        raise UsageError(f"{counts}: must agree")
    path_S = sorted({float(strength) for strength in strengths}, reverse=True)
    if not path_S or not 0.0 < path_S[-1] <= path_S[0] < math.inf:
        raise UsageError("the probe needs at least one strength, all above 0 and finite")

    mean_D, scale_D = _standardise(feature)
    coefficient_DC = np.zeros((feature.shape[1], len(names)))
    intercept_C, fit_C, notes = _fit_constants(label_NC, known_NC, names, multilabel)
    strength_C = np.full(len(names), math.nan)
    validation: list[tuple[float, FloatArray]] = []
    if fit_C.any():
        turned = turn_features((feature - mean_D) * scale_D)
        label_NF, known_NX = label_NC[:, fit_C], (known_NC[:, fit_C] if multilabel else known_NC[:, :1])
        fold_N = assign_folds(patient, label, min(_MOST_FOLDS, len(np.unique(patient))), seed)
        validation = _follow_path(turned, _hold_out(multilabel, label_NF, known_NX, fold_N), fold_N, path_S)
        strength_F, blind_F = _choose_strengths(validation, int(fit_C.sum()))
        whole = Targets(multilabel, label_NF, (known_NX / known_NX.sum(axis=0))[:, None])
        fit = solve_logistic(turned, whole, strength_F)
        coefficient_DC[:, fit_C] = turned.direction_DK @ fit.weight_KGC[:, 0]
        intercept_C[fit_C] = fit.intercept_GC[0]
        strength_C[fit_C] = strength_F
        blind = [names[c] for c in np.flatnonzero(fit_C)[blind_F].tolist()]
        if blind:
            notes.append(f"{', '.join(blind)}: too few patients to choose a strength, took {DEFAULT_STRENGTH:g}")
    return LinearProbe(
        multilabel, mean_D, scale_D, coefficient_DC, intercept_C, strength_C, tuple(validation), tuple(notes)
    )


def tell_edges(probe: LinearProbe, names: Sequence[str], strengths: Sequence[float] = STRENGTHS) -> tuple[str, ...]:
    """Warn of columns whose strength, chosen by held-out films, is the first or last of those tried: a line each.

    A stronger or weaker penalty might have done better.
    """
    if not probe.validation:
        return ()
    ends = {max(strengths): "strong", min(strengths): "weak"}
    columns = zip(names, probe.strength_C.tolist(), strict=True)
    found = {name: strength for name, strength in columns if strength in ends}
    if found and not probe.multilabel:
        found = {"all classes": next(iter(found.values()))}
    return tuple(
        f"{name}: the chosen strength {strength:.2g} lies at the {ends[strength]} end of its grid"
        for name, strength in found.items()
    )


def _encode_labels(label: ArrayLike, names: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    """Return labels as 0/1 with unknown ones as 0, and whether they are known as 0/1, both [N, C]."""
    if np.ndim(label) == 2:
        finding_NC = check_findings(label, names)
        return np.nan_to_num(finding_NC, nan=0.0), (~np.isnan(finding_NC)).astype(np.float64)
    label_NC = np.eye(len(names))[check_classes(label, names)]
    return label_NC, np.ones_like(label_NC)


def _standardise(feature_ND: FloatArray) -> tuple[FloatArray, FloatArray]:
    mean_D, spread_D = feature_ND.mean(axis=0), feature_ND.std(axis=0)
    varies_D = spread_D > _CONSTANT * np.abs(feature_ND).max(axis=0)
    root = math.sqrt(feature_ND.shape[1])
    return mean_D, np.divide(1.0, spread_D * root, out=np.zeros_like(spread_D), where=varies_D)


def _fit_constants(
    label_NC: FloatArray, known_NC: FloatArray, names: Sequence[str], multilabel: bool
) -> tuple[FloatArray, NDArray[np.bool_], list[str]]:
    """Return intercepts for columns that cannot be fitted, whether each column can, and a note on those that cannot."""
    positive_C, known_C = label_NC.sum(axis=0), known_NC.sum(axis=0)
    if multilabel:
        fit_C = (positive_C > 0) & (positive_C < known_C)
        seen = {True: "only present", False: "only absent"}
        notes = [
            f"{names[c]}: {seen[bool(positive_C[c])] if known_C[c] else 'unknown'} in training, one score for all films"
            for c in np.flatnonzero(~fit_C).tolist()
        ]
        return np.log((positive_C + 0.5) / (known_C - positive_C + 0.5)), fit_C, notes
    present_C = positive_C > 0
    notes = [f"{names[c]}: no training film, probability 0" for c in np.flatnonzero(~present_C).tolist()]
    return np.where(present_C, 0.0, -np.inf), present_C & (present_C.sum() > 1), notes


def _hold_out(multilabel: bool, label_NC: FloatArray, known_NX: FloatArray, fold_N: NDArray[np.intp]) -> Targets:
    """Return one fit per fold, on the films outside it; fits without all classes get no weight."""
    outside_NG = fold_N[:, None] != np.arange(fold_N.max() + 1)
    weight_NGX = outside_NG[:, :, None] * known_NX[:, None]
    positive_GC = np.einsum("ngx,nc->gc" if not multilabel else "ngc,nc->gc", weight_NGX, label_NC)
    total_GX = weight_NGX.sum(axis=0)
    sound_GC = (positive_GC > 0) & (positive_GC < total_GX)
    sound_GX = sound_GC if multilabel else sound_GC.all(axis=1, keepdims=True)
    return Targets(multilabel, label_NC, weight_NGX * (sound_GX / np.maximum(total_GX, 1.0)))


def _follow_path(
    turned: TurnedFeatures, held: Targets, fold_N: NDArray[np.intp], path_S: Sequence[float]
) -> list[tuple[float, FloatArray]]:
    """Return (strength, held-out log-loss of each column [X]), strong to weak; NaN with fewer than two folds."""
    film_N = np.arange(len(fold_N))
    sound_GX = held.weight_NGX.sum(axis=0) > 0
    known_NX = (held.weight_NGX > 0).any(axis=1)
    scored_NX = known_NX & sound_GX[fold_N] & (sound_GX.sum(axis=0) > 1)
    if held.multilabel:
        # a loss needs films with and without the finding
        positive_X = (held.label_NC * scored_NX).sum(axis=0)
        scored_NX &= (positive_X > 0) & (positive_X < scored_NX.sum(axis=0))
    if not scored_NX.any():
        return []
    losses: list[tuple[float, FloatArray]] = []
    fit = None
    for strength in path_S:
        fit = solve_logistic(turned, held, np.full(held.label_NC.shape[1], strength), fit, tolerance=1e-4)
        loss_NGX, _ = compute_film_losses(held, fit.compute_scores(turned.coordinate_NK))
        count_X = scored_NX.sum(axis=0)
        total_X = np.where(scored_NX, loss_NGX[film_N, fold_N], 0.0).sum(axis=0)
        losses.append((strength, np.divide(total_X, count_X, out=np.full(len(count_X), math.nan), where=count_X > 0)))
        recent = np.stack([loss_X for _, loss_X in losses[-_PATIENCE - 1 :]])
        if len(losses) > _PATIENCE and not np.any(np.diff(recent, axis=0) <= 0):
            break
    return losses


def _choose_strengths(
    losses: Sequence[tuple[float, FloatArray]], column_count: int
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return the best strength of each column, and whether the column had no loss to choose by."""
    if not losses:
        return np.full(column_count, DEFAULT_STRENGTH), np.ones(column_count, dtype=np.bool_)
    loss_SC = np.stack([np.broadcast_to(loss_X, column_count) for _, loss_X in losses])
    blind_C = np.asarray(np.isnan(loss_SC).any(axis=0))
    path_S = np.array([strength for strength, _ in losses])
    best_C = path_S[np.where(np.isnan(loss_SC), np.inf, loss_SC).argmin(axis=0)]
    return np.where(blind_C, DEFAULT_STRENGTH, best_C), blind_C


def _check_features(feature_ND: ArrayLike) -> FloatArray:
    feature = np.asarray(feature_ND, dtype=np.float64)
    if feature.ndim != 2 or feature.shape[1] == 0 or len(feature) == 0:
        raise UsageError(f"features must have one row per film, not shape {feature.shape}")
    if not np.all(np.isfinite(feature)):
        raise UsageError("features hold NaN or infinity: the encoder has diverged or met a blank film")
    return feature
