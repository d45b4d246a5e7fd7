"""Encode pictures for pages."""

from __future__ import annotations

import base64

import cv2
import numpy as np


def encode_png(view_HW: np.ndarray) -> bytes:
    """Encode a uint8 picture as an 8-bit grey PNG."""
    _, content = cv2.imencode(".png", view_HW, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return content.tobytes()


def embed_picture(content: bytes, kind: str = "png") -> str:
    """Return an encoded picture as the data URL of an image element."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
