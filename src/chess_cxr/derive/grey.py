"""Change the stored values of a film so that its displayed greys change by a given amount.

Suffixes: H, W pixels of a film, N possible stored values, K displayed greys.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from chess_cxr.records import Undecodable, UsageError

_ROWS_AT_ONCE = 256  # bands save memory: int64 ranks of 120 megapixels would take a gigabyte
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_COVERED = 80  # of 255: coverage from which a pixel belongs to a letter; below, small letters would merge
_LETTER_SHARE, _MIN_LETTER_PX, _MAX_WIDTH_SHARE = 1 / 45, 8.0, 0.9
MAX_TEXT = 64


@dataclass(frozen=True)
class GreyScale:
    """Look-up table from stored values to greys, and its inverse.

    level_K: greys, float32, ascending.  rank_N: rank of each stored value by grey, -1 for padding.  value_R: stored
    value of each rank.  first_K, last_K: range of the ranks that look alike, such as all values below a window.
    """

    level_K: np.ndarray
    rank_N: np.ndarray
    value_R: np.ndarray
    first_K: np.ndarray
    last_K: np.ndarray


def change_film(
    value_HW: np.ndarray, change_HW: np.ndarray, grey_N: np.ndarray, text: str, is_film_N: np.ndarray | None = None
) -> np.ndarray:
    """Change a film as `change_values` does, and burn in `text` unless it is empty; see `build_grey_scale`."""
    scale = build_grey_scale(grey_N, is_film_N)
    changed_HW = change_values(value_HW, change_HW, grey_N, scale)
    if text:
        burn_in_text(changed_HW, text, scale)
    return changed_HW


def build_grey_scale(grey_N: np.ndarray, is_film_N: np.ndarray | None = None) -> GreyScale:
    """Invert a look-up table; grey_N: displayed grey of each stored value 0..N-1, float32 in [0, 1].

    is_film_N: False for padding, which is never changed and never given to a pixel.
    Raises `Undecodable` if the greys are not monotonic.
    """
    value_R = np.arange(len(grey_N)) if is_film_N is None else np.flatnonzero(is_film_N)
    step = np.diff(grey_N[value_R])
    if (step < 0).any() and (step > 0).any():
        raise Undecodable("the film's grey scale is not monotonic, so greys cannot be turned back into stored values")
    if (step < 0).any():
        value_R = value_R[::-1]
    rank_N = np.full(len(grey_N), -1, np.int32)
    rank_N[value_R] = np.arange(len(value_R), dtype=np.int32)
    level_K, first_K, count_K = np.unique(grey_N[value_R], return_index=True, return_counts=True)
    return GreyScale(level_K, rank_N, value_R, first_K, first_K + count_K - 1)


def change_values(value_HW: np.ndarray, change_HW: np.ndarray, grey_N: np.ndarray, scale: GreyScale) -> np.ndarray:
    """Return stored values, of the same type, with the greys nearest to clip(grey + change, 0, 1).

    value_HW: unsigned, indices of grey_N.  change_HW: float32, grey to be added.  Among values that look alike, the one
    nearest to the old value is taken, so values stay to the bit on padding and where the change is 0 or too small.
    """
    changed_HW = value_HW.copy()
    middle = (scale.level_K[:-1] + scale.level_K[1:]) / 2
    for top in range(0, len(value_HW), _ROWS_AT_ONCE):
        band = slice(top, top + _ROWS_AT_ONCE)
        touched = (change_HW[band] != 0) & (scale.rank_N[value_HW[band]] >= 0)
        old = value_HW[band][touched]
        wanted = np.clip(grey_N[old] + change_HW[band][touched], 0, 1)
        level = np.searchsorted(middle, wanted)
        rank = np.clip(scale.rank_N[old], scale.first_K[level], scale.last_K[level])
        changed_HW[band][touched] = scale.value_R[rank]
    return changed_HW


def burn_in_text(value_HW: np.ndarray, text: str, scale: GreyScale) -> None:
    """Write white letters on a black plate into the lower left corner, in place, for any depth and polarity.

    Letters are 1/45 of the film's shorter side high, or less if the width demands it.
    Raises `UsageError` unless the text is at most 64 characters of printable ASCII, `Undecodable` if the film is too
    small for legible letters.
    """
    if not (text.isascii() and text.isprintable() and len(text) <= MAX_TEXT):
        raise UsageError(f"text to be burned in must be one line of at most {MAX_TEXT} ASCII characters")
    letters_HW = _draw_letters(text, *value_HW.shape)
    height, width = letters_HW.shape
    black, white = scale.value_R[scale.last_K[0]], scale.value_R[scale.first_K[-1]]
    value_HW[-height:, :width] = np.where(letters_HW, white, black)


def _draw_letters(text: str, height: int, width: int) -> np.ndarray:
    """Return bool [h, w]: a plate with a margin, True on the letters."""
    (unit_width, unit_height), _ = cv2.getTextSize(text, _FONT, 1.0, 1)
    wanted_px = max(1.5 * _MIN_LETTER_PX, _LETTER_SHARE * min(height, width))
    letter_px = min(wanted_px, _MAX_WIDTH_SHARE * width * unit_height / (unit_width + 2 * unit_height))
    if letter_px < _MIN_LETTER_PX:
        raise Undecodable("the film is too small for a legible text: leave the text out")
    size = letter_px / unit_height
    stroke = max(1, round(letter_px / 10))
    (text_width, text_height), below = cv2.getTextSize(text, _FONT, size, stroke)
    margin = round(0.5 * letter_px)
    plate = np.zeros((text_height + below + 2 * margin, min(width, text_width + 2 * margin)), np.uint8)
    cv2.putText(plate, text, (margin, margin + text_height), _FONT, size, 255, stroke, cv2.LINE_AA)
    letters: np.ndarray = plate > _COVERED
    return letters
