"""Where a nodule may change a film, and how the change fades at the edge."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from chess_cxr.records import UsageError
from chess_cxr.tasks.ct_nodules import Mask
from chess_cxr.tasks.nodules.masks import write_size


def compute_region(mask_HW: Mask, margin: float = 0.5, margin_px: int = 4) -> Mask:
    """Grow a nodule mask by the share `margin` of its diameter, by at least `margin_px` pixels.

    The diameter is that of the largest circle inside the mask.  An empty mask has an empty region.
    """
    if not mask_HW.any():
        return np.zeros_like(mask_HW, dtype=bool)
    diameter = 2 * float(_compute_distance(mask_HW).max())
    return ~mask_HW & (_compute_distance(~mask_HW) <= max(margin_px, margin * diameter)) | mask_HW


def compute_blend(region_HW: Mask, edge_px: int = 4) -> npt.NDArray[np.float32]:
    """Return the weight of the new film, float32 [H, W]: 0 outside the region, rising to 1 over `edge_px` inside it.

    It does not fall towards the edge of the film.
    """
    inside_HW = np.minimum(_compute_distance(region_HW) / (edge_px + 1), 1)
    return np.where(region_HW, inside_HW, 0).astype(np.float32)


def _compute_distance(mask_HW: Mask) -> npt.NDArray[np.float32]:
    """Return the distance, in pixels, of each pixel of the mask to the nearest one outside."""
    if mask_HW.all():
        return np.full(mask_HW.shape, np.inf, np.float32)
    # The last bits of OpenCV's exact transform differ from call to call, which may flip a pixel at the margin
    distance_HW: npt.NDArray[np.float32] = ndimage.distance_transform_edt(mask_HW).astype(np.float32)
    return distance_HW


def find_window(region_HW: Mask, size: int) -> tuple[slice, slice]:
    """Return rows and columns of the size x size window around the region, centred as far as the film allows.

    Raises `UsageError` if the film or the window is too small.
    """
    if min(region_HW.shape) < size:
        raise UsageError(f"the film is {write_size(region_HW.shape)}; the generator needs {size} x {size} at least")
    window = []
    for axis, side in enumerate(region_HW.shape):
        hit = np.flatnonzero(region_HW.any(1 - axis))
        first, last = int(hit[0]), int(hit[-1])
        if last - first >= size:
            raise UsageError(
                f"the nodule and its surroundings are {last - first + 1} px wide and the generator makes {size}; "
                "ask for a smaller one, or shrink the film"
            )
        start = min(max((first + last + 1 - size) // 2, 0), side - size)
        window.append(slice(start, start + size))
    return window[0], window[1]
