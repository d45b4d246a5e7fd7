"""Similarity of a result to its ground truth: PSNR, RMSE, SSIM, MS-SSIM and the bone-suppression ratio.

Films are floats in [0, data_range], air dark and bone bright; integers are refused, as the difference of two uint8
wraps around.  Arithmetic is float64.  Each metric is of one film: average over films afterwards.
Shape suffixes: H, W pixels of a film; h, w pixels whose window lies entirely on the film.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from chess_cxr.evaluation.ranked_scores import FloatArray
from chess_cxr.records import UsageError

WINDOW = 11  # pixels of SSIM's Gaussian window
SIGMA = 1.5
K1, K2 = 0.01, 0.03
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang 2003, finest scale first
LEAST_SIDE = WINDOW
_ROOM = 1e-6  # tolerance for rounding, relative to the range


def compute_rmse(result_HW: ArrayLike, truth_HW: ArrayLike, data_range: float = 1.0) -> float:
    """Return the root mean squared error on the 8-bit scale, 0 … 255."""
    result, truth = check_films(result_HW, truth_HW, data_range)
    return 255.0 / data_range * math.sqrt(float(np.mean((result - truth) ** 2)))


def compute_psnr(result_HW: ArrayLike, truth_HW: ArrayLike, data_range: float = 1.0) -> float:
    """Return the peak signal-to-noise ratio in dB, 20 log10(255 / RMSE); infinite for equal films."""
    rmse = compute_rmse(result_HW, truth_HW, data_range)
    return math.inf if rmse == 0 else 20 * math.log10(255.0 / rmse)


def compute_ssim(result_HW: ArrayLike, truth_HW: ArrayLike, data_range: float = 1.0) -> float:
    """Return the structural similarity (Wang et al. 2004, eq. 13), averaged over windows inside the film; -1..1.

    Window: Gaussian of 11 x 11 pixels, standard deviation 1.5; K1 0.01, K2 0.03; population variances.
    Raises UsageError for films with a side below 11 pixels.
    """
    result, truth = check_films(result_HW, truth_HW, data_range)
    _check_side(result)
    return _compare_structure(result, truth, data_range)[0]


def compute_ms_ssim(result_HW: ArrayLike, truth_HW: ArrayLike, data_range: float = 1.0) -> float:
    """Return the multi-scale structural similarity (Wang et al. 2003, eq. 7); 0..1.

    Each scale halves the film by averaging 2 x 2 pixels (dropping a last odd row or column).  Luminance counts only at
    the coarsest scale; a negative mean counts as 0.  Five scales need 176 pixels a side; a smaller film has fewer
    scales, down to 11 pixels, with weights rescaled to a sum of 1: compare its values only with films of its size.
    Raises UsageError for films with a side below 11 pixels.
    """
    result, truth = check_films(result_HW, truth_HW, data_range)
    _check_side(result)
    weights = SCALE_WEIGHTS[: count_scales(min(result.shape))]
    total = sum(weights)
    similarity = 1.0
    for scale, weight in enumerate(weights):
        if scale:
            result, truth = _halve(result), _halve(truth)
        whole, contrast = _compare_structure(result, truth, data_range)
        part = whole if scale == len(weights) - 1 else contrast
        similarity *= max(part, 0.0) ** (weight / total)
    return similarity


def count_scales(side: int) -> int:
    """Return the number of MS-SSIM scales for a film with this shorter side in pixels; at most five."""
    return min(len(SCALE_WEIGHTS), max(1, int(math.log2(side / LEAST_SIDE)) + 1))


def compute_bone_suppression_ratio(film_HW: ArrayLike, result_HW: ArrayLike, truth_HW: ArrayLike) -> float:
    """Return the share of the bone's energy that was removed; 1 if no bone is left, below 0 if bone was added.

        bone = film - truth
        left = max(result - mean(result) - (truth - mean(truth)), 0)
        BSR  = 1 - sum(left ** 2) / sum(bone ** 2)

    The formula is from BS-LDM's published code (github.com/diaoquesang/BS-LDM, metrics.py, cal_BSR), whose films show
    bone dark: its gt - bs is result - truth here.  It has three weaknesses.  Only pixels brighter than the truth count,
    so removing too much costs little: read it beside PSNR.  The original film scores far above 0, as the means are
    aligned for the result but not for the bone: report its score too.  A difference in tone between film and truth
    counts as bone.
    NaN if film and truth are equal.
    """
    result, truth = check_films(result_HW, truth_HW)
    film, _ = check_films(film_HW, truth_HW)
    energy = float(np.sum((film - truth) ** 2))
    if energy == 0:
        return math.nan
    left = np.maximum(result - result.mean() - (truth - truth.mean()), 0.0)
    return 1.0 - float(np.sum(left**2)) / energy


def check_films(result_HW: ArrayLike, truth_HW: ArrayLike, data_range: float = 1.0) -> tuple[FloatArray, FloatArray]:
    """Return both films as float64 [H, W].

    The truth must lie in [0, data_range]; a network's result may overshoot.
    Raises UsageError for integers, different shapes, NaN or infinity, and another scale.
    """
    if not data_range > 0:
        raise UsageError(f"the data range of a film is above 0, not {data_range}")
    result, truth = np.asarray(result_HW), np.asarray(truth_HW)
    for film in (result, truth):
        if not np.issubdtype(film.dtype, np.floating):
            raise UsageError(f"films must be floats, not {film.dtype}: divide by the largest value first")
        if film.ndim != 2 or not film.size:
            raise UsageError(f"a film is [H, W], not of shape {film.shape}")
        if not np.isfinite(film).all():
            raise UsageError("a film holds NaN or infinity: the network that made it has diverged")
    if result.shape != truth.shape:
        raise UsageError(f"a film of {result.shape} cannot be compared with one of {truth.shape}")
    if truth.min() < -_ROOM * data_range or truth.max() > (1 + _ROOM) * data_range:
        raise UsageError(f"the ground truth leaves [0, {data_range:g}]: state its data range")
    return result.astype(np.float64), truth.astype(np.float64)


def _check_side(film_HW: FloatArray) -> None:
    if min(film_HW.shape) < LEAST_SIDE:
        raise UsageError(f"SSIM needs films of at least {LEAST_SIDE} pixels a side, not {film_HW.shape}")


def _compare_structure(result_HW: FloatArray, truth_HW: FloatArray, data_range: float) -> tuple[float, float]:
    """Return the means of SSIM and of its contrast-structure term."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_r, mean_t = _blur(result_HW), _blur(truth_HW)
    variance_r = _blur(result_HW**2) - mean_r**2
    variance_t = _blur(truth_HW**2) - mean_t**2
    covariance = _blur(result_HW * truth_HW) - mean_r * mean_t
    contrast_hw = (2 * covariance + c2) / (variance_r + variance_t + c2)
    luminance_hw = (2 * mean_r * mean_t + c1) / (mean_r**2 + mean_t**2 + c1)
    return float((luminance_hw * contrast_hw).mean()), float(contrast_hw.mean())


def _blur(film_HW: FloatArray) -> FloatArray:
    """Average over SSIM's window and crop the pixels whose window leaves the film: [H, W] -> [h, w]."""
    reach = WINDOW // 2
    taps = np.exp(-((np.arange(WINDOW) - reach) ** 2) / (2 * SIGMA**2))
    taps /= taps.sum()
    wide = ndimage.correlate1d(ndimage.correlate1d(film_HW, taps, axis=0), taps, axis=1)
    inner: FloatArray = wide[reach:-reach, reach:-reach]
    return inner


def _halve(film_HW: FloatArray) -> FloatArray:
    height, width = (side // 2 for side in film_HW.shape)
    halved: FloatArray = film_HW[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))
    return halved
