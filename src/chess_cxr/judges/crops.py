"""Squares around nodules, so that distances are of nodules and not of whole films.  Suffixes: H, W pixels."""

from __future__ import annotations

import numpy as np

from chess_cxr.records import UsageError

Box = tuple[int, int, int, int]

CROP_MARGIN = 0.5
SMALLEST_CROP = 16


def crop_around(mask_HW: np.ndarray, margin: float = CROP_MARGIN, smallest: int = SMALLEST_CROP) -> Box:
    """Return the square (top, left, height, width) around a mask, bool [H, W], for distances of nodules alone.

    Its side is that of the mask's longer side and `margin` times as much on either side, at least `smallest` pixels; it
    is moved, and at last cut, to lie within the film.  Raises UsageError for an empty mask.
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
