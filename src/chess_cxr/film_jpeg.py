"""Encode and decode the pixels of a stored film, an 8-bit grey JPEG.

This stands apart from the store so that decoding processes need not load its libraries.
"""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg

JPEG_QUALITY = 95


def encode_film(pixels_HW: np.ndarray, longest_side: int) -> tuple[bytes, int, int]:
    """Encode a film in [0, 1] as 8-bit grey JPEG; its longest side shrinks to `longest_side` but never grows.

    Returns the JPEG, height and width.
    """
    small_HW = shrink_film(pixels_HW, longest_side)
    grey_HW1 = np.rint(np.clip(small_HW, 0, 1) * 255).astype(np.uint8)[..., None]
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(grey_HW1), JPEG_QUALITY, colorspace="GRAY")
    return jpeg, *small_HW.shape


def shrink_film(pixels_HW: np.ndarray, longest_side: int, full_height: int = 0, full_width: int = 0) -> np.ndarray:
    """Shrink a film by area averaging until its longest side is at most `longest_side`.

    full_height, full_width: size of the film before the decoder reduced it to `pixels_HW`; the result has the size that
    the full film would have.
    """
    height, width = (full_height, full_width) if full_height else pixels_HW.shape
    shrink = longest_side / max(height, width)
    if shrink >= 1:
        return pixels_HW
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    return cv2.resize(pixels_HW, size, interpolation=cv2.INTER_AREA)


def decode_stored(jpeg: bytes, shortest_side: int = 0) -> np.ndarray:
    """Decode a stored film to uint8 [H, W], bone bright.

    With `shortest_side` the decoder may return the film reduced by 2, 4 or 8 while no side falls below that many
    pixels; small networks save most of their decoding time so.
    """
    grey = simplejpeg.decode_jpeg(jpeg, colorspace="GRAY", min_height=shortest_side, min_width=shortest_side)
    return np.asarray(grey[..., 0])
