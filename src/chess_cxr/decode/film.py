"""Decode a file of any kind into one array: 2-D float32 in [0, 1], air dark and bone bright.

Training and serving both call `decode_film`, so they see the same numbers.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
from PIL import ImageFile

from chess_cxr.decode.decoded import DecodedFilm, check_range
from chess_cxr.decode.dicom import decode_dicom, is_dicom
from chess_cxr.decode.image import decode_image
from chess_cxr.decode.jsrt import decode_jsrt, is_jsrt
from chess_cxr.decode.volume import decode_volume, is_volume
from chess_cxr.files.locations import NotAFile, TooLarge, is_url, read_location
from chess_cxr.records import ChessError, Undecodable

MAX_FILE_BYTES = 1 << 30
# -9 is IMAGING_CODEC_MEMORY of Pillow; its TIFF reader reports only this number.
_MEMORY_WORDS = ("allocate memory", "unable to allocate", "bad_alloc", "bad alloc", "out of memory", "decoder error -9")


def decode_film(location: Path | str, at_least: int = 0) -> DecodedFilm:
    """Decode a local file or stored object: DICOM, PNG, JPEG, TIFF, WebP, NIfTI, MetaImage or raw JSRT.

    The content decides on the format, not the name; only JSRT films, which have no header, are recognised by name.

    8-bit images are kept as value / 255, deeper ones are stretched between their 0.5th and 99.5th percentile.  DICOM
    goes through rescale or Modality LUT (PS3.3 C.11.1) and VOI LUT or window (C.11.2); without a window, pixels deeper
    than 8 bits are stretched like other images.  MONOCHROME1 is inverted, Pixel Padding (C.7.5.1.1.2) becomes air,
    colour becomes luminance, and only the first frame is decoded.

    at_least: longest side, in pixels, to which the caller will shrink the film; 0 decodes the whole film.  Codecs that
    can (JPEG, JPEG 2000 and HTJ2K, alone or in DICOM) then decode to a half, a quarter or an eighth of the size, but
    not below 1.5 times `at_least`.  JPEG and grey PNG files of 8 bits are shrunk to `at_least` itself.  spacing_mm
    belongs to the size returned.

    Raises `Undecodable` for a film that is broken, truncated, blank, above 120 megapixels (before memory is allocated),
    below 32 pixels on a side or more than 8 times as long as wide; `ConnectionError`, which is no fault of the film, if
    an object store cannot be reached.
    """
    content = read_film_content(location)
    with refuse_damage("decode it"):
        film = _decode(content, str(location), at_least)
        check_range(film.pixels)
    return film


@contextlib.contextmanager
def refuse_damage(purpose: str) -> Iterator[None]:
    """Turn what libraries raise into `Undecodable`, and keep them from printing: both may quote the header.

    purpose: what memory is needed for, as in "decode it".
    """
    try:
        with _silence():
            yield
    except ChessError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            raise Undecodable(f"not enough memory to {purpose}") from None
        raise Undecodable(f"damaged or unsupported file ({type(error).__name__})") from None


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a library ran out of memory; OpenCV, libtiff through Pillow and ITK report it each in their own way."""
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.StsNoMem
    text = str(error).lower()
    return isinstance(error, MemoryError) or text == "-9" or any(words in text for words in _MEMORY_WORDS)


def _decode(content: bytes, name: str, at_least: int) -> DecodedFilm:
    if is_dicom(content):
        return decode_dicom(content, at_least)
    if is_volume(content):
        return decode_volume(content)
    if is_jsrt(content, name):
        return decode_jsrt(content)
    return decode_image(content, at_least)


def read_film_content(location: Path | str) -> bytes:
    """Read the content of a film's file.

    Raises `Undecodable` for a fault of this film, `ConnectionError` for one of its object store or server.
    """
    try:
        content = read_location(location, MAX_FILE_BYTES)
    except NotAFile:
        raise Undecodable("not a regular file") from None
    except ConnectionError:
        raise
    except FileNotFoundError:
        raise Undecodable("file not found") from None
    except PermissionError:
        if is_url(location):  # perhaps expired credentials
            raise ConnectionError from None
        raise Undecodable("no permission to read the file") from None
    except TooLarge:
        raise Undecodable("file larger than 1 GiB") from None
    except MemoryError:
        raise Undecodable("not enough memory to read it") from None
    except Exception as error:
        raise Undecodable(f"file cannot be read ({type(error).__name__})") from None
    if not content:
        raise Undecodable("empty file")
    return content


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence the libraries, whose warnings and log lines quote header values."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "PIL", "imagecodecs")]
    levels = [logger.level for logger in loggers]
    tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # pydicom only warns about files that end early; here they are errors.
            warnings.filterwarnings("error", message=".*(End of file reached|EOF|fewer|truncated).*")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
