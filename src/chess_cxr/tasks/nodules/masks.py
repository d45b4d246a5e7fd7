"""Nodule masks: draw them at random, read them from files, check them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from chess_cxr.records import UsageError
from chess_cxr.tasks.ct_nodules import Mask, read_mask_levels

# Suffixes: H, W film; K harmonics of an outline; A its angles.
MAX_OUTSIDE = 0.25  # share of a nodule that may lie outside the lung: pleura and diaphragm hide parts of real ones
MAX_PIECES = 99
_HARMONICS = np.arange(2, 7)
_PLACES = 40  # places tried for a nodule entirely inside the lung
_MARGIN = 1.1  # radii; an outline bulges


@dataclass(frozen=True)
class NoduleRequest:
    """A nodule to be made.

    centre_px: (column, row).  diameter_mm: of the disc with the mask's area.  mask_HW: bool, of the film's size.
    """

    centre_px: tuple[float, float]
    diameter_mm: float
    spacing_mm: float
    mask_HW: Mask


# ---------------------------------------------------------------- drawn


def draw_nodule_mask(
    shape: tuple[int, int],
    centre_px: tuple[float, float],
    diameter_px: float,
    rng: np.random.Generator,
    irregularity: float = 0.12,
) -> Mask:
    """Draw a mask with a smooth star-shaped outline and the area of a disc, at least one pixel.

    irregularity: standard deviation of the radius as a share of it; 0 gives a disc, above 0.3 the outline has lobes.
    Raises `UsageError` for a centre outside the film, and for a nodule that reaches beyond its edge.
    """
    column, row = centre_px
    if not (0 <= column <= shape[1] - 1 and 0 <= row <= shape[0] - 1):
        raise UsageError(f"the nodule's centre ({column:g}, {row:g}) is outside the film of {write_size(shape)} pixels")
    if not diameter_px > 0:
        raise UsageError(f"a nodule has a diameter above 0 pixels, not {diameter_px:g}")
    amplitude_K = rng.normal(0, 1, len(_HARMONICS)) / _HARMONICS
    amplitude_K *= irregularity * math.sqrt(2 / float(np.sum(1 / _HARMONICS**2.0)))
    phase_K = rng.uniform(0, 2 * math.pi, len(_HARMONICS))
    y, x = np.mgrid[: shape[0], : shape[1]]
    distance_HW = np.hypot(x - column, y - row)
    angle_HW = np.arctan2(y - row, x - column)
    outline_HW = 1 + sum(a * np.cos(k * angle_HW + p) for k, a, p in zip(_HARMONICS, amplitude_K, phase_K, strict=True))
    ratio_HW = distance_HW / np.maximum(outline_HW, 0.25)
    wanted = max(1, round(math.pi * diameter_px**2 / 4))
    if wanted >= ratio_HW.size:
        raise UsageError(f"a nodule of {diameter_px:g} pixels is larger than the film of {write_size(shape)} pixels")
    # The pixels nearest to the centre in units of the outline; a threshold would not give the exact area
    mask_HW = np.zeros(shape, bool)
    mask_HW.ravel()[np.argpartition(ratio_HW, wanted - 1, axis=None)[:wanted]] = True
    if _touches_edge(mask_HW):
        raise UsageError(f"the nodule of {diameter_px:.0f} pixels reaches over the edge of the film")
    return mask_HW


def draw_random_request(
    lung_HW: Mask,
    spacing_mm: float,
    size_mm: tuple[float, float] = (5.0, 30.0),
    rng: np.random.Generator | None = None,
    irregularity: float = 0.12,
) -> NoduleRequest:
    """Draw the size (uniformly) and the place of a nodule, inside the lung if the lung is wide enough.

    Otherwise the nodule is placed where the lung is widest.  Raises `UsageError` for an empty lung, an invalid range of
    sizes, an unknown spacing, and a nodule larger than the lung.
    """
    rng = rng or np.random.default_rng()
    if not lung_HW.any():
        raise UsageError("there is no lung to put a nodule in")
    if not 0 < size_mm[0] <= size_mm[1] or not math.isfinite(size_mm[1]):
        raise UsageError(f"nodule sizes {size_mm[0]:g}-{size_mm[1]:g} mm are not a range above 0")
    if not spacing_mm > 0:
        raise UsageError("the film's pixel spacing is unknown; give it in mm")
    diameter_mm = float(rng.uniform(*size_mm))
    radius_px = diameter_mm / spacing_mm / 2
    if math.pi * radius_px**2 > lung_HW.sum():
        raise UsageError(f"a nodule of {diameter_mm:.0f} mm is larger than the lung")
    # The film's edge is also the edge of a lung that it cuts off
    depth_HW = cv2.distanceTransform(np.pad(lung_HW, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    allowed_N = np.flatnonzero(depth_HW > min(_MARGIN * radius_px, 0.95 * float(depth_HW.max())))
    best: tuple[int, NoduleRequest] | None = None
    for _ in range(_PLACES):
        row, column = np.unravel_index(int(rng.choice(allowed_N)), lung_HW.shape)
        centre_px = float(column), float(row)
        try:
            mask_HW = draw_nodule_mask(lung_HW.shape, centre_px, 2 * radius_px, rng, irregularity)
        except UsageError:  # over the film's edge
            continue
        outside = int((mask_HW & ~lung_HW).sum())
        if best is None or outside < best[0]:
            best = outside, NoduleRequest(centre_px, diameter_mm, spacing_mm, mask_HW)
        if not outside:
            break
    if best is None:
        raise UsageError(f"the lung has no room for a nodule of {diameter_mm:.0f} mm")
    return best[1]


# ---------------------------------------------------------------- read


def read_request_mask(path: Path | str, shape: tuple[int, int]) -> Mask:
    """Read a mask with the levels 0 and one other: bool [H, W] of the film's shape.

    Raises `UsageError` as `read_mask_levels` does, and for more than two levels.
    """
    levels_HW = read_mask_levels(path, shape)
    found_N = np.unique(levels_HW)
    if len(found_N) > 2 or (len(found_N) == 2 and found_N[0] != 0):
        shown = ", ".join(map(str, found_N[:4])) + (", ..." if len(found_N) > 4 else "")
        raise UsageError(f"the mask is not binary: it has {len(found_N)} levels ({shown}); use 0 and one other")
    return np.asarray(levels_HW > 0)


def check_mask(mask_HW: Mask, shape: tuple[int, ...]) -> None:
    """Raise `UsageError` for an empty mask, or one of another size than its film."""
    if mask_HW.shape != shape:
        raise UsageError(f"the mask has {write_size(mask_HW.shape)} pixels, the film {write_size(shape)}")
    if not mask_HW.any():
        raise UsageError("the mask is empty: mark the place of the nodule")


def check_request_mask(mask_HW: Mask, lung_HW: Mask | None) -> None:
    """Check that nodules can be made at a mask; each piece is one nodule and is judged by itself.

    Raises `UsageError`, in one line, as `check_mask` does, and for a nodule that the film's edge cuts off, that is
    larger than the lung, or that lies outside the lung with more than `MAX_OUTSIDE` of its area.  The last two need a
    lung mask.
    """
    check_mask(mask_HW, mask_HW.shape if lung_HW is None else lung_HW.shape)
    if lung_HW is not None and mask_HW.sum() > lung_HW.sum():
        raise UsageError(f"the mask ({mask_HW.sum()} pixels) is larger than the lung ({lung_HW.sum()} pixels)")
    label_HW, pieces = label_pieces(mask_HW)
    cut = {int(number) for edge in (label_HW[0], label_HW[-1], label_HW[:, 0], label_HW[:, -1]) for number in set(edge)}
    area_N = np.bincount(label_HW.ravel(), minlength=pieces + 1)
    outside_N = np.zeros_like(area_N) if lung_HW is None else np.bincount(label_HW[~lung_HW], minlength=pieces + 1)
    for number in range(1, pieces + 1):
        name = "the nodule" if pieces == 1 else f"nodule {number} of {pieces}"
        if number in cut:
            raise UsageError(f"{name} of the mask is cut off by the edge of the film")
        outside = float(outside_N[number] / area_N[number])
        if outside > MAX_OUTSIDE:
            raise UsageError(f"{name} of the mask lies outside the lung with {outside:.0%} of its area")


def build_requests(mask_HW: Mask, spacing_mm: float) -> list[NoduleRequest]:
    """Return one request for each piece of a mask, from top to bottom."""
    requests = []
    for piece_HW in list_pieces(mask_HW):
        row, column = (float(axis.mean()) for axis in np.nonzero(piece_HW))
        diameter_mm = 2 * math.sqrt(float(piece_HW.sum()) / math.pi) * spacing_mm
        requests.append(NoduleRequest((column, row), diameter_mm, spacing_mm, piece_HW))
    return requests


def label_pieces(mask_HW: Mask) -> tuple[npt.NDArray[np.integer], int]:
    """Number the nodules of a mask from 1 and count them; raise `UsageError` for more than 99."""
    count, label_HW = cv2.connectedComponents(mask_HW.astype(np.uint8), connectivity=8)
    if count - 1 > MAX_PIECES:
        raise UsageError(f"the mask has {count - 1} pieces; a film has at most {MAX_PIECES} nodules")
    return np.asarray(label_HW), count - 1


def list_pieces(mask_HW: Mask) -> list[Mask]:
    """Return a mask for each nodule, from top to bottom."""
    label_HW, count = label_pieces(mask_HW)
    return [np.asarray(label_HW == number) for number in range(1, count + 1)]


def _touches_edge(mask_HW: Mask) -> bool:
    return bool(mask_HW[0].any() or mask_HW[-1].any() or mask_HW[:, 0].any() or mask_HW[:, -1].any())


def write_size(shape: tuple[int, ...]) -> str:
    """Write a shape [H, W] as width x height."""
    return " x ".join(map(str, shape[1::-1]))
