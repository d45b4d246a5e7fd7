"""How near a picture comes to the true one; float arrays [H, W], their data range stated, float64 inside."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from chess_cxr.records import UsageError

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, table 1: fine to coarse
_SIGMA, _RADIUS = 1.5, 5  # the window of Wang et al. 2004: 11 x 11


def compute_rmse(result_HW: np.ndarray, truth_HW: np.ndarray, scale: float = 255.0) -> float:
    """Return the root mean square error of pictures in [0, 1], on the 8-bit scale by default."""
    result, truth = _check(result_HW, truth_HW)
    return float(scale * np.sqrt(np.mean((result - truth) ** 2)))


def compute_psnr(result_HW: np.ndarray, truth_HW: np.ndarray, data_range: float = 1.0) -> float:
    """Return the peak signal-to-noise ratio in dB; inf for equal pictures."""
    error = compute_rmse(result_HW, truth_HW, 1.0)
    return float(20 * np.log10(data_range / error)) if error else float("inf")


def compute_ssim(result_HW: np.ndarray, truth_HW: np.ndarray, data_range: float = 1.0) -> float:
    """Return the structural similarity (Wang et al. 2004: Gaussian window of 11 pixels, K 0.01 and 0.03).

    The mean over the places where the whole window lies in the picture.
    """
    return _compare_structure(*_check(result_HW, truth_HW), data_range)[0]


def compute_ms_ssim(result_HW: np.ndarray, truth_HW: np.ndarray, data_range: float = 1.0) -> float:
    """Return the multi-scale structural similarity (Wang et al. 2003).

    A picture too small for five scales has fewer, with their weights brought to a sum of 1: under 176 pixels a side
    the number is not the published one.  Negative contrast terms count as 0.
    """
    result, truth = _check(result_HW, truth_HW)
    scales = next(n for n in range(5, 0, -1) if n == 1 or min(result.shape) // 2 ** (n - 1) > 2 * _RADIUS)
    parts = []
    for scale in range(scales):
        if scale:
            result, truth = _halve(result), _halve(truth)
        whole, contrast = _compare_structure(result, truth, data_range)
        parts.append(max(0.0, whole if scale == scales - 1 else contrast))
    weights = np.array(SCALE_WEIGHTS[:scales])
    return float(np.prod(np.array(parts) ** (weights / weights.sum())))


def compute_bone_suppression_ratio(film_HW: np.ndarray, result_HW: np.ndarray, truth_HW: np.ndarray) -> float:
    """Return 1 - Σ (what is left of the bone)² / Σ bone²: 1 for bone gone wholly, 0 for a film left as it is.

    bone = film - truth.  What is left = result - truth after the result's mean is brought to the truth's, where that
    is positive: too much taken away is not what this ratio judges.  NaN where the film has no bone.  As the mean of a
    film that keeps its bones is brought down too, such a film scores above 0.
    """
    film, truth = _check(film_HW, truth_HW)
    result, _ = _check(result_HW, truth_HW)
    bone = np.sum((film - truth) ** 2)
    left = np.maximum(result - result.mean() + truth.mean() - truth, 0)
    return float(1 - np.sum(left**2) / bone) if bone else float("nan")


def _check(first_HW: np.ndarray, second_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for picture in (first_HW, second_HW):
        if picture.ndim != 2 or not np.issubdtype(picture.dtype, np.floating):
            raise UsageError(f"a picture is a float array [H, W], not {picture.dtype} {list(picture.shape)}")
    if first_HW.shape != second_HW.shape:
        raise UsageError(f"pictures of {first_HW.shape} and {second_HW.shape} cannot be compared")
    if min(first_HW.shape) <= 2 * _RADIUS:
        raise UsageError(f"pictures need {2 * _RADIUS + 1} pixels a side or more to be compared")
    return first_HW.astype(np.float64), second_HW.astype(np.float64)


def _compare_structure(a: np.ndarray, b: np.ndarray, data_range: float) -> tuple[float, float]:
    """Return SSIM and its contrast-structure part, means over the picture."""

    def blur(picture: np.ndarray) -> np.ndarray:
        blurred: np.ndarray = gaussian_filter(picture, _SIGMA, radius=_RADIUS)
        return blurred[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]

    mean_a, mean_b = blur(a), blur(b)
    variance = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    first, second = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    contrast = (2 * covariance + second) / (variance + second)
    luminance = (2 * mean_a * mean_b + first) / (mean_a**2 + mean_b**2 + first)
    return float(np.mean(luminance * contrast)), float(np.mean(contrast))


def _halve(picture: np.ndarray) -> np.ndarray:
    height, width = (side // 2 * 2 for side in picture.shape)
    halved: np.ndarray = picture[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3))
    return halved
