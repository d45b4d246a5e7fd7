import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from chess_cxr.evaluation.image_metrics import (
    SCALE_WEIGHTS,
    compute_bone_suppression_ratio,
    compute_ms_ssim,
    compute_psnr,
    compute_rmse,
    compute_ssim,
    count_scales,
)
from chess_cxr.records import UsageError

Metric = Callable[..., float]
PAIRWISE: tuple[Metric, ...] = (compute_rmse, compute_psnr, compute_ssim, compute_ms_ssim)


def make_pair(height: int, width: int, noise: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth truth and a result with noise, a shift of tone and less contrast."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 20
    truth = np.clip(0.5 + 0.3 * np.sin(x + 0.4 * y) * np.cos(y) + rng.normal(0, 0.02, x.shape), 0, 1)
    return np.clip(0.05 + 0.85 * truth + rng.normal(0, noise, x.shape), 0, 1), truth


def as_tensor(film: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(film)[None, None]


def compute_ssim_slowly(result: np.ndarray, truth: np.ndarray, data_range: float) -> tuple[float, float]:
    """Window by window, straight from the paper: means of SSIM and of its contrast-structure term."""
    weight = np.array([[math.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in range(-5, 6)] for i in range(-5, 6)])
    weight /= weight.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    whole, contrast = [], []
    for row in range(result.shape[0] - 10):
        for column in range(result.shape[1] - 10):
            a, b = (film[row : row + 11, column : column + 11] for film in (result, truth))
            mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
            spread_a, spread_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
            together = (weight * (a - mean_a) * (b - mean_b)).sum()
            contrast.append((2 * together + c2) / (spread_a + spread_b + c2))
            whole.append(contrast[-1] * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1))
    return float(np.mean(whole)), float(np.mean(contrast))


def halve_slowly(film: np.ndarray) -> np.ndarray:
    height, width = film.shape[0] // 2, film.shape[1] // 2
    return np.array([[film[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean() for c in range(width)] for r in range(height)])


def test_rmse_and_psnr_are_those_of_every_pixel_in_turn() -> None:
    result, truth = make_pair(13, 17)
    total = sum((result[r, c] - truth[r, c]) ** 2 for r in range(13) for c in range(17))
    rmse = 255 * math.sqrt(total / (13 * 17))
    assert compute_rmse(result, truth) == pytest.approx(rmse, rel=1e-12)
    assert compute_psnr(result, truth) == pytest.approx(20 * math.log10(255 / rmse), rel=1e-12)
    assert compute_psnr(result, truth) == pytest.approx(
        float(peak_signal_noise_ratio(torch.from_numpy(result), torch.from_numpy(truth), data_range=(0.0, 1.0))), 1e-6
    )


def test_the_published_rmse_and_psnr_are_the_same_number() -> None:
    """FACTS of the paper: RMSE 3.301 of 255 is PSNR 37.76."""
    truth = np.full((20, 20), 0.5)
    result = truth + 3.301 / 255
    assert compute_rmse(result, truth) == pytest.approx(3.301)
    assert compute_psnr(result, truth) == pytest.approx(37.757, abs=1e-3)


def test_ssim_is_that_of_every_window_in_turn() -> None:
    result, truth = make_pair(27, 31)
    assert compute_ssim(result, truth) == pytest.approx(compute_ssim_slowly(result, truth, 1.0)[0], abs=1e-12)


@pytest.mark.parametrize("shape", [(64, 64), (71, 50)])
def test_ssim_agrees_with_torchmetrics(shape: tuple[int, int]) -> None:
    result, truth = make_pair(*shape)
    _, peer = structural_similarity_index_measure(
        as_tensor(result), as_tensor(truth), data_range=1.0, return_full_image=True
    )
    # Its mean counts the borders too, where the window sees the film mirrored.
    assert compute_ssim(result, truth) == pytest.approx(float(peer[..., 5:-5, 5:-5].mean()), abs=1e-6)


def test_ssim_agrees_with_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    result, truth = make_pair(71, 50)
    peer = metrics.structural_similarity(
        result, truth, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert compute_ssim(result, truth) == pytest.approx(peer, abs=1e-12)


def test_ms_ssim_is_that_of_every_scale_in_turn() -> None:
    result, truth = make_pair(45, 51)
    assert count_scales(45) == 3
    expected, weights = 1.0, SCALE_WEIGHTS[:3]
    one, other = result, truth
    for scale in range(3):
        whole, contrast = compute_ssim_slowly(one, other, 1.0)
        expected *= (whole if scale == 2 else contrast) ** (weights[scale] / sum(weights))
        one, other = halve_slowly(one), halve_slowly(other)
    assert compute_ms_ssim(result, truth) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", [(192, 176), (181, 203)])
def test_ms_ssim_agrees_with_torchmetrics(shape: tuple[int, int]) -> None:
    result, truth = make_pair(*shape)
    peer = multiscale_structural_similarity_index_measure(as_tensor(result), as_tensor(truth), data_range=1.0)
    # It counts mirrored borders at the coarsest scale, which has 11 pixels a side.
    assert compute_ms_ssim(result, truth) == pytest.approx(float(peer), abs=2e-4)


def test_a_film_has_as_many_scales_as_leave_eleven_pixels() -> None:
    assert [count_scales(side) for side in (11, 21, 22, 43, 44, 87, 88, 175, 176, 2048)] == [
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
        5,
        5,
    ]
    result, truth = make_pair(20, 20)
    assert compute_ms_ssim(result, truth) == pytest.approx(compute_ssim(result, truth))
    for side in (11, 22, 44, 88, 176):
        assert 0 < compute_ms_ssim(*make_pair(side, side)) < 1


@pytest.mark.parametrize("metric", PAIRWISE)
def test_a_metric_is_of_the_stated_data_range(metric: Metric) -> None:
    result, truth = make_pair(48, 48)
    assert metric(255 * result, 255 * truth, data_range=255.0) == pytest.approx(metric(result, truth))


@pytest.mark.parametrize("metric", [compute_ssim, compute_ms_ssim])
def test_a_film_is_like_itself_and_less_like_a_worse_one(metric: Metric) -> None:
    values = []
    for noise in (0.01, 0.05, 0.2):
        result, truth = make_pair(60, 60, noise)
        values.append(metric(result, truth))
        assert metric(truth, truth) == pytest.approx(1)
    assert values == sorted(values, reverse=True)


def test_opposite_films_have_no_similarity_left() -> None:
    _, truth = make_pair(48, 48)
    assert compute_ssim(1 - truth, truth) < 0
    assert compute_ms_ssim(1 - truth, truth) == 0


def test_equal_films_have_an_infinite_psnr() -> None:
    _, truth = make_pair(20, 20)
    assert compute_psnr(truth, truth) == math.inf and compute_rmse(truth, truth) == 0


def compute_ratio_slowly(film: np.ndarray, result: np.ndarray, truth: np.ndarray) -> float:
    shift = sum(truth.flat) / truth.size - sum(result.flat) / result.size
    left = whole = 0.0
    for f, r, t in zip(film.flat, result.flat, truth.flat, strict=True):
        left += max(r + shift - t, 0.0) ** 2
        whole += (f - t) ** 2
    return 1 - left / whole


def test_the_bone_suppression_ratio_is_that_of_every_pixel_in_turn() -> None:
    rng = np.random.default_rng(3)
    _, truth = make_pair(19, 23)
    film = truth + 0.2 * rng.random(truth.shape)
    result = truth + 0.05 * rng.normal(size=truth.shape)
    assert compute_bone_suppression_ratio(film, result, truth) == pytest.approx(
        compute_ratio_slowly(film, result, truth), abs=1e-12
    )


def test_the_bone_suppression_ratio_of_known_results() -> None:
    truth = np.full((10, 10), 0.4)
    bone = np.zeros((10, 10))
    bone[:2] = 0.2  # a fifth of the film
    film = truth + bone
    assert compute_bone_suppression_ratio(film, truth, truth) == 1
    assert compute_bone_suppression_ratio(film, truth + 0.1, truth) == pytest.approx(1)  # brightness does not count
    # Doing nothing: means are aligned, so of 0.2 there are 0.2 - 0.04 left, squared.
    assert compute_bone_suppression_ratio(film, film, truth) == pytest.approx(1 - (0.16 / 0.2) ** 2)
    assert compute_bone_suppression_ratio(film, truth + 3 * bone, truth) < 0
    assert math.isnan(compute_bone_suppression_ratio(truth, truth, truth))


@pytest.mark.parametrize("metric", PAIRWISE)
def test_what_cannot_be_compared_is_refused_in_a_line(metric: Metric) -> None:
    result, truth = make_pair(30, 30)
    for bad, words in (
        ((255 * result).astype(np.uint8), "films must be floats, not uint8"),
        (result[:, :20], "cannot be compared"),
        (result[None], r"is \[H, W\]"),
        (np.where(result > 0.9, np.nan, result) - np.inf, "NaN or infinity"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            metric(bad, truth)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="films must be floats"):
        metric(result, (255 * truth).astype(np.uint8))
    with pytest.raises(UsageError, match="state its data range"):
        metric(255 * result, 255 * truth)
    with pytest.raises(UsageError, match="state its data range"):
        metric(2 * result - 1, 2 * truth - 1)
    with pytest.raises(UsageError, match="above 0"):
        metric(result, truth, data_range=0.0)


def test_the_ratio_refuses_whole_numbers_too() -> None:
    result, truth = make_pair(30, 30)
    with pytest.raises(UsageError, match="films must be floats"):
        compute_bone_suppression_ratio((255 * truth).astype(np.uint8), result, truth)


def test_a_result_may_overshoot() -> None:
    result, truth = make_pair(30, 30)
    assert compute_rmse(result - 0.2, truth) > compute_rmse(result, truth)


@pytest.mark.parametrize("metric", [compute_ssim, compute_ms_ssim])
def test_a_film_smaller_than_a_window_has_no_similarity(metric: Metric) -> None:
    with pytest.raises(UsageError, match="at least 11 pixels"):
        metric(*make_pair(10, 40))
    assert metric(*make_pair(11, 11)) < 1
