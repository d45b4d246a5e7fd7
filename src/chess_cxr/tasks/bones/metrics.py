"""Scores of a film without bones: how much of the ribs is left, and whether nodules and vessels are kept.

Every film is float [H, W] in [0, 1], air dark and bone bright; every mask is bool [H, W].  Lengths are shares of the
film's longer side, so that scores do not depend on its size; brackets give them for a film of 35 cm.
Shape suffixes: H, W pixels of a film; N films, R replicates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from chess_cxr.evaluation.image_metrics import (
    check_films,
    compute_bone_suppression_ratio,
    compute_ms_ssim,
    compute_psnr,
    compute_rmse,
    compute_ssim,
)
from chess_cxr.evaluation.ranked_scores import FloatArray
from chess_cxr.records import UsageError
from chess_cxr.tasks.nodule_contrast import compute_contrast, draw_ring

MaskArray = NDArray[np.bool_]

BACKGROUND = 1 / 8  # side of the square whose mean is the local background (44 mm: two ribs and their gaps)
REACH = 0.03  # lung this near to bone is its neighbour (10 mm)
BAND = (0.0025, 0.01)  # standard deviations of the two Gaussians whose difference is the band of vessels (0.9, 3.5 mm)
LEAST_PIXELS = 20  # of a region that can be measured
LEAST_CONTRAST = 1 / 255  # of a film before, for a ratio that means something
EDGE_SHARE = 0.25  # of the root mean square of the edges of bone; less is no edge
BONE_SHARE = 0.3  # of the strongest bone; a larger difference of two films is bone
LEAST_BONE = 2 / 255  # the noise of 8-bit and JPEG files, which is no bone
_ROUNDING = 1e-9


def score_suppression(
    film_HW: ArrayLike,
    result_HW: ArrayLike,
    truth_HW: ArrayLike | None = None,
    *,
    lung_HW: ArrayLike | None = None,
    bone_HW: ArrayLike | None = None,
    clavicle_HW: ArrayLike | None = None,
    nodules: Sequence[ArrayLike] = (),
) -> dict[str, float]:
    """Score one film after suppression with everything that is known of it; NaN for a score without a value.

    truth_HW: the film without bone.  lung_HW: mask of the lungs.  bone_HW: mask of all bone, or its thickness in any
    unit; `find_bone` finds it if only the truth is known.  clavicle_HW: mask of the clavicles alone.  nodules: a mask
    each (`pointing.draw_disc` makes one from centre and radius).  Names:

    - with a truth: psnr (dB), rmse (of 255), ssim, ms_ssim, bsr;
    - with bone: rib_* and with clavicles: clavicle_*, see `measure_bone_contrast`;
    - with nodules: nodule_*, see `measure_nodules`;
    - with bone and lungs: vessel_*, see `measure_vessels`.

    *_contrast_before, *_cnr_before: of the film; *_after: of the result; *_truth: of the truth.
    *_of_truth, *_from_truth: the result against the truth.
    Raises UsageError for shapes or types that do not fit (see `image_metrics.check_films`).
    """
    result, film = check_films(result_HW, film_HW)
    truth = None if truth_HW is None else check_films(result_HW, truth_HW)[1]
    lung = None if lung_HW is None else _check_mask(lung_HW, film, "lungs")
    scores: dict[str, float] = {}
    if truth is not None:
        scores |= {
            "psnr": compute_psnr(result, truth),
            "rmse": compute_rmse(result, truth),
            "ssim": compute_ssim(result, truth),
            "ms_ssim": compute_ms_ssim(result, truth),
            "bsr": compute_bone_suppression_ratio(film, result, truth),
        }
    bone: ArrayLike | None = bone_HW
    if bone is None and truth is not None:
        bone = find_bone(film, truth)
    if bone is not None:
        contrast = measure_bone_contrast(film, result, bone, lung, truth)
        scores |= {f"rib_{name}": value for name, value in contrast.items()}
    if clavicle_HW is not None:
        clavicle = _check_mask(clavicle_HW, film, "clavicles")
        contrast = measure_bone_contrast(film, result, clavicle, lung, truth)
        scores |= {f"clavicle_{name}": value for name, value in contrast.items()}
    if nodules:
        scores |= {
            f"nodule_{name}": value for name, value in measure_nodules(film, result, nodules, lung, truth).items()
        }
    if bone is not None and lung is not None:
        scores |= {f"vessel_{name}": value for name, value in measure_vessels(film, result, bone, lung, truth).items()}
    return scores


def find_bone(film_HW: ArrayLike, truth_HW: ArrayLike) -> MaskArray:
    """Return where a film has bone, from its difference to the film without bone.

    The difference is blurred by 0.0025 of the side, and its local background is subtracted (films of a pair may differ
    in tone).  Bone is above 0.3 of the 99th percentile, and above 2 of 255.  This is an estimate: other differences,
    such as a label, count too, and bone much thinner than the thickest does not.
    """
    film, truth = check_films(film_HW, truth_HW)
    side = max(film.shape)
    blurred = ndimage.gaussian_filter(film - truth, BAND[0] * side)
    excess = blurred - compute_background(blurred, np.ones(film.shape, dtype=bool))
    bone: MaskArray = excess > max(BONE_SHARE * float(np.percentile(excess, 99)), LEAST_BONE)
    return bone


def measure_bone_contrast(
    film_HW: ArrayLike,
    result_HW: ArrayLike,
    bone_HW: ArrayLike,
    lung_HW: ArrayLike | None = None,
    truth_HW: ArrayLike | None = None,
) -> dict[str, float]:
    """Measure how much brighter bone is than the lung beside it, before and after; grey levels of [0, 1].

    Bone is where the lungs have more bone than the mean within 1/16 of the side around; its neighbours are where they
    have less, up to 0.03 of the side away.  The contrast is the mean of bone minus the mean of its neighbours, after
    each pixel's local mean of the lung, in the same square, is subtracted.

    residual = after / before: 1 if nothing was done, about 0 if all is gone, below 0 if ribs became dark.  Parts that
    are too bright and too dark may cancel, so read it beside PSNR.  Soft tissue differs by chance under bone and beside
    it, so the truth itself has a small contrast (contrast_truth).  residual_from_truth = (after - truth) / (before -
    truth) has no such error: it is exactly 0 for the truth.
    lung_HW None: the whole film counts, with borders of lungs and labels; then trust only residual_from_truth.
    NaN for a residual whose divisor is below 1 of 255, and for all if either side has fewer than 20 pixels.
    """
    result, film = check_films(result_HW, film_HW)
    lung = _check_mask(np.ones(film.shape, dtype=bool) if lung_HW is None else lung_HW, film, "lungs")
    rib_HW, beside_HW = find_ribs(bone_HW, lung)
    parts = {"before": film, "after": result}
    if truth_HW is not None:
        parts["truth"] = check_films(result, truth_HW)[1]
    contrast = {name: _subtract_means(_flatten(part, lung), rib_HW, beside_HW) for name, part in parts.items()}
    measured = {
        "contrast_before": contrast["before"],
        "contrast_after": contrast["after"],
        "residual": _divide(contrast["after"], contrast["before"], LEAST_CONTRAST),
    }
    if truth_HW is not None:
        left, bone = contrast["after"] - contrast["truth"], contrast["before"] - contrast["truth"]
        measured["contrast_truth"] = contrast["truth"]
        measured["residual_from_truth"] = _divide(left, bone, LEAST_CONTRAST)
    return measured


def find_ribs(bone_HW: ArrayLike, lung_HW: ArrayLike) -> tuple[MaskArray, MaskArray]:
    """Return the masks of bone and of its neighbours inside the lungs; see `measure_bone_contrast`.

    bone_HW: bool, or thickness as float.  If ribs of front and back cover the lungs entirely, thicker bone is separated
    from thinner bone.
    """
    bone, lung = np.asarray(bone_HW), np.asarray(lung_HW, dtype=bool)
    if bone.shape != lung.shape or (bone.dtype != bool and not np.issubdtype(bone.dtype, np.floating)):
        raise UsageError(f"bone is bool or a float thickness of shape {lung.shape}, not {bone.dtype} of {bone.shape}")
    if not np.isfinite(bone).all():
        raise UsageError("the thickness of bone holds NaN or infinity")
    excess = _flatten(bone.astype(np.float64), lung)
    rib: MaskArray = lung & (excess > _ROUNDING)
    near = _compute_distance(rib) <= REACH * max(lung.shape)
    return rib, lung & (excess < -_ROUNDING) & near


def measure_nodules(
    film_HW: ArrayLike,
    result_HW: ArrayLike,
    nodules: Sequence[ArrayLike],
    lung_HW: ArrayLike | None = None,
    truth_HW: ArrayLike | None = None,
) -> dict[str, float]:
    """Measure how well known nodules stand out before and after; means over the nodules that can be measured.

    Contrast and CNR are those of `compute_contrast`, against the ring of `draw_ring`, which excludes other nodules and,
    with a lung mask, everything outside the lungs.

    cnr_before, cnr_after: CNR.  cnr_ratio, contrast_ratio: after / before.  A rib across the ring lowers the first and
    changes the second, so good suppression may exceed 1.  cnr_of_truth, contrast_of_truth: after / truth, 1 for perfect
    suppression and about 0 for an erased nodule (not exactly, as the lung behind it remains).
    A nodule is left out if its ring has fewer than 20 pixels or less than half of the nodule is inside the lungs.
    Ratios also leave out nodules that were less than 1 of 255 brighter than their ring, and so invisible.
    Raises UsageError for a mask that is empty, not bool or of another shape.
    """
    result, film = check_films(result_HW, film_HW)
    lung = _check_mask(np.ones(film.shape, dtype=bool) if lung_HW is None else lung_HW, film, "lungs")
    truth = None if truth_HW is None else check_films(result, truth_HW)[1]
    masks = [_check_mask(nodule, film, "a nodule") for nodule in nodules]
    if not all(mask.any() for mask in masks):
        raise UsageError("the mask of a nodule is empty: leave it out")
    rows = [_measure_nodule(film, result, truth, mask, draw_ring(mask, lung, masks), lung) for mask in masks]
    return {name: _mean_known([row[name] for row in rows]) for name in rows[0]} if rows else {}


def measure_vessels(
    film_HW: ArrayLike,
    result_HW: ArrayLike,
    bone_HW: ArrayLike,
    lung_HW: ArrayLike,
    truth_HW: ArrayLike | None = None,
) -> dict[str, float]:
    """Measure how much fine detail the lung keeps between the ribs.

    Energy is the mean square of the film in the band of vessels: the difference of two Gaussians of 0.0025 and 0.01 of
    the side, which passes most at 39 cycles per film (9 mm each on 35 cm) and half as much at 17 and at 87.  It is
    measured where `find_gaps` finds lung without bone.

    energy_ratio: after / before.  energy_of_truth: after / truth, 1 for perfect suppression.  Below 1 detail was
    blurred; above 1 something was added, and noise counts as detail.  NaN if fewer than 20 pixels are left.
    """
    result, film = check_films(result_HW, film_HW)
    lung = _check_mask(lung_HW, film, "lungs")
    between = find_gaps(bone_HW, lung)
    before, after = _compute_detail(film, between), _compute_detail(result, between)
    measured = {"energy_ratio": _divide(after, before)}
    if truth_HW is not None:
        measured["energy_of_truth"] = _divide(after, _compute_detail(check_films(result, truth_HW)[1], between))
    return measured


def find_gaps(bone_HW: ArrayLike, lung_HW: MaskArray) -> MaskArray:
    """Return where the lungs lie between ribs: beside bone (`find_ribs`) and 0.02 of the side from their border.

    Ribs of front and back cross nearly everywhere, so edges of bone are left out by their strength: where the bone, in
    the band of vessels, exceeds a quarter of its root mean square.
    """
    inside: MaskArray = lung_HW & (_compute_distance(~lung_HW) > 2 * BAND[1] * max(lung_HW.shape))
    if not inside.any():
        return inside
    edge_HW = np.abs(pass_vessels(np.asarray(bone_HW).astype(np.float64)))
    strongest = EDGE_SHARE * math.sqrt(float(np.mean(edge_HW[inside] ** 2)))
    gaps: MaskArray = inside & find_ribs(bone_HW, lung_HW)[1] & (edge_HW <= strongest)
    return gaps


def pass_vessels(film_HW: FloatArray) -> FloatArray:
    """Return a film in the band of vessels; see `measure_vessels`."""
    fine, coarse = (ndimage.gaussian_filter(film_HW, share * max(film_HW.shape)) for share in BAND)
    band: FloatArray = fine - coarse
    return band


def compute_background(film_HW: FloatArray, lung_HW: MaskArray) -> FloatArray:
    """Return the mean of the lung in a square around each pixel, 1/8 of the longer side wide; 0 without lung."""
    side = 2 * round(BACKGROUND * max(film_HW.shape) / 2) + 1
    weight = lung_HW.astype(np.float64)
    total = ndimage.uniform_filter(film_HW * weight, side, mode="constant")
    share = ndimage.uniform_filter(weight, side, mode="constant")
    # Box sums leave rounding errors outside the lung; a real share is at least half a pixel.
    mean: FloatArray = np.divide(total, share, out=np.zeros_like(total), where=share > 0.5 / side**2)
    return mean


def _check_mask(mask_HW: ArrayLike, film_HW: FloatArray, what: str) -> MaskArray:
    mask = np.asarray(mask_HW)
    if mask.dtype != bool or mask.shape != film_HW.shape:
        raise UsageError(f"the mask of {what} is bool {film_HW.shape}, not {mask.dtype} {mask.shape}")
    return mask


def _flatten(film_HW: FloatArray, lung_HW: MaskArray) -> FloatArray:
    return film_HW - compute_background(film_HW, lung_HW)


def _compute_distance(mask_HW: MaskArray) -> FloatArray:
    """Return the distance of each pixel to the nearest one of the mask, in pixels; infinite for an empty mask."""
    if not mask_HW.any():
        return np.full(mask_HW.shape, math.inf)
    distance: FloatArray = ndimage.distance_transform_edt(~mask_HW)
    return distance


def _subtract_means(film_HW: FloatArray, inside_HW: MaskArray, beside_HW: MaskArray) -> float:
    if min(inside_HW.sum(), beside_HW.sum()) < LEAST_PIXELS:
        return math.nan
    return float(film_HW[inside_HW].mean() - film_HW[beside_HW].mean())


def _measure_nodule(
    film_HW: FloatArray,
    result_HW: FloatArray,
    truth_HW: FloatArray | None,
    nodule_HW: MaskArray,
    ring_HW: MaskArray,
    lung_HW: MaskArray,
) -> dict[str, float]:
    usable = (ring_HW & lung_HW).sum() >= LEAST_PIXELS and lung_HW[nodule_HW].mean() >= 0.5
    none = (math.nan, math.nan)
    before, after = (compute_contrast(part, nodule_HW, ring_HW) if usable else none for part in (film_HW, result_HW))
    measured = {
        "cnr_before": before[1],
        "cnr_after": after[1],
        "cnr_ratio": after[1] / before[1] if before[0] >= LEAST_CONTRAST else math.nan,
        "contrast_ratio": _divide(after[0], before[0], LEAST_CONTRAST),
    }
    if truth_HW is not None:
        truth = compute_contrast(truth_HW, nodule_HW, ring_HW) if usable else none
        measured["cnr_of_truth"] = after[1] / truth[1] if truth[0] >= LEAST_CONTRAST else math.nan
        measured["contrast_of_truth"] = _divide(after[0], truth[0], LEAST_CONTRAST)
    return measured


def _compute_detail(film_HW: FloatArray, where_HW: MaskArray) -> float:
    return float((pass_vessels(film_HW)[where_HW] ** 2).mean()) if where_HW.sum() >= LEAST_PIXELS else math.nan


def _divide(part: float, whole: float, least: float = 1e-12) -> float:
    return part / whole if whole >= least else math.nan


def _mean_known(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
