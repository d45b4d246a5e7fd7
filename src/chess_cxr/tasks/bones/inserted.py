"""Nodules of known grey that are added to a film and to its target alike, so that their bone stays the same.

Suffixes: H, W film; Y, X the nodule's own patch; K nodules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chess_cxr.sources.phantom.findings import draw_nodule_shadow
from chess_cxr.tasks.ct_nodules import (
    CtNodule,
    Film,
    Mask,
    choose_ct_nodule,
    compute_diameter,
    compute_room,
    place_nodule,
)

DIAMETER_MM = (4.0, 40.0)
# Grey that a nodule of 15 mm adds.  It grows with the diameter up to 20 mm, see `nodules.insertion`.  The median of 41
# JSRT nodules of 11 to 15 mm is 0.024, the faintest tenth is below 0.009; those of phantoms have 0.05 to 0.15.
CONTRAST_15_MM = (0.008, 0.15)
LARGEST_MM, LEAST_CONTRAST = 20.0, 1 / 255
ON_BONE = 0.6  # share of the nodules that are placed by the amount of bone
APART = 1.3  # distance of two nodules, in sums of their radii
_FADED = 1e-2  # of the nodule's thickness; thinner parts are cut off
_PATCH_MM = 0.5
_PLACES = 20


@dataclass(frozen=True)
class AddedNodule:
    """A nodule added to a film: the grey that it adds, float32 [H, W], its mask and its size."""

    grey_HW: Film
    mask_HW: Mask
    diameter_mm: float


def draw_added_nodules(
    film_HW: Film,
    bone_free_HW: Film,
    spacing_mm: float,
    count: int,
    rng: np.random.Generator,
    ct_nodules: Sequence[CtNodule] = (),
    lung_HW: Mask | None = None,
) -> list[AddedNodule]:
    """Draw up to `count` nodules for a film in [0, 1], bone bright, and its target.

    Diameters are log-uniform in `DIAMETER_MM`, contrasts in `CONTRAST_15_MM`.  Six of ten nodules are placed where bone
    is, in proportion to it.  lung_HW: where nodules may lie; without it, the darker part of the target that is not air.
    ct_nodules: bodies of every second nodule; the others are the phantom's.  Added to both pictures, they stay within
    [0, 1].  SYNTHETIC.
    """
    allowed_N = np.flatnonzero(_find_lung(bone_free_HW) if lung_HW is None else lung_HW)
    if not len(allowed_N):
        return []
    bone_N = np.maximum(film_HW - bone_free_HW, 0).ravel()[allowed_N]
    bone_N = np.minimum(bone_N, np.percentile(bone_N, 90))  # spine and shoulders outweigh no rib
    share_N = bone_N / bone_N.sum() if bone_N.sum() > 0 else None
    room_HW = 1 - np.maximum(film_HW, bone_free_HW)
    found = list[AddedNodule]()
    places = list[tuple[float, float, float]]()
    for _ in range(count):
        diameter_mm = float(np.exp(rng.uniform(*np.log(DIAMETER_MM))))
        contrast = float(np.exp(rng.uniform(*np.log(CONTRAST_15_MM)))) * min(diameter_mm, LARGEST_MM) / 15
        weighed = share_N if rng.random() < ON_BONE else None
        radius = diameter_mm / spacing_mm / 2
        for _ in range(_PLACES):
            row, column = np.unravel_index(int(rng.choice(allowed_N, p=weighed)), film_HW.shape)
            if all(math.hypot(row - y, column - x) > APART * (radius + r) for y, x, r in places):
                break
        else:
            continue
        places.append((float(row), float(column), radius))
        if ct_nodules and rng.random() < 0.5:
            body = choose_ct_nodule(ct_nodules, diameter_mm, rng)
        else:
            body = draw_phantom_nodule(diameter_mm, rng)
        thickness_HW, mask_HW = place_nodule(body, film_HW.shape, (float(column), float(row)), diameter_mm, spacing_mm)
        thickness_HW[thickness_HW < _FADED] = 0
        grey_HW = max(contrast, LEAST_CONTRAST) * thickness_HW * compute_room(film_HW, 2 * radius)
        grey_HW = np.minimum(grey_HW, room_HW)
        if mask_HW.any() and float(grey_HW[mask_HW].mean()) > LEAST_CONTRAST / 4:
            found.append(AddedNodule(grey_HW, mask_HW, diameter_mm))
    return found


def draw_phantom_nodule(diameter_mm: float, rng: np.random.Generator) -> CtNodule:
    """Draw the body of a phantom's nodule as a patch, lobulated and with a few spicules."""
    half = math.ceil(0.8 * diameter_mm / _PATCH_MM) + 3
    y_YX, x_YX = (_PATCH_MM / 10 * part for part in np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32))
    soft_YX, mask_YX = draw_nodule_shadow(np.hypot(x_YX, y_YX), np.arctan2(y_YX, x_YX), diameter_mm / 10, rng)
    return CtNodule("phantom", soft_YX, mask_YX, compute_diameter(mask_YX) * _PATCH_MM, spacing_mm=_PATCH_MM)


def _find_lung(bone_free_HW: Film) -> Mask:
    """Return where lungs may be in a picture without bone: darker than most of the body, brighter than air."""
    body_HW = bone_free_HW > 0.05
    if not body_HW.any():
        return body_HW
    lung_HW: Mask = body_HW & (bone_free_HW <= np.percentile(bone_free_HW[body_HW], 60))
    return lung_HW
