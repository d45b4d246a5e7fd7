"""PNG, JPEG, TIFF and WebP to grey."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from chess_cxr.ingest.decoded import MAX_MEGAPIXELS, DecodedFilm, Undecodable, check_size, find_window, stretch

# EXIF 2.32 tag 0x0112: what turns the stored rows and columns upright
_ORIENT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda grey: np.rot90(grey, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda grey: np.rot90(grey, -1),
    7: lambda grey: np.rot90(grey, 2).T,
    8: np.rot90,
}


def decode_image(content: bytes) -> DecodedFilm:
    """Decode an image file: 8-bit grey as value / 255, deeper grey between its percentiles, upright by EXIF."""
    _check_is_image(content)
    try:
        image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "TIFF", "WEBP"))
    except Image.DecompressionBombError:
        raise Undecodable(f"more than {MAX_MEGAPIXELS} megapixels") from None
    check_size(image.height, image.width)
    if image.format == "JPEG" and image.mode in ("L", "RGB"):
        return DecodedFilm(_decode_jpeg(content, image.getexif().get(0x0112, 1)))
    white_is_zero = image.format == "TIFF" and _get_tiff_tag(image, 262) == 0 and image.mode not in ("1", "L")
    image.load()
    upright = ImageOps.exif_transpose(image)
    pixels = _decode_deep(upright) if upright.mode[:1] in ("I", "F") else _decode_8_bits(upright)
    return DecodedFilm(1 - pixels if white_is_zero else pixels)


def _check_is_image(content: bytes) -> None:
    head = content[:512].lstrip().lower()
    if content[:8] == b"\x89PNG\r\n\x1a\n" or content[:3] == b"\xff\xd8\xff" or content[8:12] == b"WEBP":
        return
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return
    if head.startswith(b"version https://git-lfs"):
        raise Undecodable("Git LFS pointer in place of the file")
    if head.startswith((b"<!doctype", b"<html")):
        raise Undecodable("web page in place of the file")
    raise Undecodable("not a DICOM, PNG, JPEG, TIFF or WebP file")


def _get_tiff_tag(image: Image.Image, tag: int) -> Any:
    return getattr(image, "tag_v2", {}).get(tag)


def _decode_jpeg(content: bytes, orientation: int) -> np.ndarray:
    """Decode strictly: what Pillow fills with grey in a damaged stream is an error here."""
    try:
        grey = simplejpeg.decode_jpeg(content, colorspace="GRAY")[..., 0]
    except ValueError as error:
        raise Undecodable(f"damaged JPEG ({_name_jpeg_fault(str(error))})") from None
    upright = _ORIENT[orientation](grey) if orientation in _ORIENT else grey
    return np.ascontiguousarray(upright).astype(np.float32) / np.float32(255)


def _name_jpeg_fault(text: str) -> str:
    return "ends early" if "premature" in text.lower() else "corrupt data"


def _decode_8_bits(image: Image.Image) -> np.ndarray:
    """Turn any 8-bit mode into grey; what is fully transparent is no part of the film, hence air."""
    alpha = None
    if "transparency" in image.info or image.mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
        image = image.convert("RGB")
    elif image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    pixels = np.asarray(image.convert("L")).astype(np.float32) / np.float32(255)
    if alpha is not None:
        pixels[alpha == 0] = 0
    return pixels


def _decode_deep(image: Image.Image) -> np.ndarray:
    """Stretch 16-bit, 32-bit and float grey between its percentiles; what is not a number is air."""
    raw = np.asarray(image)
    known = np.isfinite(raw)
    values, counts = np.unique(raw[known], return_counts=True)
    pixels = stretch(np.where(known, raw, 0), *find_window(values.astype(np.float64), counts))
    pixels[~known] = 0
    return pixels
