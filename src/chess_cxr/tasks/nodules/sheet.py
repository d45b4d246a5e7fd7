"""Draw films beside the nodules that were made in them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from chess_cxr.tasks.nodules.films import NoduleFilm
from chess_cxr.views import resize_longest

SHOWN = 8  # films on the sheet of a model


def draw_films(rows: Sequence[tuple[NoduleFilm, np.ndarray]], side: int = 220) -> bytes:
    """Draw films, the places of their nodules, and the films made (SYNTHETIC), one column per film: PNG.

    side: of the square into which a film is fitted, in pixels.
    """
    columns = []
    for film, made_HW in rows:
        outline = film.mask_HW.astype(np.uint8)
        ring = cv2.dilate(outline, np.ones((3, 3), np.uint8)) - outline
        marked = np.where(cv2.resize(ring, film.film_HW.shape[::-1]) > 0, 1.0, film.film_HW)
        parts = [_fit_square(picture, side) for picture in (film.film_HW, marked, made_HW)]
        column = np.clip(255 * np.vstack(parts), 0, 255).astype(np.uint8)
        for row, text in enumerate(("film", "place", "made: SYNTHETIC"), start=1):
            _write_word(column, text, row * side - 8)
        columns.append(column)
    return cv2.imencode(".png", np.hstack(columns))[1].tobytes()


def _fit_square(picture_HW: np.ndarray, side: int) -> np.ndarray:
    """Resize a picture's longest side to `side` and centre it in a black square."""
    small_HW = resize_longest(picture_HW.astype(np.float32), side)
    square_HW = np.zeros((side, side), np.float32)
    top, left = ((side - length) // 2 for length in small_HW.shape)
    square_HW[top : top + small_HW.shape[0], left : left + small_HW.shape[1]] = small_HW
    return square_HW


def _write_word(picture_HW: np.ndarray, text: str, row: int) -> None:
    """Write white letters with a black rim, legible on bright and on dark films."""
    for grey, stroke in ((0, 3), (255, 1)):
        cv2.putText(picture_HW, text, (6, row), cv2.FONT_HERSHEY_SIMPLEX, 0.45, grey, stroke, cv2.LINE_AA)
