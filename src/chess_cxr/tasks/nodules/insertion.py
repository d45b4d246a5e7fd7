"""Add CT nodules or drawn nodules to healthy films: the simple generator that a network has to beat.

A film's grey is about linear in the logarithm of the exposure, so a nodule adds its thickness along the ray times a
gain.  runs/fit_nodule_contrast.py measured this gain on real films.  Results are SYNTHETIC.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from chess_cxr.ingest.split import assign_split
from chess_cxr.records import ChessError, Undecodable, UsageError
from chess_cxr.sources.read_table import read_table
from chess_cxr.tasks.nodules.masks import Mask, build_requests, draw_nodule_mask, read_mask_levels
from chess_cxr.workers.child import Limits
from chess_cxr.workers.pool import build_ingest_pool, call_in_child

# Suffixes: H, W film; Y, X the nodule's own patch.
# Fitted on train films: grey that the middle of a nodule of 15 mm adds, as a share of the 5th to 95th percentile of
# the lung's greys, and the standard deviation of its logarithm between nodules.  It grows with the thickness, hence
# the diameter (Beer-Lambert), up to LARGEST_MM; wider real nodules are hardly brighter.
CONTRAST_15_MM, CONTRAST_SPREAD, LARGEST_MM = 0.17, 0.2, 20.0
_BLUR_MM = 0.4  # standard deviation of detector, focal spot and the heart beat's motion
_CT_BLUR_PX = 0.7  # of the CT patch, to hide its pixels
_CT_BLUR = 0.08  # of its diameter, to hide steps and streaks of slices
_WHITENING = 4  # see `_compute_room`
_FADED = 1e-3  # of the nodule's thickness; thinner parts leave the film unchanged
_MIN_PIXELS, _MIN_ROUNDNESS, _LIKE_SIZE = 20, 0.5, 1.6
_CT_SIDE_MAX = 256
_DRAWN_MM = 0.5

Film = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CtNodule:
    """The thickness of a nodule along the rays.

    density_YX: float32, 1 at its thickest and 0 outside mask_YX.  diameter_mm: of the disc with the mask's area.
    series_uid: the scan, which stands for the patient; "" for a drawn nodule.  spacing_mm: of the patch.
    """

    name: str
    density_YX: Film
    mask_YX: Mask
    diameter_mm: float
    series_uid: str = ""
    spacing_mm: float = 1.0


# ---------------------------------------------------------------- where they come from


def read_ct_nodules(folder: Path) -> list[CtNodule]:
    """Read nodules.csv (nodule, mask, series_uid) and the images that it names, with pixels of 1 mm.

    A column spacing may state other pixels, in mm ("1 1 1").  Raises `UsageError`, in one line, for missing or damaged
    files.
    """
    table = read_table(folder / "nodules.csv")
    missing = [name for name in ("nodule", "mask", "series_uid") if name not in table.columns]
    if missing:
        raise UsageError(f"{folder / 'nodules.csv'} lacks {', '.join(missing)}")
    return [_read_ct_nodule(folder, row, number) for number, row in enumerate(table.to_dict("records"), start=2)]


def _read_ct_nodule(folder: Path, row: Mapping[Hashable, object], number: int) -> CtNodule:
    what = f"row {number} of nodules.csv"
    paths = [folder / str(row[column]) for column in ("nodule", "mask")]
    if not all(path.resolve().is_relative_to(folder.resolve()) for path in paths):
        raise UsageError(f"{what} leads out of {folder}")
    try:
        spacing_mm = float(str(row.get("spacing", "1")).split()[0])
        density_YX, mask_YX = (read_mask_levels(path) for path in paths)
    except (UsageError, ValueError, IndexError) as error:
        raise UsageError(f"{what}: {error}") from None
    if density_YX.shape != mask_YX.shape or max(mask_YX.shape) > _CT_SIDE_MAX or not spacing_mm > 0:
        raise UsageError(f"{what}: nodule and mask must have equal sizes of at most {_CT_SIDE_MAX} pixels")
    inside_YX = mask_YX > 0
    density_YX = np.where(inside_YX, density_YX, 0).astype(np.float32)
    if not density_YX.max() > 0:
        raise UsageError(f"{what}: the nodule is empty")
    return CtNodule(
        name=Path(str(row["nodule"])).stem,
        density_YX=density_YX / density_YX.max(),
        mask_YX=inside_YX,
        diameter_mm=_compute_diameter(inside_YX) * spacing_mm,
        series_uid=str(row["series_uid"]),
        spacing_mm=spacing_mm,
    )


def _compute_diameter(mask_YX: Mask) -> float:
    return 2 * math.sqrt(float(mask_YX.sum()) / math.pi)


def split_ct_nodules(nodules: Sequence[CtNodule], seed: int, val: float, test: float) -> dict[str, list[CtNodule]]:
    """Split nodules into "train", "val" and "test" by scan; a pure function of series_uid and seed."""
    parts: dict[str, list[CtNodule]] = {"train": [], "val": [], "test": []}
    for nodule in nodules:
        parts[assign_split(nodule.series_uid, seed, val, test)].append(nodule)
    return parts


def choose_ct_nodule(nodules: Sequence[CtNodule], diameter_mm: float, rng: np.random.Generator) -> CtNodule:
    """Choose a nodule of similar size at random; turn it by a multiple of 90 degrees and mirror it, also at random.

    Similar is at most 1.6 times larger or smaller; if there is none, the nearest size is taken.  Nodules of fewer than
    20 pixels and elongated ones, mostly pieces of vessels and slices, are left out.  Raises `UsageError` if none is
    left.
    """
    apart_N = np.abs(np.log([n.diameter_mm / diameter_mm for n in nodules]))
    near_N = rng.permutation(np.flatnonzero(apart_N <= math.log(_LIKE_SIZE)))
    order_N = np.concatenate([near_N, np.argsort(apart_N, kind="stable")])
    chosen: CtNodule | None = next((nodules[i] for i in order_N if _is_insertable(nodules[i].mask_YX)), None)
    if chosen is None:
        raise UsageError("no CT nodule is large and round enough to be inserted")
    turns, is_mirrored = int(rng.integers(4)), bool(rng.integers(2))
    density_YX, mask_YX = (np.rot90(part, turns) for part in (chosen.density_YX, chosen.mask_YX))
    if is_mirrored:
        density_YX, mask_YX = density_YX[:, ::-1], mask_YX[:, ::-1]
    return replace(chosen, density_YX=np.ascontiguousarray(density_YX), mask_YX=np.ascontiguousarray(mask_YX))


def _is_insertable(mask_YX: Mask) -> bool:
    """Whether a mask has enough pixels and fills enough of the smallest disc around its middle."""
    points_N2 = np.argwhere(mask_YX)
    reach = np.sqrt(((points_N2 - points_N2.mean(axis=0)) ** 2).sum(axis=1).max()) + 0.5
    return bool(mask_YX.sum() >= max(_MIN_PIXELS, _MIN_ROUNDNESS * math.pi * reach**2))


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
    name = f"drawn-{_compute_diameter(mask_YX) * spacing_mm:.0f}mm"
    return CtNodule(
        name, density_YX.astype(np.float32), mask_YX, _compute_diameter(mask_YX) * spacing_mm, spacing_mm=spacing_mm
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
    that its middle adds over lung; less over brighter tissue, see `_compute_room`.  Pixels away from the nodule keep
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
    thickness_HW, mask_HW = _place(nodule, film_HW.shape, centre_px, diameter_mm, spacing_mm)
    touched_HW = thickness_HW > _FADED
    added_HW = contrast * thickness_HW * _compute_room(film_HW, diameter_mm / spacing_mm)
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


def _place(
    nodule: CtNodule, shape: tuple[int, ...], centre_px: tuple[float, float], diameter_mm: float, spacing_mm: float
) -> tuple[Film, Mask]:
    """Return the thickness, 1 in the middle of the nodule, and the mask on the film's grid."""
    zoom = diameter_mm / nodule.diameter_mm * nodule.spacing_mm / spacing_mm  # film pixels a patch pixel
    row, column = (float(axis.mean()) for axis in np.nonzero(nodule.mask_YX))
    matrix = np.array([[zoom, 0, centre_px[0] - zoom * column], [0, zoom, centre_px[1] - zoom * row]])
    pad = math.ceil(2 + 2 / zoom)
    matrix[:, 2] -= zoom * pad
    rough_px = max(_CT_BLUR_PX, _CT_BLUR * nodule.diameter_mm / nodule.spacing_mm) if nodule.series_uid else 0.0
    smoothing = math.hypot(rough_px, 0.5 / zoom)
    soft_YX = cv2.GaussianBlur(np.pad(nodule.density_YX, pad), (0, 0), smoothing)
    cover_YX = cv2.GaussianBlur(np.pad(nodule.mask_YX, pad).astype(np.float32), (0, 0), max(smoothing, 0.3))
    size = (shape[1], shape[0])
    thickness_HW, cover_HW = (
        np.asarray(cv2.warpAffine(part, matrix, size, flags=cv2.INTER_LINEAR), np.float32)
        for part in (soft_YX, cover_YX)
    )
    blur_px = _BLUR_MM / spacing_mm
    if blur_px > 0.15:
        thickness_HW = np.asarray(cv2.GaussianBlur(thickness_HW, (0, 0), blur_px), np.float32)
    # The most covered pixels, as many as the diameter asks for
    wanted = max(1, round(math.pi * (diameter_mm / spacing_mm) ** 2 / 4))
    threshold = np.partition(cover_HW, -wanted, axis=None)[-wanted] if wanted < cover_HW.size else 0
    mask_HW = cover_HW >= max(float(threshold), 1e-6)
    middle = float(np.quantile(thickness_HW[mask_HW], 0.875))  # the median of its thickest quarter
    return thickness_HW / max(middle, 1e-6), mask_HW


def _compute_room(film_HW: Film, diameter_px: float) -> Film:
    """Return the share of the contrast that is left over tissue: brighter films have more scatter and saturate.

    1 over air, 0 over white.  The surroundings decide, not the single pixel, so that ribs and noise stay unchanged.
    """
    around_HW = np.asarray(cv2.GaussianBlur(film_HW, (0, 0), max(diameter_px / 2, 1)), np.float32)
    return np.asarray(1 - np.clip(around_HW, 0, 1) ** _WHITENING, np.float32)
