"""Add CT nodules or drawn nodules to healthy films: the simple generator that a network has to beat.

A film's grey is about linear in the logarithm of the exposure, so a nodule adds its thickness along the ray times a
gain.  runs/fit_nodule_contrast.py measured this gain on real films.  Results are SYNTHETIC.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from chess_cxr.ingest.split import assign_split
from chess_cxr.records import ChessError, Undecodable, UsageError
from chess_cxr.tasks.ct_nodules import (
    CtNodule,
    Film,
    Mask,
    choose_ct_nodule,
    compute_diameter,
    compute_room,
    place_nodule,
    read_ct_nodules,
)
from chess_cxr.tasks.nodules.masks import build_requests, draw_nodule_mask
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import build_ingest_pool, call_in_child

# Suffixes: H, W film; Y, X the nodule's own patch.
# Fitted on train films: grey that the middle of a nodule of 15 mm adds, as a share of the 5th to 95th percentile of
# the lung's greys, and the standard deviation of its logarithm between nodules.  It grows with the thickness, hence
# the diameter (Beer-Lambert), up to LARGEST_MM; wider real nodules are hardly brighter.
CONTRAST_15_MM, CONTRAST_SPREAD, LARGEST_MM = 0.17, 0.2, 20.0
_FADED = 1e-3  # of the nodule's thickness; thinner parts leave the film unchanged
_DRAWN_MM = 0.5

# ---------------------------------------------------------------- where they come from


def split_ct_nodules(nodules: Sequence[CtNodule], seed: int, val: float, test: float) -> dict[str, list[CtNodule]]:
    """Split nodules into "train", "val" and "test" by scan; a pure function of series_uid and seed."""
    parts: dict[str, list[CtNodule]] = {"train": [], "val": [], "test": []}
    for nodule in nodules:
        parts[assign_split(nodule.series_uid, seed, val, test)].append(nodule)
    return parts


def draw_analytic_nodule(diameter_mm: float, rng: np.random.Generator, irregularity: float = 0.12) -> CtNodule:
    """Draw a spheroid with a lobulated outline, for use without CT nodules."""
    side = math.ceil(1.8 * diameter_mm / _DRAWN_MM) + 9
    middle = (side - 1) / 2
    mask_YX = draw_nodule_mask((side, side), (middle, middle), diameter_mm / _DRAWN_MM, rng, irregularity)
    return build_nodule(mask_YX, _DRAWN_MM)


def build_nodule(mask_YX: Mask, spacing_mm: float) -> CtNodule:
    """Build the body whose shadow is the mask: as thick as a ball at the same depth inside the outline."""
    if not mask_YX.any():
        raise UsageError("the mask is empty: mark the place of the nodule")
    depth_YX = cv2.distanceTransform(np.pad(mask_YX, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    # Half a pixel: the transform measures to the middle of the first pixel outside
    inside_YX = np.maximum(depth_YX - 0.5, 0) / max(float(depth_YX.max()) - 0.5, 0.5)
    density_YX = np.sqrt(np.maximum(1 - (1 - np.minimum(inside_YX, 1)) ** 2, 0)) * mask_YX
    name = f"drawn-{compute_diameter(mask_YX) * spacing_mm:.0f}mm"
    return CtNodule(
        name, density_YX.astype(np.float32), mask_YX, compute_diameter(mask_YX) * spacing_mm, spacing_mm=spacing_mm
    )


# ---------------------------------------------------------------- how they are added


def draw_contrast(film_HW: Film, lung_HW: Mask, diameter_mm: float, rng: np.random.Generator) -> float:
    """Draw the grey that the middle of a nodule adds over lung (0 to 1), as bright as real nodules of JSRT.

    It is proportional to the range of the lung's greys, so that it fits films of any window.
    """
    if not lung_HW.any():
        raise UsageError("there is no lung to take the film's grey range from")
    low, high = np.percentile(film_HW[lung_HW], (5, 95))
    typical = CONTRAST_15_MM * min(diameter_mm, LARGEST_MM) / 15
    return float((high - low) * typical * math.exp(CONTRAST_SPREAD * float(np.clip(rng.normal(), -2, 2))))


def insert_ct_nodule(
    film_HW: Film,
    nodule: CtNodule,
    centre_px: tuple[float, float],
    diameter_mm: float,
    spacing_mm: float,
    contrast: float,
) -> tuple[Film, Mask]:
    """Add a nodule to a film in [0, 1], bone bright; return the new film and the nodule's mask, bool [H, W].

    centre_px: (column, row) of the middle of its mask.  diameter_mm: of the disc with the mask's area.  contrast: grey
    that its middle adds over lung; less over brighter tissue, see `compute_room`.  Pixels away from the nodule keep
    their bits.  SYNTHETIC.
    Raises `UsageError` for a centre outside the film, and for a diameter, spacing or contrast that is not above 0.
    """
    column, row = centre_px
    if not (0 <= column <= film_HW.shape[1] - 1 and 0 <= row <= film_HW.shape[0] - 1):
        height, width = film_HW.shape
        raise UsageError(f"the nodule's centre ({column:g}, {row:g}) is outside the film of {width} x {height} pixels")
    for name, value in (("diameter", diameter_mm), ("pixel spacing", spacing_mm), ("contrast", contrast)):
        if not (value > 0 and math.isfinite(value)):
            raise UsageError(f"the nodule's {name} is {value:g}; it must be above 0")
    thickness_HW, mask_HW = place_nodule(nodule, film_HW.shape, centre_px, diameter_mm, spacing_mm)
    touched_HW = thickness_HW > _FADED
    added_HW = contrast * thickness_HW * compute_room(film_HW, diameter_mm / spacing_mm)
    grey_HW = np.where(touched_HW, np.clip(film_HW + added_HW, 0, 1), film_HW)
    return grey_HW.astype(np.float32), mask_HW


@dataclass(frozen=True)
class CtInsertion:
    """Insertion of CT nodules, used like a `NoduleGenerator`.  sha256: hash of the nodules' images."""

    nodules: Sequence[CtNodule]
    sha256: str
    mode: Literal["inpaint"] = "inpaint"

    def make(
        self, film_HW: Film, mask_HW: Mask, seed: int, lung_HW: Mask, spacing_mm: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add a CT nodule at each piece of the mask, with its area; return the film and the mask of the nodules.

        SYNTHETIC.  Raises `UsageError` without a pixel spacing or a lung, and as `insert_ct_nodule` does.
        """
        if not spacing_mm > 0:
            raise UsageError("the film does not say its pixel spacing; give it with --spacing-mm")
        rng, made_HW = np.random.default_rng([seed, 29]), np.zeros_like(mask_HW)
        for request in build_requests(mask_HW, spacing_mm):
            nodule = choose_ct_nodule(self.nodules, request.diameter_mm, rng)
            contrast = draw_contrast(film_HW, lung_HW, request.diameter_mm, rng)
            film_HW, own_HW = insert_ct_nodule(
                film_HW, nodule, request.centre_px, request.diameter_mm, spacing_mm, contrast
            )
            made_HW |= own_HW
        return film_HW, made_HW


def load_insertion(folder: Path, limits: Limits | None = None) -> CtInsertion:
    """Read CT nodules (see `read_ct_nodules`) in a process with limits; raises `ChessError` if that fails."""
    try:
        with build_ingest_pool(1) as pool:
            nodules = pool.submit(call_in_child, read_ct_nodules, limits or Limits(), folder).result()
    except Undecodable as error:
        raise ChessError(f"{folder}: the CT nodules cannot be read: {error}") from None
    if not nodules:
        raise UsageError(f"{folder / 'nodules.csv'} lists no nodule")
    content = hashlib.sha256()
    for nodule in nodules:
        content.update(repr((nodule.name, nodule.density_YX.shape, nodule.spacing_mm)).encode())
        content.update(nodule.density_YX.tobytes())
    return CtInsertion(nodules, content.hexdigest())
