"""Nodules of CT scans, projected along the rays: read them, choose one, place its thickness on a film's grid."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from chess_cxr.files.locations import read_location
from chess_cxr.records import UsageError
from chess_cxr.sources.read_table import read_table

# Suffixes: H, W film; Y, X the nodule's own patch.
MAX_MASK_BYTES = 64 << 20
MAX_MASK_PIXELS = 120_000_000
_BLUR_MM = 0.4  # standard deviation of detector, focal spot and the heart beat's motion
_CT_BLUR_PX = 0.7  # of the CT patch, to hide its pixels
_CT_BLUR = 0.08  # of its diameter, to hide steps and streaks of slices
_WHITENING = 4  # see `compute_room`
_MIN_PIXELS, _MIN_ROUNDNESS, _LIKE_SIZE = 20, 0.5, 1.6
_CT_SIDE_MAX = 256

Film = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


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


def read_ct_nodules(folder: Path) -> list[CtNodule]:
    """Read nodules.csv (nodule, mask, series_uid) and the images that it names, with pixels of 1 mm.

    A column spacing may state other pixels, in mm ("1 1 1").  Raises `UsageError`, in one line, for missing or damaged
    files.
    """
    return [read_ct_nodule(folder, row, number) for number, row in enumerate(list_ct_rows(folder), start=2)]


def list_ct_rows(folder: Path) -> list[dict[Hashable, object]]:
    """Return the rows of nodules.csv; raises `UsageError` if it lacks a column."""
    table = read_table(folder / "nodules.csv")
    missing = [name for name in ("nodule", "mask", "series_uid") if name not in table.columns]
    if missing:
        raise UsageError(f"{folder / 'nodules.csv'} lacks {', '.join(missing)}")
    return table.to_dict("records")


def read_ct_nodule(folder: Path, row: Mapping[Hashable, object], number: int) -> CtNodule:
    """Read one nodule; number: of its row in nodules.csv, for errors as in `read_ct_nodules`."""
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
        diameter_mm=compute_diameter(inside_YX) * spacing_mm,
        series_uid=str(row["series_uid"]),
        spacing_mm=spacing_mm,
    )


def compute_diameter(mask_YX: Mask) -> float:
    """Return the diameter of the disc with a mask's area, in pixels."""
    return 2 * math.sqrt(float(mask_YX.sum()) / math.pi)


def read_mask_levels(path: Path | str, shape: tuple[int, int] | None = None) -> npt.NDArray[np.integer]:
    """Read the grey levels of a mask file (PNG or TIFF) unchanged: integers [H, W].

    shape: required shape, that of the film.  Raises `UsageError` if the file is absent, not such an image, in colour,
    of another shape, or larger than 64 MiB or 120 megapixels.
    """
    try:
        content = read_location(path, MAX_MASK_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of the size, which the next lines check
            image = Image.open(io.BytesIO(content), formats=("PNG", "TIFF"))
            if image.width * image.height > MAX_MASK_PIXELS:
                raise UsageError(f"the mask has more than {MAX_MASK_PIXELS // 1_000_000} megapixels")
            if shape is not None and (image.height, image.width) != shape:  # before its pixels take memory
                raise UsageError(
                    f"the mask has {image.width} x {image.height} pixels, the film {shape[1]} x {shape[0]}; they must "
                    "be equal"
                )
            levels_HW = np.asarray(image)
    except FileNotFoundError:
        raise UsageError("the mask file does not exist") from None
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError):
        raise UsageError("the mask is no readable PNG or TIFF file of at most 64 MiB") from None
    if levels_HW.ndim == 3 and (levels_HW[..., :1] == levels_HW[..., :3]).all():
        levels_HW = levels_HW[..., 0]
    if levels_HW.ndim != 2 or levels_HW.dtype.kind not in "biu":
        raise UsageError("the mask is in colour or has fractions; save it as grey PNG with two levels")
    return levels_HW.astype(np.uint8) if levels_HW.dtype == bool else levels_HW


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


def place_nodule(
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


def compute_room(film_HW: Film, diameter_px: float) -> Film:
    """Return the share of the contrast that is left over tissue: brighter films have more scatter and saturate.

    1 over air, 0 over white.  The surroundings decide, not the single pixel, so that ribs and noise stay unchanged.
    """
    around_HW = np.asarray(cv2.GaussianBlur(film_HW, (0, 0), max(diameter_px / 2, 1)), np.float32)
    return np.asarray(1 - np.clip(around_HW, 0, 1) ** _WHITENING, np.float32)
