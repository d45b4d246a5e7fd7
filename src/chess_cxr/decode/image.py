"""Decode PNG, JPEG, TIFF and WebP to grey."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import imagecodecs
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from chess_cxr.decode.decoded import (
    MAX_MEGAPIXELS,
    DecodedFilm,
    check_size,
    choose_halvings,
    scale_8_bits,
    stretch_between_percentiles,
)
from chess_cxr.film_jpeg import shrink_film
from chess_cxr.records import Undecodable

# Operations that turn stored rows and columns upright, by EXIF 2.32 tag 0x0112
_ORIENT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda grey: np.rot90(grey, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda grey: np.rot90(grey, -1),
    7: lambda grey: np.rot90(grey, 2).T,
    8: np.rot90,
}
_TURNED = (5, 6, 7, 8)
_WEBP_BYTES_A_PIXEL = 16  # two canvases and the picture in RGBA, and a copy by the decoder
_PNG_GREY = (b"\x08\x00", b"\x10\x00")  # bit depth and colour type of IHDR (ISO/IEC 15948 11.2.2)


def decode_image(content: bytes, at_least: int = 0) -> DecodedFilm:
    """Decode an image file: 8-bit grey as value / 255, deeper grey between its percentiles, upright by EXIF.

    at_least: as for `chess_cxr.decode.film.decode_film`; reduces JPEG and grey PNG.
    """
    _check_is_image(content)
    if content[8:12] == b"WEBP":
        return DecodedFilm(_decode_webp(content))
    try:
        image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "TIFF"))
    except Image.DecompressionBombError:
        raise Undecodable(f"more than {MAX_MEGAPIXELS} megapixels") from None
    check_size(image.height, image.width)
    if image.format == "JPEG" and image.mode in ("L", "RGB"):
        return _decode_jpeg(content, image, at_least)
    if image.format == "PNG" and _is_plain_grey(content, image):
        # Agrees with Pillow to the bit in three quarters of the time, and refuses a missing end
        raw = imagecodecs.png_decode(content)
        if raw.dtype == np.uint8:
            return _scale_shrunk(raw, at_least, *raw.shape)
        return DecodedFilm(stretch_between_percentiles(raw))
    white_is_zero = getattr(image, "tag_v2", {}).get(262) == 0 and image.mode not in ("1", "L")
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
    raise Undecodable("not a DICOM, PNG, JPEG, TIFF, WebP, NIfTI or MetaImage file")


def _is_plain_grey(content: bytes, image: Image.Image) -> bool:
    """Whether a PNG is plain grey of 8 or 16 bits; EXIF may be in two kinds of chunk."""
    may_be_turned = b"eXIf" in content or b"exif" in content
    return content[24:26] in _PNG_GREY and "transparency" not in image.info and not may_be_turned


def _decode_webp(content: bytes) -> np.ndarray:
    """Decode the first frame; check its size first, since Pillow allocates memory on opening.

    Pillow reports damage and lack of memory alike, so after a failure the memory is requested again.
    """
    height, width = _read_webp_size(content)
    check_size(height, width)
    try:
        image = Image.open(io.BytesIO(content), formats=("WEBP",))
        image.load()
    except OSError:
        np.empty(_WEBP_BYTES_A_PIXEL * height * width, np.uint8)
        raise
    return _decode_8_bits(ImageOps.exif_transpose(image))


def _read_webp_size(content: bytes) -> tuple[int, int]:
    """Read height and width from the first chunk of a WebP file (RFC 9649, 2.5 to 2.7; RFC 6386, 9.1)."""
    kind, head = content[12:16], content[20:30]
    if len(head) < 10:
        raise Undecodable("damaged WebP file")
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[7:10], "little"), 1 + int.from_bytes(head[4:7], "little")
    if kind == b"VP8L":
        sides = int.from_bytes(head[1:5], "little")
        return 1 + (sides >> 14 & 0x3FFF), 1 + (sides & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(head[8:10], "little") & 0x3FFF, int.from_bytes(head[6:8], "little") & 0x3FFF
    raise Undecodable("damaged WebP file")


def _decode_jpeg(content: bytes, image: Image.Image, at_least: int) -> DecodedFilm:
    """Decode strictly: refuse a damaged stream, which Pillow would fill with grey."""
    factor = 2 ** choose_halvings(image.height, image.width, at_least, most=3)
    height, width = math.ceil(image.height / factor), math.ceil(image.width / factor)
    try:
        grey = simplejpeg.decode_jpeg(content, colorspace="GRAY", min_height=height, min_width=width)[..., 0]
    except ValueError as error:
        fault = "ends early" if "premature" in str(error).lower() else "corrupt data"
        raise Undecodable(f"damaged JPEG ({fault})") from None
    orientation = image.getexif().get(0x0112, 1)
    upright = _ORIENT[orientation](grey) if orientation in _ORIENT else grey
    full = (image.width, image.height) if orientation in _TURNED else (image.height, image.width)
    return _scale_shrunk(np.ascontiguousarray(upright), at_least, *full)


def _scale_shrunk(grey_HW: np.ndarray, at_least: int, full_height: int, full_width: int) -> DecodedFilm:
    """Shrink 8-bit grey to the requested size before it becomes float."""
    if at_least:
        grey_HW = shrink_film(grey_HW, at_least, full_height, full_width)
    return DecodedFilm(scale_8_bits(grey_HW), full_height=full_height, full_width=full_width)


def _decode_8_bits(image: Image.Image) -> np.ndarray:
    """Convert any 8-bit mode to grey; fully transparent pixels become air."""
    alpha = None
    if "transparency" in image.info or image.mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
        image = image.convert("RGB")
    elif image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    pixels = scale_8_bits(np.asarray(image.convert("L")))
    if alpha is not None:
        pixels[alpha == 0] = 0
    return pixels


def _decode_deep(image: Image.Image) -> np.ndarray:
    """Stretch 16-bit, 32-bit or float grey between its percentiles; NaN becomes air."""
    raw = np.asarray(image)
    return stretch_between_percentiles(np.ascontiguousarray(raw.astype(raw.dtype.newbyteorder("="), copy=False)))
