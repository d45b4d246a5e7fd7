"""Contrast of a nodule against the ring around it.  Suffixes: H, W pixels of a film."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

RING_INNER, RING_OUTER = 1.25, 2.0  # in radii of the disc with the mask's area
FEWEST_RING_PX = 8
_NO_NOISE = 1e-9


def draw_ring(mask_HW: Mask, lung_HW: Mask | None = None, others: Sequence[Mask] = ()) -> Mask:
    """Return the ring around a nodule: 0.25 to 1 radii from its edge, at least 2 pixels wide and 1 pixel away.

    It excludes `others`, other nodules nearby, and is limited to the lungs if that leaves eight pixels.
    """
    radius = math.sqrt(mask_HW.sum() / math.pi)
    inner = max(1.0, (RING_INNER - 1) * radius)
    outer = max(inner + 2.0, (RING_OUTER - 1) * radius)
    away_HW = ndimage.distance_transform_edt(~mask_HW)
    ring_HW: Mask = (away_HW > inner) & (away_HW <= outer)
    for other_HW in others:
        ring_HW &= ~other_HW
    if lung_HW is not None and (ring_HW & lung_HW).sum() >= FEWEST_RING_PX:
        ring_HW &= lung_HW
    return ring_HW


def compute_contrast(film_HW: NDArray[np.float64], mask_HW: Mask, ring_HW: Mask) -> tuple[float, float]:
    """Return the contrast (mean of the nodule minus mean of its ring) and the contrast-to-noise ratio.

    The noise is the ring's standard deviation; the ratio is NaN for a ring without noise.
    """
    contrast = float(film_HW[mask_HW].mean() - film_HW[ring_HW].mean())
    noise = float(film_HW[ring_HW].std())
    return contrast, contrast / noise if noise > _NO_NOISE else math.nan
