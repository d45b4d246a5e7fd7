"""How a store keeps the pixels of a film: as an 8-bit grey JPEG.

Apart from the store, so that a decoding process need not load the store's libraries.
"""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg

JPEG_QUALITY = 95


def encode_film(pixels_HW: np.ndarray, longest_side: int) -> tuple[bytes, int, int]:
    """Encode a film in [0, 1] as 8-bit grey JPEG whose longest side is at most `longest_side`; never enlarged.

    Returns the JPEG bytes, height and width.
    """
    small_HW = shrink_film(pixels_HW, longest_side)
    grey_HW1 = np.rint(np.clip(small_HW, 0, 1) * 255).astype(np.uint8)[..., None]
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(grey_HW1), JPEG_QUALITY, colorspace="GRAY")
    return jpeg, *small_HW.shape


def shrink_film(pixels_HW: np.ndarray, longest_side: int, full_height: int = 0, full_width: int = 0) -> np.ndarray:
    """Shrink a film, by areas, until its longest side is at most `longest_side`.

    full_height, full_width: of the film that was reduced to `pixels_HW`, so that both come to one size.
    """
    height, width = (full_height, full_width) if full_height else pixels_HW.shape
    shrink = longest_side / max(height, width)
    if shrink >= 1:
        return pixels_HW
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    return cv2.resize(pixels_HW, size, interpolation=cv2.INTER_AREA)


def decode_stored(jpeg: bytes, shortest_side: int = 0) -> np.ndarray:
    """Decode a stored film to uint8 [H, W], bone bright.

    With `shortest_side` the decoder may return the film reduced by 2, 4 or 8 in its own transform, as
    long as no side falls below that many pixels: most of the cost of small networks is saved there.
    """
    grey: np.ndarray = simplejpeg.decode_jpeg(
        jpeg, colorspace="GRAY", min_height=shortest_side, min_width=shortest_side
    )
    return grey[..., 0]
