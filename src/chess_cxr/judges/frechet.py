"""Distances between generated and real films in a network's feature space: Fréchet distance, KID and FID∞.

The Fréchet distance (FID, Heusel et al. 2017) compares two normal distributions.  It decreases with the number of
films, even if nothing else changes (Bińkowski et al. 2018): only distances at equal counts are comparable, so every
result states its counts.  KID has no such bias, and FID∞ (Chong & Forsyth 2020) removes it by extrapolation.

Shape suffixes: N, M films of the two sets, D features, R replicates, S subsets, C counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chess_cxr.evaluation.intervals import Interval
from chess_cxr.evaluation.ranked_scores import FloatArray
from chess_cxr.records import UsageError

Distance = Callable[[FloatArray, FloatArray], float]

FEWEST_GROUPS = 4
LARGEST_KID_SUBSET = 1000


@dataclass(frozen=True)
class KernelDistance:
    """KID: mean over subsets, and standard deviation of a subset (not of the mean)."""

    mean: float
    std: float
    subset_size: int
    subsets: int


@dataclass(frozen=True)
class Extrapolation:
    """FID∞: the intercept of a line through distances at several counts, over 1 / count.

    value: mean of the intercepts of `repeats` draws; may be negative.  std: their spread; it covers the draw of films
    from the sets, not the choice of the sets.  count_C, distance_C: the points of the line, as means over draws.
    misfit: root mean square of the line's residuals; if it is not small compared with `distance_C`, there are too few
    films for the number of features, and the value means little.
    """

    value: float
    std: float
    count_C: tuple[int, ...]
    distance_C: tuple[float, ...]
    misfit: float
    repeats: int


@dataclass(frozen=True)
class FeatureDistance:
    """Distances between two sets of films on one feature network.

    network, layer: of the features.  dimension: number of features.  count, other_count: films of the two sets.
    frechet: the distance at these counts with its interval, which does not cover the bias of the counts (see
    `compute_frechet_interval`).  kid, extrapolated: two distances without that bias.
    """

    network: str
    layer: str
    dimension: int
    count: int
    other_count: int
    frechet: Interval
    kid: KernelDistance
    extrapolated: Extrapolation
    seed: int

    @property
    def rank_deficient(self) -> bool:
        """Whether one of the sets has no more films than features, so that its covariance is singular.

        The distance is still defined, and still ranks sets of equal counts, but most of it is bias.
        """
        return min(self.count, self.other_count) <= self.dimension

    def as_text(self) -> str:
        """Return one readable line."""
        low = " (fewer films than features: mostly bias, compare at equal counts only)" if self.rank_deficient else ""
        return (
            f"{self.network}, {self.layer}, {self.dimension} features, {self.count} against {self.other_count} films: "
            f"Fréchet {self.frechet.value:.4g} [{self.frechet.low:.4g}, {self.frechet.high:.4g}]{low}, "
            f"KID {self.kid.mean:.4g} ± {self.kid.std:.2g} ({self.kid.subsets} subsets of {self.kid.subset_size}), "
            f"FID∞ {self.extrapolated.value:.4g} ± {self.extrapolated.std:.2g} (misfit {self.extrapolated.misfit:.2g})"
        )


def measure_feature_distance(
    feature_ND: ArrayLike,
    feature_MD: ArrayLike,
    network: str,
    layer: str,
    *,
    group_N: ArrayLike | None = None,
    group_M: ArrayLike | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> FeatureDistance:
    """Compute all three distances between two sets of films, with counts and names.

    feature_ND, feature_MD: finite features of the same network.  group_N, group_M: the group of each film (its patient;
    the source film of a generated film); by default each film is a group.  A name in both sets is one group.
    Raises UsageError if the sets do not fit each other or are too small.
    """
    first, second = _check_features(feature_ND, feature_MD)
    return FeatureDistance(
        network,
        layer,
        first.shape[1],
        len(first),
        len(second),
        compute_frechet_interval(first, second, group_N, group_M, replicates=replicates, seed=seed),
        compute_kid(first, second, seed=seed),
        extrapolate_frechet_distance(first, second, seed=seed),
        seed,
    )


def compute_frechet_distance(feature_ND: ArrayLike, feature_MD: ArrayLike) -> float:
    """Return the squared Fréchet distance of the normal distributions of two sets of features, in float64.

    |mean difference|² + trace(S1) + trace(S2) - 2 trace((S1 S2)^½).  The last trace is the sum of the singular values
    of the product of any square roots of S1 and S2, such as the centred features.  So no covariance is computed or
    inverted, and singular ones (no more films than features) need no special care.  With so few films the distance is
    biased strongly upwards, though: see `FeatureDistance.rank_deficient`.
    """
    first, second = _check_features(feature_ND, feature_MD)
    gap_D = first.mean(axis=0) - second.mean(axis=0)
    root, other_root = _compute_root(first), _compute_root(second)
    overlap = float(np.linalg.svd(root @ other_root.T, compute_uv=False).sum())
    return max(0.0, float(gap_D @ gap_D + (root**2).sum() + (other_root**2).sum()) - 2 * overlap)


def compute_kid(
    feature_ND: ArrayLike, feature_MD: ArrayLike, *, subset_size: int | None = None, subsets: int = 100, seed: int = 0
) -> KernelDistance:
    """Compute KID: unbiased MMD² with the kernel (x·y / D + 1)³ over random subsets (Bińkowski et al. 2018).

    subset_size: films per set in a subset, drawn without replacement; by default 1000, but at most half of the smaller
    set, so that subsets differ.  The result may be negative, which means that no difference was found.
    """
    first, second = _check_features(feature_ND, feature_MD)
    smaller = min(len(first), len(second))
    size = min(LARGEST_KID_SUBSET, max(2, smaller // 2)) if subset_size is None else subset_size
    if not 2 <= size <= smaller or subsets < 1:
        raise UsageError(f"KID needs subsets of 2 to {smaller} films and at least one of them, not {subsets} of {size}")
    rng = np.random.default_rng((seed, 1))
    value_S = [compute_mmd(_draw_films(first, size, rng), _draw_films(second, size, rng)) for _ in range(subsets)]
    return KernelDistance(float(np.mean(value_S)), float(np.std(value_S)), size, subsets)


def compute_mmd(feature_ND: FloatArray, feature_MD: FloatArray) -> float:
    """Return the unbiased MMD² of two sets of at least two films with the kernel (x·y / D + 1)³."""
    count, other_count = len(feature_ND), len(feature_MD)
    within, other_within = _compute_kernel(feature_ND, feature_ND), _compute_kernel(feature_MD, feature_MD)
    return float(
        (within.sum() - np.trace(within)) / (count * (count - 1))
        + (other_within.sum() - np.trace(other_within)) / (other_count * (other_count - 1))
        - 2 * _compute_kernel(feature_ND, feature_MD).mean()
    )


def extrapolate_frechet_distance(
    feature_ND: ArrayLike, feature_MD: ArrayLike, *, counts: int = 8, repeats: int = 10, seed: int = 0
) -> Extrapolation:
    """Extrapolate the Fréchet distance to infinitely many films (FID∞, Chong & Forsyth 2020).

    Draws the same number of films from both sets, without replacement, for `counts` numbers in equal steps from a third
    of the smaller set to all of it.  The paper draws from the generated set only, and keeps the bias of a small real
    set.
    """
    first, second = _check_features(feature_ND, feature_MD)
    smaller = min(len(first), len(second))
    if smaller < 3 * counts or counts < 3 or repeats < 1:
        raise UsageError(f"FID∞ from {counts} counts needs at least {3 * max(counts, 3)} films a set, not {smaller}")
    count_C = np.unique(np.linspace(smaller // 3, smaller, counts).astype(int))
    rng = np.random.default_rng((seed, 2))
    distance_RC = np.empty((repeats, len(count_C)))
    for place, number in np.ndindex(distance_RC.shape):
        drawn = (_draw_films(features, int(count_C[number]), rng) for features in (first, second))
        distance_RC[place, number] = compute_frechet_distance(*drawn)
    line_2R = np.polynomial.polynomial.polyfit(1 / count_C, distance_RC.T, 1)
    distance_C = distance_RC.mean(axis=0)
    missed_C = distance_C - line_2R[0].mean() - line_2R[1].mean() / count_C
    return Extrapolation(
        float(line_2R[0].mean()),
        float(line_2R[0].std(ddof=1)) if repeats > 1 else math.nan,
        tuple(int(n) for n in count_C),
        tuple(float(value) for value in distance_C),
        float(np.sqrt((missed_C**2).mean())),
        repeats,
    )


def compute_frechet_interval(
    feature_ND: ArrayLike,
    feature_MD: ArrayLike,
    group_N: ArrayLike | None = None,
    group_M: ArrayLike | None = None,
    *,
    replicates: int = 200,
    seed: int = 0,
    level: float = 0.95,
    distance: Distance | None = None,
) -> Interval:
    """Return the interval of a distance at these counts, resampling whole groups.

    A bootstrap draws films twice, so it has fewer different films and a larger Fréchet distance: its replicates all lie
    above the value.  Instead each replicate takes half of the groups without replacement.  Half samples are biased too,
    but equally so, and their spread about their mean is that of the whole sample (delete-half jackknife, Shao & Wu
    1989).  The interval is this spread, reflected and centred on the value.
    It covers the choice of films for one fixed generator, and does not correct the bias of the counts.
    A group in both sets is drawn in both.  distance: the Fréchet distance by default; `compute_mmd` works too.
    """
    first, second = _check_features(feature_ND, feature_MD)
    names, other_names = name_groups(group_N, len(first), "first"), name_groups(group_M, len(second), "second")
    compute = distance or compute_frechet_distance
    value = compute(first, second)
    shared = np.intersect1d(names, other_names)
    alone, other_alone = np.setdiff1d(names, other_names), np.setdiff1d(other_names, names)
    for count in (len(shared) + len(alone), len(shared) + len(other_alone)):
        if count < FEWEST_GROUPS:
            raise UsageError(f"an interval needs at least {FEWEST_GROUPS} groups in each set, not {count}")
    rng = np.random.default_rng((seed, 3))
    value_R = np.empty(replicates)
    for place in range(replicates):
        both, one, other = (_draw_half(part, rng) for part in (shared, alone, other_alone))
        value_R[place] = compute(
            first[np.isin(names, both) | np.isin(names, one)],
            second[np.isin(other_names, both) | np.isin(other_names, other)],
        )
    low, high = np.quantile(value_R - value_R.mean(), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, value - float(high), value - float(low), level, replicates)


def name_groups(groups: ArrayLike | None, count: int, kind: str) -> NDArray[np.str_]:
    """Return the group name of each of `count` films; without groups, names that no other kind of films has."""
    names = [f"\0{kind} {place}" for place in range(count)] if groups is None else np.asarray(groups).tolist()
    if len(names) != count:
        raise UsageError(f"{len(names)} groups do not fit {count} {kind} films")
    return np.array([str(name) for name in names])


def _check_features(feature_ND: ArrayLike, feature_MD: ArrayLike) -> tuple[FloatArray, FloatArray]:
    first, second = (np.asarray(features, dtype=np.float64) for features in (feature_ND, feature_MD))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1:] != second.shape[1:] or not first.shape[1]:
        raise UsageError(f"features of {first.shape} and {second.shape} are not [films, features] of one network")
    if min(len(first), len(second)) < 2:
        raise UsageError("a distance between sets needs at least two films in each")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UsageError("the features hold NaN or infinity: the network or a film is broken")
    return first, second


def _compute_root(feature_ND: FloatArray) -> FloatArray:
    """Return a square root of the covariance, [min(N, D), D]: the centred features, or, if smaller, their QR factor."""
    centred_ND: FloatArray = (feature_ND - feature_ND.mean(axis=0)) / math.sqrt(len(feature_ND) - 1)
    if len(centred_ND) > centred_ND.shape[1]:
        centred_ND = np.linalg.qr(centred_ND).R
    return centred_ND


def _compute_kernel(feature_ND: FloatArray, feature_MD: FloatArray) -> FloatArray:
    kernel_NM: FloatArray = (feature_ND @ feature_MD.T / feature_ND.shape[1] + 1) ** 3
    return kernel_NM


def _draw_films(feature_ND: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    drawn: FloatArray = feature_ND[rng.choice(len(feature_ND), count, replace=False)]
    return drawn


def _draw_half(names: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.str_]:
    """Draw half of the groups; for an odd number, round up or down at random."""
    count = (len(names) + int(rng.integers(2))) // 2
    drawn: NDArray[np.str_] = rng.choice(names, count, replace=False)
    return drawn
