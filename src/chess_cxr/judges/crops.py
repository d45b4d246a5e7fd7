"""Crops around nodules, to compare nodules instead of whole films.  Shape suffixes: H, W pixels."""

from __future__ import annotations

import numpy as np

from chess_cxr.records import UsageError

Box = tuple[int, int, int, int]

CROP_MARGIN = 0.5
SMALLEST_CROP = 16


def crop_around(mask_HW: np.ndarray, margin: float = CROP_MARGIN, smallest: int = SMALLEST_CROP) -> Box:
    """Return a square (top, left, height, width) around a mask, bool [H, W].

    Its side is the mask's longer side plus `margin` times as much on both sides, at least `smallest` pixels.  It is
    shifted, and if necessary cut, to lie within the film.  Raises UsageError for an empty mask.
    """
    rows, columns = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise UsageError("an empty mask has no surroundings to crop")
    longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = max(smallest, round(float(longer) * (1 + 2 * margin)))
    spans = []
    for places, size in ((rows, mask_HW.shape[0]), (columns, mask_HW.shape[1])):
        length = min(side, size)
        start = round((int(places[0]) + int(places[-1]) + 1 - length) / 2)
        spans.append((min(max(start, 0), size - length), length))
    (top, height), (left, width) = spans
    return top, left, height, width
