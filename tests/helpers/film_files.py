"""Films written for the tests of decoding, and slow oracles for their grey levels."""

import math
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from chess_cxr.decode.film import Undecodable, decode_film
from dicom_files import NAME, NUMBER


def make_grey(height: int = 48, width: int = 64, top: int = 255) -> np.ndarray:
    """A film whose grey values differ at every turn and mirroring."""
    y, x = np.mgrid[:height, :width]
    return (top * (0.7 * y / (height - 1) + 0.3 * x / (width - 1))).astype(np.uint16 if top > 255 else np.uint8)


def write_image(path: Path, image: Image.Image, kind: str, **options: object) -> Path:
    image.save(path, kind, **options)
    return path


def encode_lossless_jpeg(stored: np.ndarray, predictor: int = 1) -> bytes:
    bits = 8 if stored.dtype == np.uint8 else max(9, int(stored.max()).bit_length())
    return imagecodecs.jpeg8_encode(stored, lossless=True, predictor=predictor, bitspersample=bits)


def stretch_slowly(stored: np.ndarray) -> np.ndarray:
    """The percentile window as its definition has it: the value that 0.5 and 99.5 % of all pixels do not exceed."""
    ordered = sorted(stored.ravel().tolist())
    low, high = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.005, 0.995))
    return np.array([[min(max((v - low) / (high - low), 0.0), 1.0) for v in row] for row in stored.tolist()])


def window_slowly(value: float, center: float, width: float, function: str) -> float:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2 with output from 0 to 1."""
    if function == "SIGMOID":
        return 1 / (1 + math.exp(-4 * (value - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if value <= center - width / 2:
        return 0.0
    if value > center + width / 2:
        return 1.0
    return (value - center) / width + 0.5


def refuse(path: Path) -> str:
    with warnings.catch_warnings(record=True) as shown, pytest.raises(Undecodable) as caught:
        warnings.simplefilter("always")
        decode_film(path)
    reason = str(caught.value)
    assert not shown
    assert "\n" not in reason
    for secret in (NAME, NUMBER, "DOE", path.name, str(path.parent)):
        assert secret not in reason
    return reason
