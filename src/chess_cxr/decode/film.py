"""One file of any kind to one array: 2-D float32 in [0, 1], air dark and bone bright.

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

from chess_cxr.decode.decoded import DecodedFilm, FilmHeader, check_range
from chess_cxr.decode.dicom import decode_dicom, is_dicom
from chess_cxr.decode.image import decode_image
from chess_cxr.decode.jsrt import decode_jsrt, is_jsrt
from chess_cxr.decode.volume import decode_volume, is_volume
from chess_cxr.files.locations import NotAFile, TooLarge, is_url, read_location
from chess_cxr.records import Undecodable

__all__ = ["DecodedFilm", "FilmHeader", "Undecodable", "decode_film"]

MAX_FILE_BYTES = 1 << 30
# -9 is IMAGING_CODEC_MEMORY of Pillow, whose TIFF reader says no more than that.
_MEMORY_WORDS = ("allocate memory", "unable to allocate", "bad_alloc", "bad alloc", "out of memory", "decoder error -9")


def decode_film(location: Path | str, at_least: int = 0) -> DecodedFilm:
    """Decode one DICOM, PNG, JPEG, TIFF, WebP, NIfTI, MetaImage or raw JSRT file, or object of a store.

    Its content says which it is, never its name; only JSRT's films, which have no header, are told by theirs.

    8-bit images are kept as value / 255.  Deeper ones are stretched between their 0.5th and 99.5th percentile.
    DICOM goes through rescale or Modality LUT (PS3.3 C.11.1) and VOI LUT or window (C.11.2); where there is
    none and the pixels are deeper than 8 bits, through the same percentiles.  MONOCHROME1 is inverted,
    Pixel Padding (C.7.5.1.1.2) becomes air, colour becomes luminance, the first of many frames is taken.

    at_least: the longest side that the caller will shrink the film to, in pixels.  Where a codec can, it then decodes
    to a half, a quarter or an eighth of the size, but never below one and a half times `at_least`: JPEG, JPEG 2000
    and HTJ2K, alone or in DICOM.  JPEG and grey PNG files of 8 bits come at `at_least` itself.  0 decodes the whole
    film.  spacing_mm is of the size returned.

    Raises `Undecodable` for everything that cannot be used: broken, truncated, blank, above 120 megapixels
    (before memory is taken), below 32 pixels on a side or more than 8 times as long as wide; ConnectionError, which
    says nothing about the film, where an object store cannot be reached.
    """
    content = read_film_content(location)
    try:
        with silence():
            film = _decode(content, str(location), at_least)
            check_range(film.pixels)
    except Undecodable:
        raise
    except Exception as error:
        if tells_of_memory(error):
            raise Undecodable("not enough memory to decode it") from None
        # The text of a library's error may quote the header: only its type is safe to pass on.
        raise Undecodable(f"damaged or unsupported file ({type(error).__name__})") from None
    return film


def tells_of_memory(error: Exception) -> bool:
    """Whether a library ran out of memory; OpenCV, libtiff through Pillow and ITK say so in ways of their own."""
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
    """Return what the file of a film holds.

    Raises `Undecodable` for what concerns this film alone, ConnectionError where its store or server fails them all.
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
        if is_url(location):  # credentials that have run out meanwhile look the same
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
def silence() -> Iterator[None]:
    """Keep the libraries from printing: their warnings and log lines quote header values."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "PIL", "imagecodecs")]
    levels = [logger.level for logger in loggers]
    tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # pydicom only warns where a file ends early; what is left of such a film is not a film.
            warnings.filterwarnings("error", message=".*(End of file reached|EOF|fewer|truncated).*")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
