"""Measure the position, size and contrast of a nodule, and what changed elsewhere on the film.

Contrast (`chess_cxr.tasks.nodule_contrast`) is in grey levels of the [0, 1] scale, bone bright.
The diameter is where the profile from the centre outwards, averaged over all directions, falls to half its height.  The
average keeps ribs and vessels that cross the nodule from being measured as part of it.  A ball's shadow falls to half
its height at 0.88 of its diameter, and real nodules scatter widely about that: compare diameters with those measured in
the same way on real nodules, not with diameters stated by readers.

Shape suffixes: H, W pixels of a film.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from chess_cxr.records import UsageError
from chess_cxr.tasks.nodule_contrast import FEWEST_RING_PX, RING_OUTER, Mask, compute_contrast, draw_ring

SEARCH = 1.5  # radius of the search around the mask's centre, in radii of the mask
_SMOOTHING = 0.15  # in radii of the mask; noise would split the nodule
_STEP_PX = 0.5
_DIRECTIONS = 64


@dataclass(frozen=True)
class NoduleMeasurement:
    """Measurements of a nodule on a film.

    contrast, cnr: see `compute_contrast`.
    x_px, y_px: centre of the area above half the nodule's height.  diameter_px, diameter_mm: of the profile around that
    centre, at half its height.  All are NaN if nothing near the mask's centre is brighter than the ring; diameter_mm
    also if the spacing is unknown.
    cut_off: the profile did not fall to half within the ring's outer edge, so that the diameter is a lower bound.
    mask_x_px, mask_y_px: centre of the mask.  mask_diameter_px: of the disc with its area.
    lung_share: share of the mask inside the lung; NaN without a lung mask.
    """

    contrast: float
    cnr: float
    x_px: float
    y_px: float
    diameter_px: float
    diameter_mm: float
    cut_off: bool
    mask_x_px: float
    mask_y_px: float
    mask_diameter_px: float
    lung_share: float


@dataclass(frozen=True)
class BackgroundChange:
    """Changes outside the region that may change, on the [0, 1] scale; equal_share: of pixels that kept their bits."""

    largest: float
    mean: float
    equal_share: float
    pixels: int


def measure_nodule(
    film_HW: NDArray[np.floating],
    mask_HW: Mask,
    lung_HW: Mask | None = None,
    spacing_mm: float | None = None,
) -> NoduleMeasurement:
    """Measure a nodule near its mask.

    film_HW: float in [0, 1], bone bright.  mask_HW: bool, of the nodule.  lung_HW: bool; limits the ring, see
    `draw_ring`.
    Raises UsageError if shapes differ, the mask is empty or not boolean, or no film is left around it.
    """
    _check_film(film_HW, mask_HW, lung_HW)
    film = film_HW.astype(np.float64)
    radius = math.sqrt(mask_HW.sum() / math.pi)
    ring = draw_ring(mask_HW, lung_HW)
    if ring.sum() < FEWEST_RING_PX:
        raise UsageError("the mask leaves no film around it to compare with")
    contrast, cnr = compute_contrast(film, mask_HW, ring)
    mask_y, mask_x = (float(place) for place in np.argwhere(mask_HW).mean(axis=0))
    flat = film - _fit_plane(film, ring)
    y, x = _find_centre(flat, mask_HW, (mask_y, mask_x), radius)
    diameter, cut_off = _measure_diameter(flat, (y, x), radius)
    return NoduleMeasurement(
        contrast=contrast,
        cnr=cnr,
        x_px=x,
        y_px=y,
        diameter_px=diameter,
        diameter_mm=math.nan if spacing_mm is None else diameter * spacing_mm,
        cut_off=cut_off,
        mask_x_px=mask_x,
        mask_y_px=mask_y,
        mask_diameter_px=2 * radius,
        lung_share=math.nan if lung_HW is None else float(lung_HW[mask_HW].mean()),
    )


def measure_background(
    before_HW: NDArray[np.floating], after_HW: NDArray[np.floating], region_HW: Mask
) -> BackgroundChange:
    """Measure the changes outside the region, bool [H, W], that was meant to change.

    Raises UsageError if shapes or types differ, or the region covers the whole film.
    """
    if before_HW.shape != after_HW.shape or before_HW.dtype != after_HW.dtype:
        kinds = [f"{film_HW.dtype} {film_HW.shape}" for film_HW in (before_HW, after_HW)]
        raise UsageError(f"films of {' and '.join(kinds)} cannot be compared bit by bit")
    _check_film(before_HW, region_HW, None)
    _check_film(after_HW, region_HW, None)
    before, after = before_HW[~region_HW], after_HW[~region_HW]
    if not len(before):
        raise UsageError("the region covers the whole film: there is no background to compare")
    change = np.abs(after.astype(np.float64) - before)
    bits = np.dtype(f"u{before.itemsize}")
    equal = before.view(bits) == after.view(bits)
    return BackgroundChange(float(change.max()), float(change.mean()), float(equal.mean()), len(before))


def _check_film(film_HW: NDArray[np.floating], mask_HW: Mask, lung_HW: Mask | None) -> None:
    if film_HW.ndim != 2 or not np.issubdtype(film_HW.dtype, np.floating) or not np.isfinite(film_HW).all():
        raise UsageError(f"a film is finite float [H, W], not {film_HW.dtype} {film_HW.shape}")
    for name, part_HW in (("mask", mask_HW), ("lung", lung_HW)):
        if part_HW is not None and (part_HW.dtype != np.bool_ or part_HW.shape != film_HW.shape):
            raise UsageError(f"the {name} is {part_HW.dtype} {part_HW.shape}, not bool {film_HW.shape} as its film")
    if not mask_HW.any():
        raise UsageError("an empty mask cannot be measured")


def _fit_plane(film: NDArray[np.float64], ring: Mask) -> NDArray[np.float64]:
    """Fit a plane to the ring: the lung darkens outwards, which would shift the centre and the half height."""
    rows, columns = np.nonzero(ring)
    terms = np.column_stack([np.ones(len(rows)), rows, columns])
    level, by_row, by_column = np.linalg.lstsq(terms, film[ring], rcond=None)[0]
    plane: NDArray[np.float64] = (
        level + by_row * np.arange(film.shape[0])[:, None] + by_column * np.arange(film.shape[1])[None]
    )
    return plane


def _find_centre(
    flat: NDArray[np.float64], mask_HW: Mask, middle: tuple[float, float], radius: float
) -> tuple[float, float]:
    """Return (row, column) of the centre of the area above half height that covers most of the mask's core.

    The height is the mean of the brighter half of the mask.
    """
    rows, columns = np.ogrid[: flat.shape[0], : flat.shape[1]]
    distance = np.hypot(rows - middle[0], columns - middle[1])
    smooth = ndimage.gaussian_filter(flat, max(0.5, _SMOOTHING * radius), mode="nearest")
    inside = smooth[mask_HW]
    height = float(inside[inside >= np.median(inside)].mean())
    if height <= 1e-6:
        return math.nan, math.nan
    label_HW, count = ndimage.label((distance <= max(SEARCH * radius, radius + 2)) & (smooth > height / 2))
    votes = np.bincount(label_HW[distance <= max(radius / 2, 1.0)], minlength=count + 1)[1:]
    if not votes.any():
        return math.nan, math.nan
    y, x = np.argwhere(label_HW == 1 + votes.argmax()).mean(axis=0)
    return float(y), float(x)


def _measure_diameter(flat: NDArray[np.float64], centre: tuple[float, float], radius: float) -> tuple[float, bool]:
    """Return the diameter at half height of the mean profile, and whether it is cut off.

    The height is the mean of the profile over the inner half of the mask's radius, above the ring's plane.
    """
    if not math.isfinite(centre[0]):
        return math.nan, False
    reach_R = np.arange(0.0, max(RING_OUTER * radius, radius + 3), _STEP_PX)
    angle_A = np.arange(_DIRECTIONS) * (2 * math.pi / _DIRECTIONS)
    places = [
        middle + reach_R[:, None] * turn(angle_A)[None] for middle, turn in zip(centre, (np.sin, np.cos), strict=True)
    ]
    profile_R = ndimage.map_coordinates(flat, places, order=1, mode="nearest").mean(axis=1)
    half = float(profile_R[reach_R <= max(radius / 2, 1.0)].mean()) / 2
    if half <= 0:
        return math.nan, False
    below = np.flatnonzero(profile_R < half)
    if not len(below):
        return float(2 * reach_R[-1]), True
    first = int(below[0])
    if first == 0:  # a dark middle has no half height around it
        return math.nan, False
    share = (profile_R[first - 1] - half) / (profile_R[first - 1] - profile_R[first])
    return float(2 * (reach_R[first - 1] + share * _STEP_PX)), False
