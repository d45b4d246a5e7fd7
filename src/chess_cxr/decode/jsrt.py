"""Decode raw films of the JSRT database (Shiraishi et al. 2000)."""

from __future__ import annotations

import numpy as np

from chess_cxr.decode.decoded import DecodedFilm, stretch_between_percentiles
from chess_cxr.records import Undecodable

SIDE = 2048
SPACING_MM = 0.175
_HIGHEST = 4095


def is_jsrt(content: bytes, name: str) -> bool:
    """Recognise a JSRT film, which has no header, by its name and exact size."""
    return name.lower().endswith(".img") and len(content) == 2 * SIDE * SIDE


def decode_jsrt(content: bytes) -> DecodedFilm:
    """Decode 2048 x 2048 values of 12 bits, big-endian uint16, air bright, pixels 0.175 mm apart."""
    raw = np.frombuffer(content, dtype=">u2").reshape(SIDE, SIDE).astype(np.uint16)
    if int(raw.max()) > _HIGHEST:
        raise Undecodable("not a film of the JSRT database: more than 12 bits")
    return DecodedFilm(1 - stretch_between_percentiles(raw), SPACING_MM)
