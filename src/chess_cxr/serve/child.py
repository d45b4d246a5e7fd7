"""What the REST server asks of its child processes; a child loads neither torch nor the server."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from chess_cxr.decode.film import decode_film, refuse_damage
from chess_cxr.film_jpeg import shrink_film
from chess_cxr.serve.source import check_film
from chess_cxr.tasks.bones.written import write_suppressed_film

SHOWN_SIDE = 1536  # pixels of the longest side of a film on the page


def work_in_child(step: str, *request: Any) -> Any:
    """Do one of several things with a film: the one task of a child, which thus serves all of them."""
    steps: dict[str, Callable[..., Any]] = {
        "decode": decode_film, "draw": draw_film, "suppress": suppress_film, "check": check_film
    }  # fmt: skip
    return steps[step](*request)


def draw_film(path: Path, side: int = SHOWN_SIDE) -> bytes:
    """Return a film as it stands in its file, bone bright, as PNG of 8 bits whose longest side has so many pixels."""
    film = decode_film(path, at_least=side)
    with refuse_damage("draw it"):
        return encode_png(shrink_film(film.pixels, side, film.full_height, film.full_width))


def suppress_film(path: Path, change_HW: np.ndarray, model: str, side: int = 0) -> bytes:
    """Return a film without bone: in the format of its file, or with `side` as the PNG that `draw_film` draws."""
    if side:
        film = decode_film(path)
        with refuse_damage("draw it"):
            return encode_png(shrink_film(np.clip(film.pixels + change_HW, 0, 1), side))
    written = write_suppressed_film(path, change_HW, path.parent / "made", "", model)
    return written.read_bytes()


def encode_png(film_HW: np.ndarray) -> bytes:
    """Return a film in [0, 1] as PNG of 8 bits."""
    written = io.BytesIO()
    Image.fromarray(np.rint(255 * film_HW).astype(np.uint8)).save(written, "PNG", compress_level=1)
    return written.getvalue()
