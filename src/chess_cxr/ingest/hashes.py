"""Hash the picture of a film, exactly and perceptually.

The perceptual hash holds the low frequencies of a cosine transform of the film's grey-level RANKS, so windows, gammas
and screen curves do not change it.  Mirroring flips the sign of odd columns or rows, a quarter turn also swaps columns
and rows, inversion flips all signs: all 16 poses of a film can be compared without its picture.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np

HASH_VERSION = 1
GRID = 32  # pixels a side before the transform
DIAGONAL = 9  # coefficients (u, v) with u + v up to this number
U, V = (axis.ravel() for axis in np.mgrid[: DIAGONAL + 1, : DIAGONAL + 1])
U, V = (axis[(U + V > 0) & (U + V <= DIAGONAL)] for axis in (U.copy(), V.copy()))
# Chest films differ little in the lowest frequencies; weights that grow with frequency even the coefficients out.
WEIGHT = np.hypot(U, V).astype(np.float32)
HASH_BYTES = 1 + len(U)


@dataclass(frozen=True)
class FilmHashes:
    """pixel: 32 hexadecimal characters, equal for equal grey levels.  perceptual: `HASH_BYTES` bytes."""

    pixel: str
    perceptual: bytes


def compute_hashes(pixels_HW: np.ndarray) -> FilmHashes:
    """Hash a film, float32 [H, W] in [0, 1], at the size it comes in.

    `pixel` is BLAKE2b (RFC 7693, 128 bits) over height, width and round(255 · pixel): equal grey levels give equal
    hashes, whatever the file format.  `audit.near.unpack_hashes` reads `perceptual`.
    """
    grey_HW = np.rint(np.clip(pixels_HW, 0, 1) * 255).astype(np.uint8)
    shape = np.array(grey_HW.shape, "<u4").tobytes()
    pixel = hashlib.blake2b(shape + grey_HW.tobytes(), digest_size=16).hexdigest()
    return FilmHashes(pixel, _pack(_transform_ranks(pixels_HW)))


def _transform_ranks(pixels_HW: np.ndarray) -> np.ndarray:
    """Return the weighted coefficients of the film's mid-ranks, float32 [D]; equal greys share a rank."""
    small = cv2.resize(pixels_HW.astype(np.float32, copy=False), (GRID, GRID), interpolation=cv2.INTER_AREA)
    level = np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8)
    count = np.bincount(level.ravel(), minlength=256)
    rank = ((np.cumsum(count) - count / 2) / count.sum() - 0.5).astype(np.float32)
    return np.asarray(cv2.dct(rank[level])[U, V] * WEIGHT, np.float32)


def _pack(coefficient_D: np.ndarray) -> bytes:
    peak = float(np.abs(coefficient_D).max())
    scaled = coefficient_D * (127 / peak) if peak > 0 else coefficient_D
    return bytes([HASH_VERSION]) + np.rint(scaled).astype(np.int8).tobytes()
