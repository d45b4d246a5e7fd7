"""Pictures of pages."""

from __future__ import annotations

import cv2
import numpy as np


def encode_png(view_HW: np.ndarray) -> bytes:
    """Encode a uint8 picture as an 8-bit grey PNG."""
    _, content = cv2.imencode(".png", view_HW, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return content.tobytes()
