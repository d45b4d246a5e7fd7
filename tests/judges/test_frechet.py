from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.fid import _compute_fid

from chess_cxr.judges.frechet import (
    compute_frechet_distance,
    compute_frechet_interval,
    compute_kid,
    compute_mmd,
    extrapolate_frechet_distance,
    measure_feature_distance,
)
from chess_cxr.records import UsageError


def draw_features(count: int, dimension: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimension, dimension)) / np.sqrt(dimension)
    return scale * rng.normal(size=(count, dimension)) @ (mixing + np.eye(dimension)) + shift


def test_it_is_the_distance_of_the_paper_and_of_two_libraries() -> None:
    first, second = draw_features(300, 20, 0), draw_features(200, 20, 1, shift=0.4, scale=1.3)
    found = compute_frechet_distance(first, second)
    covariances = [np.cov(features, rowvar=False) for features in (first, second)]
    gap = first.mean(0) - second.mean(0)
    slow = gap @ gap + np.trace(
        covariances[0] + covariances[1] - 2 * linalg.sqrtm(covariances[0] @ covariances[1]).real
    )
    assert found == pytest.approx(slow, rel=1e-9)

    tensors = [torch.from_numpy(features) for features in (first, second)]
    library = fid_statistics_to_metric(*(fid_features_to_statistics(features) for features in tensors), verbose=False)
    assert found == pytest.approx(library["frechet_inception_distance"], rel=1e-6)
    moments = [value for features in tensors for value in (features.mean(0), torch.cov(features.T))]
    assert found == pytest.approx(float(_compute_fid(*moments)), rel=1e-6)


@pytest.mark.parametrize("count", [3, 20, 31, 500])
def test_fewer_films_than_features_need_no_special_care(count: int) -> None:
    first, second = draw_features(count, 30, 0), draw_features(40, 30, 1, shift=0.1)
    covariances = [np.cov(features, rowvar=False) for features in (first, second)]
    # The roots by eigenvalues, as the formula is written for singular covariances.
    roots = []
    for covariance in covariances:
        value, vector = np.linalg.eigh(covariance)
        roots.append(vector * np.sqrt(np.maximum(value, 0)) @ vector.T)
    middle = np.maximum(np.linalg.eigvalsh(roots[0] @ covariances[1] @ roots[0]), 0)
    gap = first.mean(0) - second.mean(0)
    slow = gap @ gap + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.sqrt(middle).sum()
    assert compute_frechet_distance(first, second) == pytest.approx(slow, rel=1e-5)


def test_a_set_is_at_no_distance_from_itself_and_order_means_nothing() -> None:
    few, many = draw_features(10, 40, 0), draw_features(300, 40, 2)
    for features in (few, many, 1e6 + many, 1e-6 * many):
        scale = float(features.var(axis=0).sum())
        assert compute_frechet_distance(features, features[::-1]) <= 1e-9 * scale
    assert compute_frechet_distance(few, many) == pytest.approx(compute_frechet_distance(many, few))


def test_the_distance_of_a_shift_is_its_square() -> None:
    features = draw_features(100, 8, 3)
    assert compute_frechet_distance(features, features + 0.5) == pytest.approx(8 * 0.25)


def test_kid_agrees_with_torch_fidelity_and_a_loop() -> None:
    first, second = draw_features(60, 12, 0), draw_features(60, 12, 1, shift=0.3)
    pairs = 60 * 59
    within = [(rows[a] @ rows[b] / 12 + 1) ** 3 for rows in (first, second) for a, b in permutations(range(60), 2)]
    between = np.mean([(a @ b / 12 + 1) ** 3 for a in first for b in second])
    slow = sum(within[:pairs]) / pairs + sum(within[pairs:]) / pairs - 2 * between
    assert compute_mmd(first, second) == pytest.approx(slow)
    library = kid_features_to_metric(
        torch.from_numpy(first), torch.from_numpy(second), kid_subset_size=60, kid_subsets=2, verbose=False
    )
    whole = compute_kid(first, second, subset_size=60, subsets=2)
    assert (whole.mean, whole.std) == pytest.approx((library["kernel_inception_distance_mean"], 0.0), abs=1e-12)

    half = compute_kid(first, second)
    assert (half.subset_size, half.subsets) == (30, 100)
    many = kid_features_to_metric(
        torch.from_numpy(first), torch.from_numpy(second), kid_subset_size=30, kid_subsets=400, verbose=False
    )
    assert half.mean == pytest.approx(many["kernel_inception_distance_mean"], abs=4 * half.std / 10)
    assert half.std == pytest.approx(many["kernel_inception_distance_std"], rel=0.25)


def test_kid_is_not_biased_by_the_count_and_the_frechet_distance_is() -> None:
    means = {}
    for count in (20, 80):
        sets = [(draw_features(count, 16, 2 * s), draw_features(count, 16, 2 * s + 1)) for s in range(60)]
        kids = np.array([compute_mmd(*pair) for pair in sets])
        assert abs(kids.mean()) < 3.5 * kids.std() / np.sqrt(60)
        means[count] = np.mean([compute_frechet_distance(*pair) for pair in sets])
    assert means[20] > 3 * means[80] > 0


def test_extrapolation_removes_most_of_the_bias() -> None:
    errors, plain = [], []
    for seed in range(6):
        first, second = draw_features(400, 16, 2 * seed), draw_features(400, 16, 2 * seed + 1, shift=0.1)
        far = extrapolate_frechet_distance(first, second)
        errors.append(far.value - 16 * 0.01)
        plain.append(compute_frechet_distance(first, second) - 16 * 0.01)
        assert far.count_C[0] == 133 and far.count_C[-1] == 400 and len(far.count_C) == 8
        assert far.misfit < 0.1 * far.distance_C[-1]
    assert np.mean(plain) > 0.5
    assert abs(np.mean(errors)) < 0.35 * np.mean(plain)


def test_the_line_is_the_least_squares_line() -> None:
    far = extrapolate_frechet_distance(draw_features(90, 6, 0), draw_features(120, 6, 1), repeats=3, seed=5)
    line = stats.linregress(1 / np.array(far.count_C), far.distance_C)
    assert far.value == pytest.approx(line.intercept)
    missed = np.array(far.distance_C) - line.intercept - line.slope / np.array(far.count_C)
    assert far.misfit == pytest.approx(np.sqrt((missed**2).mean()))


def test_the_interval_is_as_wide_as_new_films_would_scatter() -> None:
    truth = [
        compute_frechet_distance(draw_features(120, 10, 500 + s), draw_features(120, 10, 900 + s, shift=0.5))
        for s in range(200)
    ]
    widths = []
    for seed in range(8):
        first, second = draw_features(120, 10, seed), draw_features(120, 10, 50 + seed, shift=0.5)
        found = compute_frechet_interval(first, second, replicates=150, seed=seed)
        assert found.low < found.value < found.high
        widths.append((found.high - found.low) / (2 * 1.96))
    assert np.mean(widths) == pytest.approx(np.std(truth), rel=0.2)


def test_a_bootstrap_would_lie_above_the_value() -> None:
    first, second = draw_features(60, 30, 0), draw_features(60, 30, 1)
    rng = np.random.default_rng(0)
    drawn = [
        compute_frechet_distance(first[rng.integers(60, size=60)], second[rng.integers(60, size=60)]) for _ in range(50)
    ]
    found = compute_frechet_interval(first, second, replicates=100)
    assert min(drawn) > found.value  # a percentile interval of these would not hold its own value
    assert found.low < found.value < found.high < np.mean(drawn)


def test_films_of_one_group_count_as_one() -> None:
    base = draw_features(40, 6, 0)
    repeated, other = np.repeat(base, 5, axis=0), draw_features(200, 6, 1, shift=1.0)
    groups = np.repeat(np.arange(40), 5)
    grouped = compute_frechet_interval(repeated, other, groups, replicates=100)
    alone = compute_frechet_interval(repeated, other, replicates=100)
    assert grouped.value == alone.value
    assert grouped.high - grouped.low > 1.4 * (alone.high - alone.low)


def test_a_group_in_both_sets_is_drawn_in_both() -> None:
    seen = []
    features = np.arange(12.0)[:, None] * [1.0, 2.0]

    def remember(first: np.ndarray, second: np.ndarray) -> float:
        seen.append((set(first[:, 0]), set(second[:, 0])))
        return 0.0

    names = [f"p{n}" for n in range(12)]
    compute_frechet_interval(features, features[:8], names, names[:8], replicates=30, distance=remember)
    for first, second in seen[1:]:
        assert {value for value in first if value < 8} == second
        assert len(second) == 4 and len(first) == 6
    assert len({tuple(sorted(first)) for first, _ in seen}) > 5


def test_the_result_says_which_network_and_how_many_films() -> None:
    first, second = draw_features(40, 60, 0), draw_features(50, 60, 1)
    found = measure_feature_distance(first, second, "vgg16@224", "relu5_3, mean", replicates=20, seed=4)
    assert found.rank_deficient and (found.dimension, found.count, found.other_count) == (60, 40, 50)
    for word in ("vgg16@224", "relu5_3", "60 features", "40 against 50 films", "mostly bias", "subsets of 20"):
        assert word in found.as_text()
    again = measure_feature_distance(first, second, "vgg16@224", "relu5_3, mean", replicates=20, seed=4)
    assert again == found != measure_feature_distance(first, second, "vgg16@224", "x", replicates=20, seed=5)


def test_wrong_use_is_refused() -> None:
    good = draw_features(30, 4, 0)
    with pytest.raises(UsageError, match="of one network"):
        compute_frechet_distance(good, draw_features(30, 5, 0))
    with pytest.raises(UsageError, match="at least two"):
        compute_frechet_distance(good, good[:1])
    with pytest.raises(UsageError, match="NaN"):
        compute_kid(good, np.full((30, 4), np.nan))
    with pytest.raises(UsageError, match="2 to 30"):
        compute_kid(good, good, subset_size=31)
    with pytest.raises(UsageError, match="at least 24"):
        extrapolate_frechet_distance(good[:20], good)
    with pytest.raises(UsageError, match="4 groups"):
        compute_frechet_interval(good, good, np.zeros(30))
    with pytest.raises(UsageError, match="do not fit"):
        compute_frechet_interval(good, good, ["a"])
