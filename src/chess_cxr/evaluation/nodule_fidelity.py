"""Whether a nodule is where it was asked for, as large, and how well it shows; and whether the rest was left alone.

Contrast is the mean inside the mask minus that of a ring around it, in grey levels of the [0, 1] scale, bone bright.
The size is measured by the region that reaches half of the height above the ring.  A ball's shadow does so at 0.87 of
its diameter, and real nodules lie on ribs and vessels: compare sizes with those measured alike on real nodules, not
with the diameters a reader states.

Shape suffixes: H, W pixels of a film.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from chess_cxr.records import UsageError

Mask = NDArray[np.bool_]

RING_INNER, RING_OUTER = 1.25, 2.0  # in radii of the mask
WINDOW = 2.0  # in radii of the mask, from its centre: how far the measured region may reach
FEWEST_RING_PX = 8
_SMOOTHING = 0.15  # in radii of the mask: noise would tear the measured region apart


@dataclass(frozen=True)
class NoduleMeasurement:
    """One nodule on one film.

    contrast: mask minus ring.  cnr: contrast over the ring's standard deviation; infinite on a flat ring.
    x_px, y_px: centre of the measured region; diameter_px, diameter_mm: of the disc with its area.  NaN where nothing
    near the mask's centre rises above the ring; diameter_mm also where the spacing is not known.
    cut_off: the region ran into the end of the window, so that its size is a lower bound.
    mask_x_px, mask_y_px, mask_diameter_px: the same of the mask.  lung_share: of the mask, how much lies in the lung; NaN
    where no lung was given.
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
class RequestError:
    """Measured minus requested.  diameter_ratio: measured over requested; centre_mm: NaN where the spacing is unknown."""

    diameter_px: float
    diameter_ratio: float
    centre_px: float
    centre_mm: float


@dataclass(frozen=True)
class BackgroundChange:
    """What changed outside the region that may change, on the [0, 1] scale; equal_share: of its pixels, bit for bit."""

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
    """Measure a nodule, given where it should be.

    film_HW: float in [0, 1], bone bright.  mask_HW: bool, of the nodule.  lung_HW: bool; the ring keeps to it where
    that leaves eight pixels.  The ring runs from 1.25 to 2 radii of the mask, measured from the mask's edge.
    Raises UsageError where shapes differ, the mask is empty or not boolean, or nothing of the film is left around it.
    """
    _check_film(film_HW, mask_HW, lung_HW)
    film = film_HW.astype(np.float64)
    radius = math.sqrt(mask_HW.sum() / math.pi)
    outside = ndimage.distance_transform_edt(~mask_HW)
    ring = _draw_ring(outside, radius, lung_HW)
    level, noise = float(film[ring].mean()), float(film[ring].std())
    contrast = float(film[mask_HW].mean()) - level
    cnr = contrast / noise if noise > 0 else math.copysign(math.inf, contrast) if contrast else 0.0
    mask_y, mask_x = (float(place) for place in np.argwhere(mask_HW).mean(axis=0))
    region, cut_off = _find_half_height(film, mask_HW, radius, level)
    y, x = (float(place) for place in np.argwhere(region).mean(axis=0)) if region.any() else (math.nan, math.nan)
    diameter = 2 * math.sqrt(region.sum() / math.pi) if region.any() else math.nan
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


def compare_with_request(
    measured: NoduleMeasurement,
    x_px: float,
    y_px: float,
    diameter_px: float,
    spacing_mm: float | None = None,
) -> RequestError:
    """Compare a measured nodule with what was asked for: centre (column, row) and diameter, in pixels.

    NaN where nothing was measured: count those, as leaving them out would flatter the generator.
    """
    if not diameter_px > 0:
        raise UsageError(f"a requested diameter is above 0, not {diameter_px}")
    centre = math.hypot(measured.x_px - x_px, measured.y_px - y_px)
    return RequestError(
        measured.diameter_px - diameter_px,
        measured.diameter_px / diameter_px,
        centre,
        math.nan if spacing_mm is None else centre * spacing_mm,
    )


def measure_background(
    before_HW: NDArray[np.floating], after_HW: NDArray[np.floating], region_HW: Mask
) -> BackgroundChange:
    """Measure what changed outside the region, bool [H, W], that was meant to change.

    Raises UsageError where shapes or types differ, or where the region leaves nothing to compare.
    """
    if before_HW.shape != after_HW.shape or before_HW.dtype != after_HW.dtype:
        raise UsageError(
            f"films of {before_HW.shape} {before_HW.dtype} and {after_HW.shape} {after_HW.dtype} cannot be compared bit by bit"
        )
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


def _draw_ring(outside: NDArray[np.float64], radius: float, lung_HW: Mask | None) -> Mask:
    """Return what is 0.25 to 1 radii (of a disc of the mask's area) outside the mask, at least 2 pixels wide."""
    inner = max(1.0, (RING_INNER - 1) * radius)
    outer = max(inner + 2.0, (RING_OUTER - 1) * radius)
    ring: Mask = (outside > inner) & (outside <= outer)
    if lung_HW is not None and (ring & lung_HW).sum() >= FEWEST_RING_PX:
        ring = ring & lung_HW
    if ring.sum() < FEWEST_RING_PX:
        raise UsageError("the mask leaves no film around it to compare with")
    return ring


def _find_half_height(film: NDArray[np.float64], mask_HW: Mask, radius: float, level: float) -> tuple[Mask, bool]:
    """Return the connected region above half height, and whether it runs into the end of the window.

    Height is the mean of the brighter half of the mask, over the ring's level.  Of several regions, the one with the
    most pixels of the mask's inner half counts.
    """
    y_C, x_C = np.argwhere(mask_HW).mean(axis=0)
    reach = max(WINDOW * radius, radius + 2)
    rows, columns = np.ogrid[: film.shape[0], : film.shape[1]]
    distance = np.hypot(rows - y_C, columns - x_C)
    window: Mask = (distance <= reach) | mask_HW
    smooth = ndimage.gaussian_filter(film, max(0.5, _SMOOTHING * radius), mode="nearest")
    inside = smooth[mask_HW]
    height = float(inside[inside >= np.median(inside)].mean()) - level
    nothing = np.zeros_like(mask_HW)
    if height <= 1e-6:
        return nothing, False
    label_HW, count = ndimage.label(window & (smooth > level + height / 2))
    core = mask_HW & (distance <= max(radius / 2, 1.0))
    votes = np.bincount(label_HW[core if core.any() else mask_HW], minlength=count + 1)[1:]
    if not votes.any():
        return nothing, False
    region: Mask = ndimage.binary_fill_holes(label_HW == 1 + int(votes.argmax()))
    return region, bool((region & (distance > reach - 1.0)).any())
