"""Whether ribs are gone from a bone-suppressed film, and nodules and vessels still there: what its reader asks.

Films are float [H, W] in [0, 1] with bone bright; masks are bool [H, W].  NaN where a question has no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter, label

from chess_cxr.evaluation.image_metrics import (
    compute_bone_suppression_ratio,
    compute_ms_ssim,
    compute_psnr,
    compute_rmse,
    compute_ssim,
)
from chess_cxr.evaluation.intervals import Interval, bootstrap_by_patient

LOCAL_SHARE = 0.03  # of the longest side: standard deviation of the local mean that ribs stand out from
VESSEL_SHARES = (0.003, 0.012)  # of the longest side: 0.5 and 2 px at 170 px, 1.2 and 5 mm on a film of 40 cm
FEWEST_PIXELS = 20


def compute_rib_contrast(film_HW: np.ndarray, bone_HW: np.ndarray, lung_HW: np.ndarray) -> float:
    """Return by how much the film is brighter where bone is, in grey levels at the bone's usual thickness.

    bone_HW: how much bone there is, in any unit (0 for none).  Both are freed of their local mean within the lung;
    the slope of one on the other is what bone adds for a unit of it, times the standard deviation of the bone.
    """
    if lung_HW.sum() < FEWEST_PIXELS:
        return float("nan")
    film, bone = (_remove_local_mean(np.asarray(p, np.float64), lung_HW)[lung_HW] for p in (film_HW, bone_HW))
    spread = float(bone.std())
    if spread == 0:
        return float("nan")
    return float(np.mean((film - film.mean()) * (bone - bone.mean())) / spread)


def compute_nodule_cnr(film_HW: np.ndarray, nodule_HW: np.ndarray, lung_HW: np.ndarray | None = None) -> float:
    """Return how far a nodule stands out: (its mean - its surroundings' mean) / standard deviation of these.

    nodule_HW: one nodule.  Surroundings: a ring around it, as wide as its radius, of pixels within the lung where that
    is known.
    """
    ring_HW = draw_ring(nodule_HW, lung_HW)
    if not nodule_HW.any() or ring_HW.sum() < FEWEST_PIXELS:
        return float("nan")
    ring = film_HW[ring_HW].astype(np.float64)
    spread = float(ring.std())
    return float((film_HW[nodule_HW].mean(dtype=np.float64) - ring.mean()) / spread) if spread else float("nan")


def compute_nodule_contrast(film_HW: np.ndarray, nodule_HW: np.ndarray, lung_HW: np.ndarray | None = None) -> float:
    """Return a nodule's mean less its surroundings' mean, in grey levels; see `compute_nodule_cnr`."""
    ring_HW = draw_ring(nodule_HW, lung_HW)
    if not nodule_HW.any() or ring_HW.sum() < FEWEST_PIXELS:
        return float("nan")
    return float(film_HW[nodule_HW].mean(dtype=np.float64) - film_HW[ring_HW].mean(dtype=np.float64))


def draw_ring(nodule_HW: np.ndarray, lung_HW: np.ndarray | None = None) -> np.ndarray:
    """Return the lung's pixels around a nodule: from a pixel off its edge to a radius (3 pixels or more) beyond."""
    radius = max(3, round(float(np.sqrt(nodule_HW.sum() / np.pi))))
    reach = np.hypot(*np.mgrid[-radius : radius + 1, -radius : radius + 1]) <= radius
    near = binary_dilation(nodule_HW, np.ones((3, 3), bool))
    ring: np.ndarray = binary_dilation(near, reach) & ~near
    return ring if lung_HW is None else ring & lung_HW


def compute_vessel_detail(film_HW: np.ndarray, lung_HW: np.ndarray, bone_HW: np.ndarray | None = None) -> float:
    """Return the standard deviation of fine detail in the lung, between the ribs where bone is known.

    Detail: what lies between Gaussians of `VESSEL_SHARES` of the longest side.  Between the ribs: where bone is below
    a tenth of its 95th percentile in the lung.
    """
    between_HW = lung_HW
    if bone_HW is not None and lung_HW.any():
        between_HW = lung_HW & (bone_HW <= 0.1 * np.percentile(bone_HW[lung_HW], 95))
    if between_HW.sum() < FEWEST_PIXELS:
        return float("nan")
    film = np.asarray(film_HW, np.float64)
    fine, coarse = (gaussian_filter(film, share * max(film.shape)) for share in VESSEL_SHARES)
    return float((fine - coarse)[between_HW].std())


def score_suppression(
    film_HW: np.ndarray,
    result_HW: np.ndarray,
    truth_HW: np.ndarray | None = None,
    *,
    lung_HW: np.ndarray | None = None,
    bone_HW: np.ndarray | None = None,
    nodule_HW: np.ndarray | None = None,
) -> dict[str, float]:
    """Score one suppressed film by all that can be told of it.

    truth_HW: the film without bone.  bone_HW: how much bone there is; by default film - truth.  nodule_HW: nodules,
    each a connected part.
    psnr (dB), ssim, ms_ssim, rmse_8bit, bone_suppression_ratio: against the truth.  rib_contrast_left: share of the
    ribs' contrast that is left, 0 at best.  nodule_cnr_kept, nodule_contrast_kept: after / before, over all nodules;
    nodule_contrast_error: mean |after - truth| / truth.  vessel_detail_kept: after / before, between the ribs.
    """
    scores = {}
    if truth_HW is not None:
        scores = {
            "psnr": compute_psnr(result_HW, truth_HW),
            "ssim": compute_ssim(result_HW, truth_HW),
            "ms_ssim": compute_ms_ssim(result_HW, truth_HW),
            "rmse_8bit": compute_rmse(result_HW, truth_HW),
            "bone_suppression_ratio": compute_bone_suppression_ratio(film_HW, result_HW, truth_HW),
        }
        bone_HW = film_HW - truth_HW if bone_HW is None else bone_HW
    if lung_HW is not None:
        if bone_HW is not None:
            before, after = (compute_rib_contrast(f, bone_HW, lung_HW) for f in (film_HW, result_HW))
            scores["rib_contrast_left"] = _divide(after, before)
        before, after = (compute_vessel_detail(f, lung_HW, bone_HW) for f in (film_HW, result_HW))
        scores["vessel_detail_kept"] = _divide(after, before)
    if nodule_HW is not None and nodule_HW.any():
        scores |= _score_nodules(film_HW, result_HW, truth_HW, lung_HW, nodule_HW)
    return scores


def _score_nodules(
    film_HW: np.ndarray,
    result_HW: np.ndarray,
    truth_HW: np.ndarray | None,
    lung_HW: np.ndarray | None,
    nodule_HW: np.ndarray,
) -> dict[str, float]:
    parts, count = label(nodule_HW)
    nodules = [parts == number for number in range(1, count + 1)]
    cnr = [_divide(*(compute_nodule_cnr(f, n, lung_HW) for f in (result_HW, film_HW))) for n in nodules]
    contrast = [_divide(*(compute_nodule_contrast(f, n, lung_HW) for f in (result_HW, film_HW))) for n in nodules]
    scores = {"nodule_cnr_kept": _mean(cnr), "nodule_contrast_kept": _mean(contrast)}
    if truth_HW is not None:
        kept = [_divide(*(compute_nodule_contrast(f, n, lung_HW) for f in (result_HW, truth_HW))) for n in nodules]
        scores["nodule_contrast_error"] = _mean([abs(share - 1) for share in kept])
    return scores


def summarise_films(
    scores: Sequence[Mapping[str, float]], groups: Sequence[str], replicates: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Return the mean of each score over films with its 95 % interval by bootstrap over groups (patients).

    A film without a score, or with one that is not finite, is left out of that score's mean.
    """
    names = list(dict.fromkeys(name for score in scores for name in score))
    value_NM = np.array([[score.get(name, np.nan) for name in names] for score in scores], np.float64)
    value_NM[~np.isfinite(value_NM)] = np.nan

    def average(films: np.ndarray) -> dict[str, float]:
        return {name: _mean(value_NM[films, column]) for column, name in enumerate(names)}

    return bootstrap_by_patient(np.asarray(groups), average, replicates, seed)


def _remove_local_mean(picture_HW: np.ndarray, lung_HW: np.ndarray) -> np.ndarray:
    """Subtract the Gaussian mean over the lung's pixels alone: the lung's edge is no rib."""
    sigma = LOCAL_SHARE * max(picture_HW.shape)
    inside = lung_HW.astype(np.float64)
    weight = np.maximum(gaussian_filter(inside, sigma), 1e-9)
    flat: np.ndarray = picture_HW - gaussian_filter(picture_HW * inside, sigma) / weight
    return flat


def _divide(after: float, before: float) -> float:
    return after / before if before and np.isfinite(before) else float("nan")


def _mean(values: Sequence[float] | np.ndarray) -> float:
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else float("nan")
