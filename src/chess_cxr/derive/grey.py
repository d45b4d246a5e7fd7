"""From shown greys back to stored values: which value to store so that a film looks changed by so much.

Suffixes: H, W pixels of a film, N values that may be stored, K greys that they are shown as.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from chess_cxr.records import Undecodable, UsageError

_ROWS_AT_ONCE = 256  # a film of 120 megapixels is changed in bands: its int64 ranks alone would take a gigabyte
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_COVERED = 80  # of 255: from there on a pixel belongs to a letter; small letters would run together below
_LETTER_SHARE, _MIN_LETTER_PX, _MAX_WIDTH_SHARE = 1 / 45, 8.0, 0.9
MAX_TEXT = 64


@dataclass(frozen=True)
class GreyScale:
    """What stored values are shown as, in order, and what each of K greys can be stored as.

    level_K: the greys, float32, ascending.  rank_N: place of each stored value among those of the film, by rising grey;
    -1 for values that are no part of the film (padding).  value_R: the other way round.  first_K, last_K: ranks of the
    values that look alike, such as all that lie below a window.
    """

    level_K: np.ndarray
    rank_N: np.ndarray
    value_R: np.ndarray
    first_K: np.ndarray
    last_K: np.ndarray


def build_grey_scale(grey_N: np.ndarray, is_film_N: np.ndarray | None = None) -> GreyScale:
    """Turn a table around: grey_N, float32 in [0, 1], is what each stored value 0..N-1 is shown as.

    is_film_N: False for values that are no part of the film: they are neither changed nor given to any pixel.
    Raises `Undecodable` where the greys go up and down: no value could be told from another that looks alike.
    """
    value_R = np.arange(len(grey_N)) if is_film_N is None else np.flatnonzero(is_film_N)
    step = np.diff(grey_N[value_R])
    if (step < 0).any() and (step > 0).any():
        raise Undecodable("the film's grey scale goes up and down, so that greys cannot be turned into stored values")
    if (step < 0).any():
        value_R = value_R[::-1]
    rank_N = np.full(len(grey_N), -1, np.int32)
    rank_N[value_R] = np.arange(len(value_R), dtype=np.int32)
    level_K, first_K, count_K = np.unique(grey_N[value_R], return_index=True, return_counts=True)
    return GreyScale(level_K, rank_N, value_R, first_K, first_K + count_K - 1)


def change_values(value_HW: np.ndarray, change_HW: np.ndarray, grey_N: np.ndarray, scale: GreyScale) -> np.ndarray:
    """Return the stored values, of the same type, whose greys are nearest to clip(grey + change, 0, 1).

    value_HW: unsigned, indices of grey_N.  change_HW: float32, grey to be added.  Of values that look alike the nearest
    to the old one is taken: where the change is 0 or too small to show, and on padding, the value stays to the bit.
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
    """Write white letters on a black plate into the lower left corner, in place, whatever the depth and polarity.

    Letters are 1/45 of the film's shorter side high, or as high as the width allows.
    Raises UsageError for a text of other characters than printable ASCII or of more than 64, `Undecodable` for a film
    too small for letters that could be read.
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
        raise Undecodable("the film is too small for a text that could be read: leave the text out")
    size = letter_px / unit_height
    stroke = max(1, round(letter_px / 10))
    (text_width, text_height), below = cv2.getTextSize(text, _FONT, size, stroke)
    margin = round(0.5 * letter_px)
    plate = np.zeros((text_height + below + 2 * margin, min(width, text_width + 2 * margin)), np.uint8)
    cv2.putText(plate, text, (margin, margin + text_height), _FONT, size, 255, stroke, cv2.LINE_AA)
    letters: np.ndarray = plate > _COVERED
    return letters
