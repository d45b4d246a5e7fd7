"""How far a set of generated films lies from real ones, on the features of a network that is named with the result.

The Fréchet distance (FID, Heusel et al. 2017) compares two normal distributions.  It falls as films are added, even
where nothing else changes (Bińkowski et al. 2018): only distances at equal counts can be compared, so every result
carries its counts.  KID has no such bias.  FID∞ (Chong & Forsyth 2020) extrapolates it away.

Shape suffixes: N, M films of the two sets, D features, R replicates, S subsets, C counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chess_cxr.evaluation.intervals import Interval
from chess_cxr.evaluation.metrics import FloatArray
from chess_cxr.records import UsageError

Distance = Callable[[FloatArray, FloatArray], float]

FEWEST_GROUPS = 4
LARGEST_KID_SUBSET = 1000


@dataclass(frozen=True)
class KernelDistance:
    """KID: mean and standard deviation over subsets.  The deviation is that of one subset, not of the mean."""

    mean: float
    std: float
    subset_size: int
    subsets: int


@dataclass(frozen=True)
class Extrapolation:
    """FID∞: the intercept of a line through distances at several counts, over 1 / count.

    value: mean of the intercepts of `repeats` draws; it may be negative.  std: their spread; it covers which films were
    drawn, not which films there were to draw from.  count_C, distance_C: what the line went through, means of the
    draws.  misfit: root mean square of what the line misses; where it is not small against `distance_C`, there are too
    few films against the number of features for the line to hold, and the value means little.
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

    network, layer: whose features.  dimension: how many.  count, other_count: films of the two sets.
    frechet: the distance at these counts and its interval (see `compute_frechet_interval`: it says nothing of the bias
    that the counts bring).  kid, extrapolated: the two that are meant to be free of that bias.
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
        """Whether a covariance is singular, as there are no more films than features in one of the sets.

        The distance is still defined then, and still ranks sets of equal counts, but most of it is bias.
        """
        return min(self.count, self.other_count) <= self.dimension

    def as_text(self) -> str:
        """Return one line for people."""
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
    """Compute all three distances between two sets of films, with what is needed to read them.

    feature_ND, feature_MD: finite features of the same network.  group_N, group_M: what a film belongs to (its patient;
    a generated film its source film); each film for itself by default.  A name in both sets is one group.
    Raises UsageError where the sets do not fit each other or are too small.
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
    of the product of any roots of S1 and S2; centred features are such roots.  So no covariance is formed or inverted,
    nothing is squared, and fewer films than features (N <= D, singular covariances) need no special care.  They are
    then biased strongly upwards, though: see `FeatureDistance.rank_deficient`.
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

    subset_size: films of each set in a subset, drawn without replacement; by default 1000, but no more than half of the
    smaller set, so that subsets differ.  Below zero is possible, and means no difference was found.
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

    Both sets are cut to the same count of films, without replacement, at `counts` counts from a third of the smaller
    set up, in equal steps; the paper cuts the generated set alone, which leaves the bias of a small real set in.
    """
    first, second = _check_features(feature_ND, feature_MD)
    smaller = min(len(first), len(second))
    if smaller < 3 * counts or counts < 3 or repeats < 1:
        raise UsageError(f"FID∞ from {counts} counts needs at least {3 * max(counts, 3)} films a set, not {smaller}")
    count_C = np.unique(np.linspace(smaller // 3, smaller, counts).astype(int))
    rng = np.random.default_rng((seed, 2))
    distance_RC = np.array(
        [
            [compute_frechet_distance(_draw_films(first, n, rng), _draw_films(second, n, rng)) for n in count_C]
            for _ in range(repeats)
        ]
    )
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
    """Interval of a distance at these counts, over the choice of films, whole groups at a time.

    A bootstrap draws films twice, which leaves fewer different ones and so raises the Fréchet distance: its replicates
    all lie above the value.  Instead each replicate takes half of the groups without replacement.  Half samples are
    biased too, but all alike, and their spread about their own mean is that of the whole sample (the delete-half
    jackknife, Shao & Wu 1989).  The interval is that spread, turned around and put about the value.
    It covers the choice of films, for one fixed generator; it does not take away the bias of the counts.
    A name that is in both sets is drawn in both.  distance: the Fréchet distance by default; `compute_mmd` works too.
    """
    first, second = _check_features(feature_ND, feature_MD)
    names, other_names = _name_groups(group_N, len(first), "0"), _name_groups(group_M, len(second), "1")
    compute = distance or compute_frechet_distance
    value = compute(first, second)
    shared, alone, other_alone = (
        np.intersect1d(names, other_names),
        np.setdiff1d(names, other_names),
        np.setdiff1d(other_names, names),
    )
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
    """Return [min(N, D), D] whose square is the covariance; for many films the triangle of QR is as good and small."""
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


def _name_groups(group_N: ArrayLike | None, count: int, side: str) -> NDArray[np.str_]:
    """Return one name a film; films without groups get names that no other set has."""
    names = [f"\0{side}{place}" for place in range(count)] if group_N is None else np.asarray(group_N).tolist()
    if len(names) != count:
        raise UsageError(f"{len(names)} groups do not fit {count} films")
    return np.array([str(name) for name in names])


def _draw_half(names: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.str_]:
    """Draw half of the groups; of an odd number, either half."""
    count = (len(names) + int(rng.integers(2))) // 2
    drawn: NDArray[np.str_] = rng.choice(names, count, replace=False)
    return drawn
